"""The reliability attention (Eq. 15-21): what each step's neighbours say of its reliability.

One meaning, `w = softmax(Q K^T / sqrt(D)) r` within each utterance, and the forms that compute it:

- `plain`: one utterance after another, literally as written. The oracle of the tests.
- `Recomputed`: the same walk in chunks of rows, which keeps one number per step for backward instead of
  the M x M matrix: memory linear in the steps, no padding, and few passes. What CPUs use.
- `bucketed`: utterances of like length share one batched product, with little padding that is masked;
  few launches, so GPUs use it.

`reliability_attention` picks the form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Within a bucket the shortest utterance has at least this share of the longest one's steps, so that
# masking wastes little of the M x M products.
BUCKET_RATIO = 0.8
# A chunk's or bucket's attention matrices hold at most this many scores, which bounds its memory.
CHUNK_SCORES = 1 << 20
BUCKET_SCORES = 1 << 24


@torch.compiler.disable  # loops over lengths that differ in every batch; the compiled model calls it as it is
def reliability_attention(h: Tensor, query: Tensor, key: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    """Spread reliabilities over each utterance's steps by attention.

    Args:
        h: [T, D] steps in the shared space, utterance after utterance.
        query: [D, D] bias-free query map; `key`: [D, D] bias-free key map (y = x W^T).
        r: [T] reliability of each step, in at least float32; sums to 1 within an utterance.
        lengths: number of steps of each utterance, on the host; they sum to T.

    Returns:
        [T] in r's dtype: `softmax(Q K^T / sqrt(D)) r`, one value per step.
    """
    steps, dim = h.shape
    if steps > dim:
        # Q K^T = h (Wq^T Wk) h^T: with more steps than features, one product of maps saves one over steps.
        q, k = h @ (query.T @ key).to(h.dtype), h
    else:
        q, k = F.linear(h, query), F.linear(h, key)
    if h.device.type == "cuda":
        return bucketed(q, k, r, lengths)
    return Recomputed.apply(q, k, r, lengths)


def plain(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    """The definition, one utterance at a time: `q`, `k` [T, D], `r` [T] -> [T]."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    spread = [
        torch.softmax(scale * (q_u @ k_u.T).to(r.dtype), dim=-1) @ r_u
        for q_u, k_u, r_u in zip(q.split(lengths), k.split(lengths), r.split(lengths), strict=True)
    ]
    return torch.cat(spread) if spread else r * 1.0


class Recomputed(torch.autograd.Function):
    """`plain` in linear memory: backward computes the scores again from their rows' log-sum-exp.

    With A = softmax(S) and w = A r, a gradient g of w gives, per row i and column j,
    dS_ij = g_i A_ij (r_j - w_i) and dr_j = sum_i g_i A_ij.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        spread, norm = torch.empty_like(r), torch.empty_like(r)
        for rows, columns in _chunks(lengths):
            scores = _scores(q[rows], k[columns], r.dtype)
            norm[rows] = torch.logsumexp(scores, -1)
            spread[rows] = scores.sub_(norm[rows, None]).exp_() @ r[columns]
        ctx.save_for_backward(q, k, r, spread, norm)
        ctx.lengths = lengths
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, r, spread, norm = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        scale = 1.0 / math.sqrt(q.shape[-1])
        # Every step is a row of exactly one chunk, but a column of several: rows are set, columns added up.
        dq, dk, dr = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(r)
        for rows, columns in _chunks(ctx.lengths):
            weighted = _scores(q[rows], k[columns], r.dtype).sub_(norm[rows, None]).exp_()
            weighted.mul_(gradient[rows, None])  # g_i A_ij
            dr[columns] += weighted.sum(0)
            weighted.mul_(r[columns] - spread[rows, None])
            ds = weighted.mul_(scale).to(q.dtype)
            torch.mm(ds, k[columns], out=dq[rows])
            dk[columns].addmm_(ds.T, q[rows])
        return dq, dk, dr, None


def _scores(q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
    return (q @ k.T).to(dtype).mul_(1.0 / math.sqrt(q.shape[-1]))


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of the attention matrices, a few rows of a long utterance at a time."""
    start = 0
    for length in lengths:
        columns = slice(start, start + length)
        height = max(1, CHUNK_SCORES // max(1, length))
        for first in range(start, start + length, height):
            yield slice(first, min(first + height, start + length)), columns
        start += length


def bucketed(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    """`plain`, batched over utterances of like length."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    places, spreads = [], []
    for bucket in buckets(lengths):
        longest = max(lengths[u] for u in bucket)
        index, valid = _padded_index(
            [starts[u] for u in bucket], [lengths[u] for u in bucket], longest, q.device
        )
        scores = (q[index] @ k[index].mT).to(r.dtype) * scale  # [b, M, M]
        scores = scores.masked_fill(~valid[:, None, :], float("-inf"))
        spread = (torch.softmax(scores, dim=-1) @ r[index][..., None])[..., 0]
        rows = torch.cat([torch.arange(lengths[u]) + i * longest for i, u in enumerate(bucket)]).to(q.device)
        places.append(index.flatten()[rows])
        spreads.append(spread.flatten()[rows])
    if not spreads:
        # Nothing to attend to, yet the graph must still reach every parameter: on another rank it does.
        return r + 0.0 * (q.sum() + k.sum()).to(r.dtype)
    return torch.zeros_like(r).index_copy(0, torch.cat(places), torch.cat(spreads))


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Group the utterances that have steps by like length; each appears in exactly one bucket."""
    groups: list[list[int]] = []
    longest = 0
    for u in sorted((u for u in range(len(lengths)) if lengths[u] > 0), key=lambda u: -lengths[u]):
        fits = lengths[u] >= BUCKET_RATIO * longest and longest > 0
        if fits and (len(groups[-1]) + 1) * longest**2 <= BUCKET_SCORES:
            groups[-1].append(u)
        else:
            groups.append([u])
            longest = lengths[u]
    return groups


def _padded_index(
    starts: list[int], lengths: list[int], longest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row numbers [b, longest] of each utterance's steps, and which of them are real (not a repeat)."""
    # Built on the host and sent at once. A padded place repeats the utterance's first step: a finite value
    # whose column is masked and whose row is never read.
    step = torch.arange(longest)
    valid = step < torch.tensor(lengths)[:, None]
    index = torch.where(valid, torch.tensor(starts)[:, None] + step, torch.tensor(starts)[:, None])
    return index.to(device, non_blocking=True), valid.to(device, non_blocking=True)
