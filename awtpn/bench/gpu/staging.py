"""Benchmark of a checkpoint's copies to the host (`HostCopies`): how long training waits for them.

Rank 0 copies weights and Adam's moments in float32. From a GPU the copies go into page-locked memory, which
is made at the first checkpoint and kept; the step after goes on while they run, on the same queue of the
device.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from awtpn.bench.machine import synchronize
from awtpn.bench.step import Setting, make_model
from awtpn.distributed.engines.base import MOMENTS
from awtpn.distributed.host_copies import HostCopies
from shards.safe_io.markdown import table


def run(setting: Setting, dims: Sequence[int], rounds: int) -> str:
    """Measure; Markdown."""
    rows = []
    for dim in dims:
        rows.append(row(state_of_model(dim, setting.device), setting.device, dim, rounds))
        print(" | ".join(rows[-1]), file=sys.stderr)
    columns = ["D", "MB", "first copy, ms", "later: training waits, ms", "later: complete after, ms", "GB/s"]
    columns += ["new memory each time, ms"]
    notes = (
        "The first copy makes the memory (on a GPU's host page-locked). Training waits: until the calls "
        f"return. New memory each time: `tensor.cpu()` in place of `HostCopies`. Medians of {rounds} rounds."
    )
    title = f"## Checkpoint staging on {setting.device}: weights and Adam's moments, float32"
    return "\n".join([title, "", table(columns, rows, "lr"), "", notes, ""])


def state_of_model(dim: int, device: str) -> dict[str, Tensor]:
    """What a checkpoint holds: each weight, and two tensors like it."""
    named = {name: p.detach() for name, p in make_model(dim, device).named_parameters()}
    return named | {f"{name}.{kind}": torch.ones_like(p) for name, p in named.items() for kind in MOMENTS}


def row(state: Mapping[str, Tensor], device: str, dim: int, rounds: int) -> list[str]:
    size = sum(tensor.numel() * 4 for tensor in state.values())
    copies = HostCopies()
    _, first = copy_state(copies, state, device)
    found = [copy_state(copies, state, device) for _ in range(rounds)]
    waits, whole = (statistics.median(column) for column in zip(*found, strict=True))
    plain = statistics.median(copy_plainly(state, device) for _ in range(rounds))
    figures = [first, waits, whole]
    cells = [str(dim), f"{size / 1e6:,.1f}", *(f"{s * 1e3:,.2f}" for s in figures)]
    return [*cells, f"{size / whole / 1e9:,.1f}", f"{plain * 1e3:,.2f}"]


def copy_state(copies: HostCopies, state: Mapping[str, Tensor], device: str) -> tuple[float, float]:
    """Seconds until the calls return, and until all copies are complete."""
    synchronize(device)
    start = time.perf_counter()
    for name, tensor in state.items():
        copies.add(name, tensor, tensor.shape, torch.float32)
    returned = time.perf_counter() - start
    copies.wait()
    return returned, time.perf_counter() - start


def copy_plainly(state: Mapping[str, Tensor], device: str) -> float:
    """Seconds of the same copies, each into new memory."""
    synchronize(device)
    start = time.perf_counter()
    held = [tensor.to("cpu", torch.float32, copy=True) for tensor in state.values()]
    seconds = time.perf_counter() - start
    del held
    return seconds
