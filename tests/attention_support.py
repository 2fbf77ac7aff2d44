"""Shared by tests of the attention's forms: inputs, their reference results in float64, errors of a form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from support import same_bits_or_close
from torch import Tensor

from awtpn.model import attention

Form = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]

OUTCOMES = ("w", "gradient of q", "gradient of k", "gradient of r")
# As in awtpn/model/attention.py: largest error per utterance, relative to the largest value.
TOLERANCES = {
    torch.float64: (1e-12, 1e-12, 1e-12, 1e-12),
    torch.float32: (1e-5, 1e-4, 1e-4, 1e-5),
    torch.float16: (1e-5, 5e-3, 5e-3, 1e-5),
    torch.bfloat16: (1e-5, 2e-2, 2e-2, 1e-5),
}
MIXES: dict[str, tuple[int, ...]] = {
    "empty batch": (),
    "only utterances without steps": (0, 0),
    "one step": (1,),
    "alike": (20, 20, 19, 18),
    "tile edges": (64, 63, 65, 128, 0, 1),
    "mixed": (3, 0, 130, 1, 2, 17, 0, 300, 1),
}


def make_inputs(
    lengths: Sequence[int], dim: int, dtype: torch.dtype, sharpness: float = 1.0
) -> tuple[Tensor, ...]:
    """q, k [T, D] of `dtype`, r [T] as the model makes it, an upstream gradient [T]; always the same values.

    They are views into larger tensors of NaN, so that reading beyond the batch gives NaN. Scores have a
    standard deviation of about 2 * sharpness.
    """
    generator = torch.Generator().manual_seed(0)
    total, margin = sum(lengths), 130
    wide = torch.promote_types(dtype, torch.float32)
    reliability = [torch.softmax(torch.randn(n, generator=generator, dtype=wide), 0) for n in lengths]

    def surrounded(values: Tensor) -> Tensor:
        table = values.new_full((total + 2 * margin, *values.shape[1:]), float("nan"))
        table[margin : margin + total] = values
        return table[margin : margin + total]

    q, k = (torch.randn(total, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    r = torch.cat([torch.zeros(0, dtype=wide), *reliability])
    upstream = torch.randn(total, generator=generator, dtype=wide)
    scaled = ((2 * sharpness) ** 0.5 * x for x in (q, k))
    return (*(surrounded(x.to(dtype)) for x in scaled), surrounded(r), surrounded(upstream))


def outcome(form: Form, inputs: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """w and the gradients of q, k and r, for the upstream gradient that is the last of `inputs`."""
    *leaves, upstream = (x.detach() for x in inputs)
    leaves = [x.requires_grad_() for x in leaves]
    w = form(*leaves, list(lengths))
    (w * upstream).sum().backward()
    # Without any steps some forms give no gradient, others an empty one.
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return [w.detach(), *gradients]


@functools.cache
def reference(lengths: tuple[int, ...], dim: int, dtype: torch.dtype, sharpness: float = 1.0) -> list[Tensor]:
    """The outcome of `plain` in float64, on inputs rounded to `dtype`."""
    inputs = [x.double() for x in make_inputs(lengths, dim, dtype, sharpness)]
    return outcome(attention.plain, inputs, lengths)


def worst_errors(
    form: Form,
    lengths: tuple[int, ...],
    dim: int,
    dtype: torch.dtype,
    device: str = "cpu",
    sharpness: float = 1.0,
) -> list[float]:
    """Per outcome the largest error of any utterance, relative to its largest value in the reference."""
    inputs = [x.to(device) for x in make_inputs(lengths, dim, dtype, sharpness)]
    found = outcome(form, inputs, lengths)
    assert found[0].dtype == inputs[2].dtype
    assert [x.dtype for x in found[1:]] == [x.dtype for x in inputs[:3]]
    return [
        max((_relative(x, y) for x, y in _utterances(one.cpu(), other, lengths)), default=0.0)
        for one, other in zip(found, reference(lengths, dim, dtype, sharpness), strict=True)
    ]


def contaminated(form: Form, dim: int, dtype: torch.dtype, device: str = "cpu") -> dict[int, set[int]]:
    """For each utterance, if a NaN is put into it: the utterances whose outcome changes."""
    lengths = (5, 40, 33, 1, 70)
    clean = [x.to(device) for x in make_inputs(lengths, dim, dtype)]
    before = outcome(form, clean, lengths)
    reached = {}
    for broken in range(len(lengths)):
        inputs = [x.clone() for x in clean]
        for x in inputs[:2]:
            x.split(lengths)[broken][-1] = float("nan")
        after = outcome(form, inputs, lengths)
        reached[broken] = {
            u
            for one, other in zip(before, after, strict=True)
            for u, (x, y) in enumerate(_utterances(one, other, lengths))
            if not same_bits_or_close(x, y)
        }
    return reached


def _utterances(one: Tensor, other: Tensor, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(one.split(list(lengths)), other.split(list(lengths)), strict=True))


def _relative(found: Tensor, expected: Tensor) -> float:
    if not len(found):
        return 0.0
    error, size = (found.double() - expected).abs().max().item(), expected.abs().max().item()
    if error == 0:
        return 0.0
    # `error == error` is False for NaN, which counts as infinite.
    return error / size if size > 0 and error == error else float("inf")
