"""Benchmark of the forms of the reliability attention: time and memory by utterance length."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from awtpn.bench.machine import peak_allocated, read_peak, start_peak, synchronize
from awtpn.bench.roofline_account import times
from awtpn.bench.step import Setting, make_batches
from awtpn.model.attention import FORMS, FUSED_DIM, choose_form, has_triton
from shards.safe_io.markdown import table

# Each batch has utterances of one of these lengths, about STEPS steps in all.
LENGTHS = (20, 120, 600, 5000)
STEPS = 10_000


def run(setting: Setting, dims: Sequence[int], rounds: int) -> str:
    """Measure forward and backward of every form that runs here; a Markdown table."""
    lines = [f"## Reliability attention, forward and backward, q and k in {setting.precision}", ""]
    columns = ["D, lengths", "form", "chosen", "ms", "MiB", "against plain"]
    rows = []
    mixed = make_batches(64, "cpu")[0]["steps"].tolist()
    cases = [(f"{max(1, STEPS // n)} x {n}", [n] * max(1, STEPS // n)) for n in LENGTHS]
    for dim in dims:
        for name, lengths in [*cases, ("64, log-normal", mixed)]:
            rows += forms(setting, dim, f"{dim}, {name}", lengths, rounds)
            print(f"{dim}, {name}", file=sys.stderr)
    return "\n".join([*lines, table(columns, rows, "lr"), "", "MiB: peak memory beyond the inputs.", ""])


def forms(setting: Setting, dim: int, name: str, lengths: list[int], rounds: int) -> list[list[str]]:
    """A table row for each form."""
    device = torch.device(setting.device)
    chosen = choose_form(device.type, setting.dtype, dim, lengths, triton=has_triton(device))
    arguments = inputs(dim, lengths, setting)
    rows, plain = [], 0.0
    for form in FORMS:
        if form == "fused" and (not has_triton(device) or dim > FUSED_DIM):
            continue
        try:
            work = functools.partial(forward_backward, form, *arguments, lengths)
            work()  # compiles the kernels
            growth = peak_growth(work, setting.device)
            seconds = statistics.median(times(work, setting.device, rounds))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append([name, form, "", "out of memory", "", ""])
            continue
        plain = seconds if form == "plain" else plain
        ratio = f"{plain / seconds:.2f}x" if plain else ""
        mark = "yes" if form == chosen else ""
        rows.append([name, form, mark, f"{seconds * 1e3:.2f}", f"{growth / 2**20:,.0f}", ratio])
    return rows


def peak_growth(work: Callable[[], None], device: str) -> int:
    """Peak memory of `work` in bytes, beyond what was in use before."""
    if device != "cuda":
        return peak_allocated(work)
    before = start_peak(device)
    work()
    synchronize(device)
    return read_peak(device) - before


def inputs(dim: int, lengths: list[int], setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """q and k [T, D] in the setting's precision, and reliabilities r [T] float32; all require gradients."""
    generator = torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(sum(lengths), dim, generator=generator).to(setting.device, setting.dtype).requires_grad_()
        for _ in range(2)
    )
    r = torch.cat([torch.full((n,), 1 / max(1, n)) for n in lengths]).to(setting.device).requires_grad_()
    return q, k, r


def forward_backward(form: str, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> None:
    w = FORMS[form](q, k, r, lengths)
    w.backward(torch.ones_like(w))
    q.grad = k.grad = r.grad = None
