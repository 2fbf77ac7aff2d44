"""What a training step does on CPUs beside its matrix products, in few passes over main memory.

Tensors [T, F] and [T, D] of a batch do not fit into a core's cache. As one operation after another, each
would read and write all of them. Here several operations follow each other on a block of rows, which stays in
the cache, and backward writes each gradient once. Forward has the bits of the plain form that each function
names; gradients agree with it to rounding.

The plain forms serve GPUs, half precision and torch.compile, which fuses by itself: see `in_few_passes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Numbers of a block, 512 KiB in float32: with a second block of them it fits into a core's L2 cache.
BLOCK = 1 << 17


def in_few_passes(x: Tensor) -> bool:
    """Whether the functions here take `x`: on a CPU, in float32 or float64, not compiled."""
    return x.device.type == "cpu" and x.dtype.itemsize >= 4 and not torch.compiler.is_compiling()


def row_blocks(x: Tensor) -> Iterator[slice]:
    """The rows of each block of `x` [T, ...]."""
    rows = max(1, BLOCK // max(1, x[:1].numel()))
    for first in range(0, len(x), rows):
        yield slice(first, first + rows)


# --- Features ------------------------------------------------------------------------------------


def standardized(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """`(x - mean) * scale` in the dtype of `mean` or a wider one; `x` [T, F] -> [T, F]; no gradients."""
    result = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, mean.dtype))
    for rows in row_blocks(x):
        result[rows].copy_(x[rows]).sub_(mean).mul_(scale)
    return result


def mean_and_variance(x: Tensor, offsets: Tensor, utterance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over each utterance's steps, `segment_mean` of x and of (x - mean)^2; no gradients.

    Args:
        x: [T, F].
        offsets: [B + 1] where each utterance's steps begin.
        utterance: [T], the utterance of each step.

    Returns:
        [B, F] each; 0 for an utterance without steps.
    """
    mean, variance = x.new_zeros(2, len(offsets) - 1, x.shape[1])
    count = offsets.diff().clamp(min=1).to(x.dtype)[:, None]
    for utterances, rows in utterance_blocks(offsets.tolist(), x.shape[1]):
        of = utterance[rows] - utterances.start
        center = mean[utterances].index_add_(0, of, x[rows]).div_(count[utterances])
        squares = (x[rows] - center[of]).square_()
        variance[utterances].index_add_(0, of, squares).div_(count[utterances])
    return mean, variance


def utterance_blocks(offsets: Sequence[int], width: int) -> Iterator[tuple[slice, slice]]:
    """The utterances and the rows of each block: whole utterances of BLOCK numbers, or a longer one."""
    first = 0
    for last in range(1, len(offsets)):
        ends = last == len(offsets) - 1 or (offsets[last + 1] - offsets[first]) * width > BLOCK
        if ends:
            yield slice(first, last), slice(offsets[first], offsets[last])
            first = last


# --- Steps in the shared space -------------------------------------------------------------------


class ReluTimes(torch.autograd.Function):
    """`relu(z) * factors`, written over z; keeps the result for backward, and neither z nor the factors."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, factors: Tensor) -> Tensor:
        """`z` [T, D] that no other operation needs; `factors` [T, D] each 0 or the same number >= 1."""
        for rows in row_blocks(z):
            z[rows].relu_().mul_(factors[rows])
        ctx.mark_dirty(z)
        ctx.save_for_backward(z, factors.amax() if factors.numel() else factors.new_ones(()))
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        h, factor = ctx.saved_tensors
        result = torch.empty_like(h)
        for rows in row_blocks(h):
            # Where h is 0, z was not positive or its factor was 0.
            part = torch.mul(gradients[0][rows], factor, out=result[rows])
            torch.ops.aten.threshold_backward.grad_input(part, h[rows], 0, grad_input=part)
        return result, None


class SquaredDistances(torch.autograd.Function):
    """`|h|^2 + |p|^2 - 2 h p^T`: `h` [T, D], `p` [N, D] -> [T, N], not clamped."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, h: Tensor, p: Tensor) -> Tensor:
        square = h.new_empty(len(h), 1)
        for rows in row_blocks(h):
            torch.sum(h[rows].square(), 1, keepdim=True, out=square[rows])
        ctx.save_for_backward(h, p)
        return square + p.square().sum(1) - 2 * h @ p.T

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        h, p = ctx.saved_tensors
        g = gradients[0]
        of_h, total, minus = torch.empty_like(h), g.sum(1, keepdim=True), -2 * p
        for rows in row_blocks(h):
            torch.mm(g[rows], minus, out=of_h[rows]).addcmul_(h[rows], total[rows], value=2)
        if not ctx.needs_input_grad[1]:
            return of_h, None
        return of_h, (g.T @ h).mul_(-2).addcmul_(p, g.sum(0)[:, None], value=2)


class StepSums(torch.autograd.Function):
    """`segment_sum(weights[:, None] * h)` and `segment_sum(h)`: `h` [T, D], `weights` [T] -> [B, D] each."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weights: Tensor, utterance: Tensor, utterances: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(h, weights, utterance)
        weighted, plain = h.new_zeros(2, utterances, h.shape[1])
        for rows in row_blocks(h):
            plain.index_add_(0, utterance[rows], h[rows])
            weighted.index_add_(0, utterance[rows], weights[rows, None] * h[rows])
        return weighted, plain

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        h, weights, utterance = ctx.saved_tensors
        of_h, of_weights = torch.empty_like(h), torch.empty_like(weights)
        for rows in row_blocks(h):
            of_weighted = gradients[0][utterance[rows]]
            torch.sum(of_weighted * h[rows], 1, out=of_weights[rows])
            part = torch.index_select(gradients[1], 0, utterance[rows], out=of_h[rows])
            part.addcmul_(of_weighted, weights[rows, None])
        return of_h, of_weights, None, None
