"""Benchmark of copies from the host to the GPU: the bus's bandwidth, and the share of it that training takes.

Features travel in their stored dtype, from page-locked memory, beside the step that trains on the batch
before. So the bus bounds training only where bytes per utterance times utterances/s come near its bandwidth.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from awtpn.bench.machine import synchronize
from awtpn.bench.roofline.account import times
from awtpn.bench.step import Setting, Step, make_batches, make_step
from shards.safe_io.markdown import table

SIZES = (1 << 20, 16 << 20, 256 << 20)
NO_GPU = "Skipped: no CUDA device."
Batch = dict[str, Any]


def run(setting: Setting, dims: Sequence[int], batches: Sequence[int], rounds: int) -> str:
    """Measure; Markdown. Without a GPU there is no bus to measure."""
    title = ["## Host to device", ""]
    if setting.device != "cuda":
        return "\n".join([*title, NO_GPU, ""])
    rates = {size: [copy_rate(size, setting.device, pin, rounds) for pin in (True, False)] for size in SIZES}
    rows = [[f"{size >> 20} MiB", *(f"{rate / 1e9:,.1f}" for rate in found)] for size, found in rates.items()]
    best = max(found[0] for found in rates.values())
    lines = [*title, table(["copy of", "page-locked, GB/s", "pageable, GB/s"], rows, "lr"), ""]
    shown = []
    for dim in dims:
        for batch in batches:
            shown.append(share_row(setting, dim, batch, rounds, best))
            print(" | ".join(shown[-1]), file=sys.stderr)
    columns = ["D", "batch", "kB/utterance", "batches alone, GB/s", "copied in the step, utt/s"]
    columns += ["on the device, utt/s", "of the latter", "share of the bus"]
    notes = (
        f"Share of the bus: bytes per utterance times utterances/s with copies, of {best / 1e9:,.1f} GB/s, "
        "the fastest copy above. Copied in the step: each batch travels from page-locked memory while the "
        f"step before runs. Medians of {rounds} interleaved rounds."
    )
    return "\n".join([*lines, table(columns, shown, "lr"), "", notes, ""])


def copy_rate(size: int, device: str, pin: bool, rounds: int) -> float:
    """Bytes/s of a copy of `size` bytes from the host, page-locked or not, to `device`."""
    source = torch.ones(size, dtype=torch.uint8, pin_memory=pin)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / statistics.median(times(lambda: target.copy_(source, non_blocking=True), device, rounds))


def share_row(setting: Setting, dim: int, batch: int, rounds: int, best: float) -> list[str]:
    """A row of the second table, for one width and batch size."""
    resident, host = make_batches(batch, setting.device), on_host(make_batches(batch, "cpu"), pin=True)
    size = sum(batch_bytes(of) for of in host) / len(host)
    alone = size / statistics.median(times(lambda: moved(host[0], setting.device), setting.device, rounds))
    copied, kept = compare(setting, dim, resident, host, rounds)
    each = size / batch
    return [
        str(dim),
        str(batch),
        f"{each / 1e3:,.0f}",
        f"{alone / 1e9:,.1f}",
        f"{copied:,.0f}",
        f"{kept:,.0f}",
        f"{copied / kept:.1%}",
        f"{copied * each / best:.1%}",
    ]


def compare(
    setting: Setting, dim: int, resident: list[Batch], host: list[Batch], rounds: int
) -> tuple[float, float]:
    """Utterances/s of steps on batches that travel, and on batches that are on the device already."""
    step = make_step("packed", dim, setting)
    copied: list[float] = []
    kept: list[float] = []
    for number in range(rounds + 1):  # round 0 is the warm-up
        for found, batches, travels in ((copied, host, True), (kept, resident, False)):
            rate = utterances_per_s(step, batches, setting.device, travels)
            if number:
                found.append(rate)
    return statistics.median(copied), statistics.median(kept)


def utterances_per_s(step: Step, batches: list[Batch], device: str, travels: bool) -> float:
    start = time.perf_counter()
    for batch in batches:
        step(moved(batch, device) if travels else batch)
    synchronize(device)
    return sum(len(of["label"]) for of in batches) / (time.perf_counter() - start)


def on_host(batches: list[Batch], pin: bool) -> list[Batch]:
    """The packed form of batches, page-locked if `pin`."""

    def held(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if pin else tensor

    return [
        {
            "packed": {
                m: replace(r, values=held(r.values), offsets=held(r.offsets)) for m, r in of["packed"].items()
            },
            "label": held(of["label"]),
        }
        for of in batches
    ]


def moved(batch: Batch, device: str) -> Batch:
    """The batch on the device, as `FeatureBatch.to` moves it."""
    packed = {
        m: replace(
            r,
            values=r.values.to(device, non_blocking=True),
            offsets=r.offsets.to(device, non_blocking=True),
        )
        for m, r in batch["packed"].items()
    }
    return {"packed": packed, "label": batch["label"].to(device, non_blocking=True)}


def batch_bytes(batch: Batch) -> int:
    return batch["label"].nbytes + sum(r.values.nbytes + r.offsets.nbytes for r in batch["packed"].values())
