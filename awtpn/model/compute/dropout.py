"""Dropout whose random numbers are drawn fast on CPUs: the bits of `nn.Dropout`, in a third of the time."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Random float64 numbers drawn at a time: 512 KiB, which fits into a core's L2 cache.
DRAW_CHUNK = 1 << 16


@dataclass(frozen=True)
class DropoutFactors:
    """Factors that a model is given instead of drawing them itself: 0, or 1 / (1 - p).

    Attributes:
        steps: per modality [T, D], of the steps in the shared space; empty without dropout.
        statistics: per modality [B, 2F], of its mean and deviation over time; empty without their dropout.
    """

    steps: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]


class Dropout(nn.Dropout):
    """`nn.Dropout` with the same results and the same use of torch's generator."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape -> in training, 0 with probability p, else x / (1 - p)."""
        factors = self.factors(x.shape, x.dtype, x.device) if x.is_contiguous() else None
        return super().forward(x) if factors is None else x * factors

    def factors(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What `forward` multiplies a tensor by; None where it does not draw fast, or nothing is dropped."""
        fast = self.training and 0 < self.p < 1 and device.type == "cpu"
        return draw_factors(shape, self.p, dtype) if fast and not torch.compiler.is_compiling() else None


def draw_factors(shape: tuple[int, ...], p: float, dtype: torch.dtype) -> Tensor:
    """Factors of the given shape, 0 with probability `p` < 1, else 1 / (1 - p), on the CPU."""
    draw = bernoulli_from_uniform_ if bernoulli_is_from_uniform() else Tensor.bernoulli_
    return draw(torch.empty(shape, dtype=dtype), 1 - p).div_(1 - p)


def bernoulli_from_uniform_(out: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill the contiguous `out` with 1 with probability `p`, else 0.

    If `bernoulli_is_from_uniform`, it draws the numbers of `out.bernoulli_(p)` in a third of the time:
    `bernoulli_` branches on each random number, which the processor cannot predict.
    """
    flat = out.view(-1)
    uniform = torch.empty(min(len(flat), DRAW_CHUNK), dtype=torch.float64)
    for part in flat.split(DRAW_CHUNK):
        torch.lt(uniform[: len(part)].uniform_(generator=generator), p, out=part)
    return out


@functools.cache
def bernoulli_is_from_uniform() -> bool:
    """Whether `bernoulli_` compares one uniform float64 per number with p; it does not if it uses MKL."""
    ours, theirs = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for p in (0.1, 0.5, 0.9):
        drawn = bernoulli_from_uniform_(torch.empty(1000), p, ours)
        if not torch.equal(drawn, torch.empty(1000).bernoulli_(p, generator=theirs)):
            return False
    return torch.equal(ours.get_state(), theirs.get_state())
