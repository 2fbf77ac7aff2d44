"""The reliability attention (Eq. 15-21): what each step's neighbours say of its reliability.

One meaning, `w = softmax(Q K^T / sqrt(D)) r` within each utterance, and the forms that compute it:

- `per_utterance`: one utterance after another, literally as written. The oracle of the tests.
- `bucketed`: utterances of like length share one batched product, with little padding that is masked.

`reliability_attention` picks the form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Within a bucket the shortest utterance has at least this share of the longest one's steps, so that
# masking wastes little of the M x M products.
BUCKET_RATIO = 0.8
# A bucket's attention matrices hold at most this many scores, which bounds its memory.
BUCKET_SCORES = 1 << 24


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
    q = torch.nn.functional.linear(h, query)
    k = torch.nn.functional.linear(h, key)
    return bucketed(q, k, r, lengths)


def per_utterance(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    """The definition: a full attention matrix for one utterance at a time. Shapes as `bucketed`."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    spread = [
        torch.softmax(scale * (q_u @ k_u.T).to(r.dtype), dim=-1) @ r_u
        for q_u, k_u, r_u in zip(q.split(lengths), k.split(lengths), r.split(lengths), strict=True)
    ]
    return torch.cat(spread) if spread else r * 1.0


def bucketed(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    """Batched over utterances of like length: `q`, `k` [T, D], `r` [T] -> [T]."""
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
    for u in sorted((u for u in range(len(lengths)) if lengths[u] > 0), key=lambda u: -lengths[u]):
        longest = lengths[groups[-1][0]] if groups else 0
        fits = (
            lengths[u] >= BUCKET_RATIO * longest and (len(groups[-1]) + 1) * longest**2 <= BUCKET_SCORES
            if groups
            else False
        )
        if fits:
            groups[-1].append(u)
        else:
            groups.append([u])
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
