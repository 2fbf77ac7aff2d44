"""Benchmark of the forms of the reliability attention: time, memory and errors by utterance length.

On a GPU also of torch's own attention kernels (`library_attention`).
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from awtpn.bench.gpu import library_attention
from awtpn.bench.machine import peak_allocated, read_peak, start_peak, synchronize
from awtpn.bench.roofline.account import times
from awtpn.bench.step import Setting, make_batches
from awtpn.model.attention import FORMS, FUSED_DIM, choose_form, has_triton
from shards.safe_io.markdown import table

# Each batch has utterances of one of these lengths, about STEPS steps in all.
LENGTHS = (20, 120, 600, 5000)
STEPS = 10_000
QUICK = ((20, 120), 240)  # lengths and steps of a test of the command

COLUMNS = (
    "D, lengths",
    "form",
    "chosen",
    "ms",
    "MiB",
    "against plain",
    "library / ours",
    "error of w, dq, dk",
)
Form = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]


def run(setting: Setting, dims: Sequence[int], rounds: int, quick: bool = False) -> str:
    """Measure forward and backward of every form that runs here; a Markdown table."""
    lines = [f"## Reliability attention, forward and backward, q and k in {setting.precision}", ""]
    rows, ratios = [], []
    uniform, steps = QUICK if quick else (LENGTHS, STEPS)
    cases = [(f"{max(1, steps // n)} x {n}", [n] * max(1, steps // n)) for n in uniform]
    if not quick:
        cases.append(("64, log-normal", make_batches(64, "cpu")[0]["steps"].tolist()))
    for dim in dims:
        for name, lengths in cases:
            found, of_libraries = forms(setting, dim, f"{dim}, {name}", lengths, rounds)
            rows += found
            ratios.append(of_libraries)
            print("\n".join(" | ".join(row) for row in found), file=sys.stderr, flush=True)
    return "\n".join([*lines, table(COLUMNS, rows, "lr"), "", *notes(setting, ratios), ""])


def notes(setting: Setting, ratios: Sequence[dict[str, float]]) -> list[str]:
    """What the table's columns mean, and what follows for the libraries' kernels."""
    text = [
        "MiB: peak memory beyond the inputs. Errors: the largest difference to the plain form in float64, "
        "relative to the largest value, of the result and of the gradients of q and k."
    ]
    if not on_gpu(setting):
        return [*text, "", f"Kernels of torch ({', '.join(library_attention.KERNELS)}): {NO_GPU}."]
    text += ["", library_attention.RULE]
    return [*text, "", *library_attention.verdicts(ratios)]


NO_GPU = "skipped: no CUDA device"


def forms(
    setting: Setting, dim: int, name: str, lengths: list[int], rounds: int
) -> tuple[list[list[str]], dict[str, float]]:
    """A table row for each form, and by library kernel its time divided by that of the chosen form."""
    device = torch.device(setting.device)
    chosen = choose_form(device.type, setting.dtype, dim, lengths, triton=has_triton(device))
    arguments = inputs(dim, lengths, setting)
    expected = oracle(*arguments, lengths)
    found: dict[str, Form | str] = {
        form: work
        for form, work in FORMS.items()
        if form != "fused" or (has_triton(device) and dim <= FUSED_DIM)
    }
    if on_gpu(setting):
        found |= library_attention.kernels(lengths, setting.dtype, dim)
    rows, seconds = [], dict.fromkeys(found, math.nan)
    for form, work in found.items():
        try:
            if isinstance(work, str):
                raise library_attention.Absent(work)
            once = functools.partial(forward_backward, work, *arguments, lengths)
            errors = worst_errors(once(), expected)  # compiles the kernels, too
            growth = peak_growth(once, setting.device)
            seconds[form] = statistics.median(times(once, setting.device, rounds))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append([name, form, "", "out of memory", *[""] * 4])
            continue
        except Exception as error:
            if form in FORMS:
                raise
            # A library's kernel may refuse a shape or a device; the others are measured nevertheless.
            what = str(error) if isinstance(error, library_attention.Absent) else f"{type(error).__name__}"
            print(f"{form}: {error}", file=sys.stderr)
            rows.append([name, form, "", what, *[""] * 4])
            continue
        mark, ratio = "yes" if form == chosen else "", seconds[form] / seconds[chosen]
        cells = [f"{seconds[form] * 1e3:.2f}", f"{growth / 2**20:,.0f}"]
        cells += [f"{seconds['plain'] / seconds[form]:.2f}x" if seconds["plain"] > 0 else ""]
        cells += [f"{ratio:.2f}x" if form not in FORMS else ""]
        rows.append([name, form, mark, *cells, ", ".join(f"{e:.0e}" for e in errors)])
    return rows, {
        form: seconds[form] / seconds[chosen] for form in found if form not in FORMS and chosen == "fused"
    }


def on_gpu(setting: Setting) -> bool:
    """Whether torch's own kernels run there; on a CPU they are not compared."""
    return setting.device == "cuda"


def peak_growth(work: Callable[[], object], device: str) -> int:
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
    r = torch.cat([torch.softmax(torch.randn(n, generator=generator), 0) for n in lengths])
    return q, k, r.to(setting.device).requires_grad_()


def forward_backward(
    form: Form, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [T], and the gradients of q and k."""
    w = form(q, k, r, lengths)
    w.backward(torch.ones_like(w))
    assert q.grad is not None
    assert k.grad is not None
    found = w.detach(), q.grad, k.grad
    q.grad = k.grad = r.grad = None
    return found


def oracle(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """`forward_backward` of the plain form in float64, on the same values."""
    q, k, r = (t.detach().double().requires_grad_() for t in (q, k, r))
    return forward_backward(FORMS["plain"], q, k, r, lengths)


def worst_errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Of each tensor the largest difference, relative to the largest expected value."""
    return [
        ((one.double() - other).abs().max() / other.abs().max()).item()
        for one, other in zip(found, expected, strict=True)
    ]
