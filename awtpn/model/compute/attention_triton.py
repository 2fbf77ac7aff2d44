"""The reliability attention as fused CUDA kernels, without an M x M matrix or a value matrix in memory.

The values are one scalar per step, so a program reads only keys and reliabilities for its block of rows, with
an online softmax (Milakov and Gimelshein, 2018). Forward keeps two numbers per step: w = A r and the row's
log-sum-exp. From them backward computes the scores again, as in `awtpn.model.attention.Recomputed`: with
dS_ij = g_i A_ij (r_j - w_i),

    dq_i = sum_j dS_ij k_j / sqrt(D)     dk_j = sum_i dS_ij q_i / sqrt(D)     dr_j = sum_i g_i A_ij,

in one kernel over blocks of rows and one over blocks of columns. They use no atomics, so results are
bit-exact. One launch serves all utterances of a batch; a table of tiles, made on the host, holds where each
block and its utterance begin and end. Scores, softmax and sums are float32 for any dtype of q and k.

Imported only where Triton is installed (CUDA builds of torch include it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from awtpn.model.device import to_device_async

# exp(x) = exp2(LOG2_E x): GPUs have an instruction for exp2 only.
LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True)
class Tiling:
    """Block sizes: a program owns a block of `own` steps and loops over blocks of `other` steps."""

    own: int
    other: int
    warps: int
    stages: int


def tiling(dim: int, dtype: torch.dtype) -> Tiling:
    """Tiles that fit into the registers and the 99 KiB of shared memory of every GPU since sm_80."""
    if dtype == torch.float32:  # not on tensor cores, so operands take more registers
        return Tiling(32, 32, 4, 1) if dim <= 64 else Tiling(32, 16, 8, 1)
    return Tiling(64, 64, 4 if dim <= 64 else 8, 2)


def make_tiles(lengths: Sequence[int], size: int) -> NDArray[np.int32]:
    """Cut utterances into blocks of at most `size` steps: [tiles, 3] of (start, end, first).

    `start` and `end` are the bounds of the utterance's steps in the batch, `first` is the block's first step.
    Blocks of long utterances come first, since they take longest. An utterance without steps has none.
    """
    length = np.asarray(lengths, dtype=np.int64)
    end = np.cumsum(length)
    order = np.argsort(-length, kind="stable")
    blocks = -(-length[order] // size)
    utterance = np.repeat(order, blocks)
    within = np.arange(len(utterance)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    start = (end - length)[utterance]
    return np.stack([start, end[utterance], start + within * size], axis=1).astype(np.int32)


class Fused(torch.autograd.Function):
    """The kernels as an autograd function: `q`, `k` [T, D], D <= 256, half or float32; `r` [T] float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, r = q.contiguous(), k.contiguous(), r.contiguous()
        tiles = to_device_async(make_tiles(lengths, tiling(q.shape[1], q.dtype).own), q.device)
        w, norm = torch.empty_like(r), torch.empty_like(r)
        launch(forward_kernel, q, tiles, (q, k, r, w, norm))
        ctx.save_for_backward(q, k, r, w, norm, tiles)
        return w

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, r, w, norm, tiles = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        dq, dk, dr = torch.empty_like(q), torch.empty_like(k), torch.empty_like(r)
        launch(query_gradient_kernel, q, tiles, (q, k, r, w, norm, gradient, dq))
        launch(key_gradient_kernel, q, tiles, (q, k, r, w, norm, gradient, dk, dr))
        return dq, dk, dr, None


def launch(kernel: Any, q: Tensor, tiles: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Run `kernel`, one program per tile, on the current CUDA stream of q's device."""
    if not len(tiles):
        return
    dim = q.shape[1]
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    with torch.cuda.device_of(q):
        kernel[(len(tiles),)](
            *tensors,
            tiles,
            1.0 / math.sqrt(dim),
            **constants(dim, q.dtype, tf32),
            **options(dim, q.dtype),
        )


def constants(dim: int, dtype: torch.dtype, tf32: bool) -> dict[str, Any]:
    """The kernel's compile-time constants; none depends on a batch's lengths, so nothing is recompiled."""
    shape = tiling(dim, dtype)
    return {
        "D": dim,
        "D_PADDED": max(16, triton.next_power_of_2(dim)),
        "OWN": shape.own,
        "OTHER": shape.other,
        "PRECISION": "tf32" if tf32 else "ieee",
    }


def options(dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Triton's compile options."""
    shape = tiling(dim, dtype)
    return {"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True}


@triton.jit
def load_steps(table, steps, end, D: tl.constexpr, D_PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows `steps` of `table` [T, D] as [steps, D_PADDED]; zero beyond `end` and beyond D."""
    features = tl.arange(0, D_PADDED)
    # int64: a batch may hold more than 2^31 values.
    places = table + steps.to(tl.int64)[:, None] * D + features[None, :]
    return tl.load(places, mask=(steps[:, None] < end) & (features[None, :] < D), other=0.0)


@triton.jit
def store_steps(table, steps, end, values, D: tl.constexpr, D_PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    features = tl.arange(0, D_PADDED)
    places = table + steps.to(tl.int64)[:, None] * D + features[None, :]
    inside = (steps[:, None] < end) & (features[None, :] < D)
    tl.store(places, values.to(table.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    r,
    spread,
    norm,
    tiles,
    scale,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """w_i, into `spread`, and the base-2 log-sum-exp of row i's scores, into `norm`, for one tile of rows."""
    tile = tiles + 3 * tl.program_id(0)
    start, end, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    rows = first + tl.arange(0, OWN)
    q_rows = load_steps(q, rows, end, D, D_PADDED)
    peak = tl.full([OWN], float("-inf"), tl.float32)
    total = tl.zeros([OWN], tl.float32)
    weighted = tl.zeros([OWN], tl.float32)
    for column in range(start, end, OTHER):
        columns = column + tl.arange(0, OTHER)
        k_columns = load_steps(k, columns, end, D, D_PADDED)
        scores = tl.dot(q_rows, k_columns.T, input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where(columns[None, :] < end, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        exponentials = tl.exp2(scores - higher[:, None])
        decay = tl.exp2(peak - higher)
        reliability = tl.load(r + columns, mask=columns < end, other=0.0)
        total = total * decay + tl.sum(exponentials, 1)
        weighted = weighted * decay + tl.sum(exponentials * reliability[None, :], 1)
        peak = higher
    tl.store(spread + rows, weighted / total, mask=rows < end)
    tl.store(norm + rows, peak + tl.log2(total), mask=rows < end)


@triton.jit
def query_gradient_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    r,
    spread,
    norm,
    gradient,
    dq,
    tiles,
    scale,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dq_i for one tile of rows."""
    tile = tiles + 3 * tl.program_id(0)
    start, end, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    rows = first + tl.arange(0, OWN)
    q_rows = load_steps(q, rows, end, D, D_PADDED)
    g = tl.load(gradient + rows, mask=rows < end, other=0.0)
    w = tl.load(spread + rows, mask=rows < end, other=0.0)
    n = tl.load(norm + rows, mask=rows < end, other=0.0)
    # dS = g A (r - w), and A and r are about 1 / M each: dS may underflow or overflow float16. So compute
    # M dS / g, and multiply by g / M at the end.
    steps = (end - start).to(tl.float32)
    result = tl.zeros([OWN, D_PADDED], tl.float32)
    for column in range(start, end, OTHER):
        columns = column + tl.arange(0, OTHER)
        k_columns = load_steps(k, columns, end, D, D_PADDED)
        scores = tl.dot(q_rows, k_columns.T, input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where(columns[None, :] < end, scores, float("-inf"))
        reliability = tl.load(r + columns, mask=columns < end, other=0.0)
        ds = tl.exp2(scores - n[:, None]) * ((reliability[None, :] - w[:, None]) * steps)
        result = tl.dot(ds.to(k_columns.dtype), k_columns, result, input_precision=PRECISION)
    store_steps(dq, rows, end, result * (g * (scale / steps))[:, None], D, D_PADDED)


@triton.jit
def key_gradient_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    r,
    spread,
    norm,
    gradient,
    dk,
    dr,
    tiles,
    scale,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dk_j and dr_j for one tile of columns."""
    tile = tiles + 3 * tl.program_id(0)
    start, end, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    columns = first + tl.arange(0, OWN)
    k_columns = load_steps(k, columns, end, D, D_PADDED)
    reliability = tl.load(r + columns, mask=columns < end, other=0.0)
    # As for dq, but the sum runs over g's rows, so g cannot be left out: divide it by max |g| instead.
    steps = (end - start).to(tl.float32)
    sizes = tl.zeros([OTHER], tl.float32)
    for row in range(start, end, OTHER):
        rows = row + tl.arange(0, OTHER)
        sizes = tl.maximum(sizes, tl.abs(tl.load(gradient + rows, mask=rows < end, other=0.0)))
    unit = tl.max(sizes, 0)
    unit = tl.where(unit > 0, unit, 1.0)
    dk_columns = tl.zeros([OWN, D_PADDED], tl.float32)
    dr_columns = tl.zeros([OWN], tl.float32)
    for row in range(start, end, OTHER):
        rows = row + tl.arange(0, OTHER)
        q_rows = load_steps(q, rows, end, D, D_PADDED)
        g = tl.load(gradient + rows, mask=rows < end, other=0.0) / unit
        w = tl.load(spread + rows, mask=rows < end, other=0.0)
        n = tl.load(norm + rows, mask=rows < end, other=0.0)
        scores = tl.dot(k_columns, q_rows.T, input_precision=PRECISION) * (scale * LOG2_E)
        weighted = tl.exp2(scores - n[None, :]) * g[None, :]  # g_i A_ij, transposed
        dr_columns += tl.sum(weighted, 1)
        ds = weighted * ((reliability[:, None] - w[None, :]) * steps)
        dk_columns = tl.dot(ds.to(q_rows.dtype), q_rows, dk_columns, input_precision=PRECISION)
    store_steps(dk, columns, end, dk_columns * (unit * scale / steps), D, D_PADDED)
    tl.store(dr + columns, dr_columns * unit, mask=columns < end)
