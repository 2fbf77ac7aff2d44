"""The reliability attention (Eq. 15-21): what each step's neighbours say of its reliability.

One meaning, `w = softmax(Q K^T / sqrt(D)) r` within each utterance, and the forms that compute it:

- `plain`: one utterance after another, literally as written, with its M x M matrix. The oracle of the tests.
- `Recomputed`: the same walk in chunks of rows; backward computes the scores again, but for the first few
  million, which are kept. What CPUs use.
- `Bucketed`: utterances of like length share batched products, in chunks; few launches, any width and dtype.
  What GPUs use where `fused` cannot be had, and CPUs for short utterances.
- `fused` (awtpn.model.attention_triton): Triton kernels that form no scores outside the chip, for D <= 256.

All but `plain` keep a few numbers per step for backward, and a bounded number of scores, so memory is linear
in the steps. Scores, softmax and sums are float32 or wider in all of them, under autocast too. Against
`plain` in float64 on the same q, k and r, per utterance, the largest error of the spread and of each gradient
stays within this share of the largest value (half precision rounds dS and the gradients of q and k, which
float32 sums cannot mend):

    dtype of q, k      float64     float32     float16     bfloat16
    spread             1e-12       1e-5        1e-5        1e-5
    gradient of r      1e-12       1e-5        1e-5        1e-5
    gradients of q, k  1e-12       1e-4        5e-3        2e-2

`choose_form` picks by device, dtype, width and lengths; `reliability_attention` is what the model calls.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awtpn.model.device import to_device_async

# A chunk's attention matrices hold at most this many scores, which bounds a form's memory.
CHUNK_SCORES = 1 << 20
# On a CPU so many are kept for backward, 16 MiB per modality: computing those again takes longer.
KEPT_SCORES = 1 << 22
BUCKET_SCORES = 1 << 24
# Within a bucket the shortest utterance has at least this share of the longest one's steps: launches cost
# more than the M x M products that padding wastes.
BUCKET_RATIO = 0.5
# On a CPU, utterances shorter than this on average cost more in calls than in arithmetic.
SHORT_STEPS = 24
# The widest q and k whose tiles the fused kernels hold on the chip.
FUSED_DIM = 256


def reliability_attention(
    h: Tensor, query: Tensor, key: Tensor, r: Tensor, host_offsets: Tensor, form: str | None = None
) -> Tensor:
    """Spread reliabilities over each utterance's steps by attention.

    Args:
        h: [T, D] steps in the shared space, utterance after utterance.
        query: [D, D] bias-free query map; `key`: [D, D] bias-free key map (y = x W^T).
        r: [T] reliability of each step, in at least float32; sums to 1 within an utterance.
        host_offsets: [B+1] where each utterance's steps begin, on the host. A tensor: of a list torch.compile
            would take every number of utterances for a case of its own.
        form: a key of FORMS, for tests and benchmarks; None chooses.

    Returns:
        [T] in r's dtype: `softmax(Q K^T / sqrt(D)) r`, one value per step.
    """
    steps, dim = h.shape
    lengths = host_offsets.diff().tolist()
    if steps > dim:
        # Q K^T = h (Wq^T Wk) h^T: with more steps than features, one product of maps saves one over steps.
        q, k = h @ (query.T @ key).to(h.dtype), h
    else:
        q, k = F.linear(h, query), F.linear(h, key)
    if form is None:
        form = choose_form(h.device.type, q.dtype, dim, lengths, triton=has_triton(h.device))
    return FORMS[form](q, k.to(q.dtype), r, lengths)


def choose_form(
    device_type: str, dtype: torch.dtype, dim: int, lengths: Sequence[int], *, triton: bool
) -> str:
    """The fastest form for `dtype` q and k of width `dim`: a key of FORMS.

    `triton`: the device can run Triton's kernels.
    """
    if device_type == "cpu":
        short = 0 < sum(lengths) < SHORT_STEPS * sum(length > 0 for length in lengths)
        return "bucketed" if short else "recomputed"
    if triton and dim <= FUSED_DIM and dtype in (torch.float16, torch.bfloat16, torch.float32):
        return "fused"
    return "bucketed"


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Triton is installed and works for `device`: an NVIDIA GPU with tensor cores for bfloat16.

    It compiles a launcher for each kernel on this machine, for which it needs a C compiler and Python.h.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    compiler = shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include", "posix_prefix")) / "Python.h"
    return (
        importlib.util.find_spec("triton") is not None
        and compiler is not None
        and headers.exists()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def plain(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    """The definition, one utterance at a time: `q`, `k` [T, D], `r` [T] -> [T]."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    spread = [
        torch.softmax(scale * (q_u @ k_u.T).to(r.dtype), dim=-1) @ r_u
        for q_u, k_u, r_u in zip(q.split(lengths), k.split(lengths), r.split(lengths), strict=True)
    ]
    return torch.cat(spread) if spread else r * 1.0


def _without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast would round the scores to half precision."""

    @functools.wraps(method)
    def run(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *rest)

    return run


# --- One utterance after another -----------------------------------------------------------------


class Recomputed(torch.autograd.Function):
    """`plain` in linear memory: backward computes most scores again.

    With A = softmax(S) and w = A r, a gradient g of w gives, per row i and column j,
    dS_ij = g_i A_ij (r_j - w_i) and dr_j = sum_i g_i A_ij.
    """

    @staticmethod
    @_without_autocast
    def forward(ctx: Any, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        spread = torch.empty_like(r)
        ctx.save_for_backward(q, k, r, spread)
        ctx.lengths, ctx.kept = lengths, []
        room = KEPT_SCORES if any(ctx.needs_input_grad) else 0
        q, k = q.to(r.dtype), k.to(r.dtype)
        for rows, columns in _chunks(lengths):
            attention = _attention_rows(q[rows], k[columns])
            torch.mv(attention, r[columns], out=spread[rows])
            keeps = attention.numel() <= room
            ctx.kept.append(attention if keeps else None)
            room -= attention.numel() if keeps else 0
        return spread

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, r, spread = ctx.saved_tensors
        dtype, gradient = q.dtype, gradients[0].contiguous()
        scale = 1.0 / math.sqrt(q.shape[-1])
        q, k = q.to(r.dtype), k.to(r.dtype)
        # Every step is a row of exactly one chunk, but a column of several: rows are set, columns added up.
        dq, dk, dr = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(r)
        for (rows, columns), kept in zip(_chunks(ctx.lengths), ctx.kept, strict=True):
            attention = _attention_rows(q[rows], k[columns]) if kept is None else kept
            weighted = attention * gradient[rows, None]  # g_i A_ij
            dr[columns] += weighted.sum(0)
            ds = weighted.mul_((r[columns] - spread[rows, None]).mul_(scale))
            torch.mm(ds, k[columns], out=dq[rows])
            dk[columns].addmm_(ds.T, q[rows])
        return dq.to(dtype), dk.to(dtype), dr, None


def _attention_rows(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax((q @ k.T).mul_(1.0 / math.sqrt(q.shape[-1])), -1)


def _chunks(lengths: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of the attention matrices, a few rows of a long utterance at a time."""
    start = 0
    for length in lengths:
        columns = slice(start, start + length)
        height = max(1, CHUNK_SCORES // max(1, length))
        for first in range(start, start + length, height):
            yield slice(first, min(first + height, start + length)), columns
        start += length


# --- Utterances of like length at once -----------------------------------------------------------


class Bucketed(torch.autograd.Function):
    """`Recomputed`, batched over utterances of like length.

    A bucket of b utterances is padded to its longest, M steps. A padded place repeats its utterance's first
    step, so that what is not finite stays within its utterance; as a column it is masked, as a row it has no
    gradient, and its results go to a place after the last step, which is cut off.
    """

    @staticmethod
    @_without_autocast
    def forward(ctx: Any, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        steps = len(r)
        places = _places(lengths, q.device)
        spread = r.new_empty(steps + 1)
        for place in places:
            padding = place == steps
            real = torch.where(padding, place[:, :1], place)
            k_all, r_all = k[real], r[real]
            for rows in _row_chunks(place):
                attention = _attention(q[real[:, rows]], k_all, padding)
                spread[place[:, rows]] = (attention @ r_all[..., None])[..., 0]
        spread = spread[:steps]
        ctx.save_for_backward(q, k, r, spread, *places)
        return spread

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, r, spread, *places = ctx.saved_tensors
        steps, dim = q.shape
        scale = 1.0 / math.sqrt(dim)
        dq, dk, dr = q.new_empty(steps + 1, dim), k.new_empty(steps + 1, dim), r.new_empty(steps + 1)
        for place in places:
            padding = place == steps
            real = torch.where(padding, place[:, :1], place)
            k_all, r_all, w_all = k[real], r[real], spread[real]
            g_all = gradients[0][real].masked_fill(padding, 0.0)
            # A and r are about 1 / M each and g may be anything: their product has no room in float16. So the
            # gradients are taken of g M / max |g|, whose dS lies within [-M, M], and scaled back.
            unit = g_all.abs().amax(1, keepdim=True).clamp(min=torch.finfo(r.dtype).tiny) / place.shape[1]
            g_all = g_all / unit
            back = (unit * scale)[..., None]
            dk_all: Tensor | None = None
            dr_all: Tensor | None = None
            for rows in _row_chunks(place):
                q_rows = q[real[:, rows]]
                weighted = _attention(q_rows, k_all, padding).mul_(g_all[:, rows, None])  # g_i A_ij
                dr_rows = weighted.sum(1)
                ds = weighted.mul_(r_all[:, None, :] - w_all[:, rows, None]).to(q.dtype)
                dq[place[:, rows]] = (_product(ds, k_all) * back).to(q.dtype)
                dk_rows = _product(ds.mT, q_rows)
                dk_all = dk_rows if dk_all is None else dk_all.add_(dk_rows)
                dr_all = dr_rows if dr_all is None else dr_all.add_(dr_rows)
            assert dk_all is not None
            assert dr_all is not None
            dk[place] = (dk_all * back).to(k.dtype)
            dr[place] = dr_all * unit
        return dq[:steps], dk[:steps], dr[:steps], None


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


def _places(lengths: Sequence[int], device: torch.device) -> list[Tensor]:
    """Per bucket the row numbers [b, M] of its utterances' steps; T where a place is padding."""
    length = np.asarray(lengths, dtype=np.int64)
    start = np.cumsum(length) - length
    tables = []
    for bucket in buckets(lengths):
        step = np.arange(length[bucket[0]])
        tables.append(np.where(step < length[bucket, None], start[bucket, None] + step, length.sum()))
    if not tables:
        return []
    # All of them in one transfer.
    parts = to_device_async(np.concatenate([t.ravel() for t in tables]), device).split(
        [t.size for t in tables]
    )
    return [part.view(t.shape) for part, t in zip(parts, tables, strict=True)]


def _row_chunks(place: Tensor) -> list[slice]:
    """Rows of a bucket [b, M] to take at a time: all of them, unless its one utterance is very long."""
    count, longest = place.shape
    height = max(1, BUCKET_SCORES // (count * longest))
    return [slice(first, first + height) for first in range(0, longest, height)]


def _attention(q: Tensor, k: Tensor, padding: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) over real columns: `q` [b, R, D], `k` [b, M, D] -> [b, R, M]."""
    scores = _product(q, k.mT)
    mask = torch.zeros_like(padding, dtype=scores.dtype).masked_fill_(padding, float("-inf"))
    torch.add(mask[:, None], scores, alpha=1.0 / math.sqrt(q.shape[-1]), out=scores)
    return torch.softmax(scores, -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product, in at least float32 although `a` and `b` may be half precision."""
    if a.itemsize >= 4:
        return torch.bmm(a, b)
    if a.device.type == "cpu":
        return torch.bmm(a.float(), b.float())
    return torch.bmm(a, b, out_dtype=torch.float32)


# --- All forms -----------------------------------------------------------------------------------


def _fused(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    from awtpn.model.attention_triton import Fused  # imports Triton, which builds of torch for CPUs lack

    return Fused.apply(q, k, r, lengths)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]] = {
    "plain": plain,
    "recomputed": Recomputed.apply,
    "bucketed": Bucketed.apply,
    "fused": _fused,
}
