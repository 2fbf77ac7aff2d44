"""The reliability attention as fused CUDA kernels: nothing of size M x M, and no value matrix, is formed.

A value here is one scalar per step, so what streams past a block of rows is keys and reliabilities alone,
under an online softmax (Milakov and Gimelshein, 2018). Forward keeps two numbers per step: the spread
w = A r and the rows' log-sum-exp. Backward computes the scores again from them, as in
`awtpn.model.attention.Recomputed`: with dS_ij = g_i A_ij (r_j - w_i),

    dq_i = sum_j dS_ij k_j / sqrt(D)     dk_j = sum_i dS_ij q_i / sqrt(D)     dr_j = sum_i g_i A_ij,

in one kernel over blocks of rows and one over blocks of columns: no atomics, so results are the same bits
each time. All utterances of a batch share a launch; a table of tiles, made on the host, says where each
block begins and where its utterance does and ends. Scores, softmax and sums are float32 whatever q and k are.

Imported only where Triton is installed (CUDA builds of torch bring it).
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

# exp(x) = exp2(LOG2_E x): GPUs have exp2 alone.
LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts its work: a program owns `own` steps and walks over `other` steps at a time."""

    own: int
    other: int
    warps: int
    stages: int


def tiling(dim: int, dtype: torch.dtype) -> Tiling:
    """Tiles whose operands fit the registers and the 99 KiB of shared memory of every GPU since sm_80."""
    if dtype == torch.float32:  # without tensor cores: the threads multiply themselves
        return Tiling(32, 32, 4, 1) if dim <= 64 else Tiling(32, 16, 8, 1)
    return Tiling(64, 64, 4 if dim <= 64 else 8, 2)


def make_tiles(lengths: Sequence[int], size: int) -> NDArray[np.int32]:
    """The blocks of at most `size` steps that utterances are cut into: [tiles, 3] of (start, end, first).

    `start` and `end` bound the utterance's steps in the batch, `first` is where the block begins. Blocks of
    long utterances come first, since they take longest. An utterance without steps has none.
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
    """`plain` by the kernels below: `q`, `k` [T, D], D <= 256, half precision or float32; `r` [T] float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, r = q.contiguous(), k.contiguous(), r.contiguous()
        tiles = to_device_async(make_tiles(lengths, tiling(q.shape[1], q.dtype).own), q.device)
        spread, norm = torch.empty_like(r), torch.empty_like(r)
        launch(spread_kernel, q, tiles, (q, k, r, spread, norm))
        ctx.save_for_backward(q, k, r, spread, norm, tiles)
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, r, spread, norm, tiles = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        dq, dk, dr = torch.empty_like(q), torch.empty_like(k), torch.empty_like(r)
        launch(query_gradient_kernel, q, tiles, (q, k, r, spread, norm, gradient, dq))
        launch(key_gradient_kernel, q, tiles, (q, k, r, spread, norm, gradient, dk, dr))
        return dq, dk, dr, None


def launch(kernel: Any, q: Tensor, tiles: Tensor, tensors: tuple[Tensor, ...]) -> None:
    """Run `kernel`, one program per tile, on the stream of q's device."""
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
    """What a kernel is compiled for; none of it depends on a batch's lengths."""
    shape = tiling(dim, dtype)
    return {
        "D": dim,
        "D_PADDED": max(16, triton.next_power_of_2(dim)),
        "OWN": shape.own,
        "OTHER": shape.other,
        "PRECISION": "tf32" if tf32 else "ieee",
    }


def options(dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """How a kernel is compiled."""
    shape = tiling(dim, dtype)
    return {"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True}


@triton.jit
def load_steps(table, steps, end, D: tl.constexpr, D_PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows `steps` of `table` [T, D] as [steps, D_PADDED]; zero beyond `end` and beyond D."""
    features = tl.arange(0, D_PADDED)
    # A batch may hold more than 2^31 values.
    places = table + steps.to(tl.int64)[:, None] * D + features[None, :]
    return tl.load(places, mask=(steps[:, None] < end) & (features[None, :] < D), other=0.0)


@triton.jit
def store_steps(table, steps, end, values, D: tl.constexpr, D_PADDED: tl.constexpr):  # type: ignore[no-untyped-def]
    features = tl.arange(0, D_PADDED)
    places = table + steps.to(tl.int64)[:, None] * D + features[None, :]
    inside = (steps[:, None] < end) & (features[None, :] < D)
    tl.store(places, values.to(table.dtype.element_ty), mask=inside)


@triton.jit
def spread_kernel(  # type: ignore[no-untyped-def]
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
    """w_i and the base-2 log-sum-exp of row i's scores, for the rows of one tile."""
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
    """dq_i for the rows of one tile."""
    tile = tiles + 3 * tl.program_id(0)
    start, end, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    rows = first + tl.arange(0, OWN)
    q_rows = load_steps(q, rows, end, D, D_PADDED)
    g = tl.load(gradient + rows, mask=rows < end, other=0.0)
    w = tl.load(spread + rows, mask=rows < end, other=0.0)
    n = tl.load(norm + rows, mask=rows < end, other=0.0)
    # A and r are about 1 / M each and g may be anything: their product has no room in float16. So dS is
    # taken M times as large and without g.
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
    """dk_j and dr_j for the columns of one tile."""
    tile = tiles + 3 * tl.program_id(0)
    start, end, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    columns = first + tl.arange(0, OWN)
    k_columns = load_steps(k, columns, end, D, D_PADDED)
    reliability = tl.load(r + columns, mask=columns < end, other=0.0)
    # As for dq, but g belongs to the rows that are summed over: it is divided by its largest.
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
