"""The reliability attention (Eq. 15-18): average the steps' reliabilities by attention within an utterance.

`w = softmax(Q K^T / sqrt(D)) r` for each utterance of M steps: Q, K [M, D], r [M] -> w [M]. Four forms
compute it:

- `plain`: one utterance at a time, as the equation is written, with its M x M matrix. The tests' reference.
- `Recomputed`: one utterance at a time, in chunks of rows; backward computes most scores again instead of
  keeping them. The default on CPUs.
- `Bucketed`: utterances of similar length share batched products, in chunks; few kernel launches, any width
  and dtype. For GPUs without `fused`, and for short utterances on CPUs.
- `fused` (awtpn.model.compute.attention_triton): Triton kernels that never write scores to GPU memory, for
  D <= 256.

All but `plain` keep a few numbers per step for backward, and a bounded number of scores, so memory is linear
in the number of steps. Scores, softmax and sums are float32 or wider in all forms, under autocast too. The
table bounds the largest error per utterance relative to the largest value, against `plain` in float64 on the
same q, k and r (half precision rounds dS and the gradients of q and k, whatever the sums are in):

    dtype of q, k      float64     float32     float16     bfloat16
    w                  1e-12       1e-5        1e-5        1e-5
    gradient of r      1e-12       1e-5        1e-5        1e-5
    gradients of q, k  1e-12       1e-4        5e-3        2e-2

`choose_form` chooses by device, dtype, width and lengths; the model calls `reliability_attention`.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awtpn.model.device import to_device_async

# Most scores of a chunk, which bounds the memory of `Recomputed`.
CHUNK_SCORES = 1 << 20
# Scores that `Recomputed` keeps for backward, 16 MiB per modality: computing them again would be slower.
KEPT_SCORES = 1 << 22
# Most scores of a bucket, which bounds the memory of `Bucketed`.
BUCKET_SCORES = 1 << 24
# Least ratio of the shortest to the longest utterance of a bucket: padding wastes products, but further
# buckets cost kernel launches, which are slower.
BUCKET_RATIO = 0.5
# Below this mean length, on a CPU, the calls per utterance cost more than the arithmetic.
SHORT_STEPS = 24
# Largest D whose tiles fit into a GPU's registers and shared memory.
FUSED_DIM = 256


def reliability_attention(
    h: Tensor, query: Tensor, key: Tensor, r: Tensor, host_offsets: Tensor, form: str | None = None
) -> Tensor:
    """`softmax(Q K^T / sqrt(D)) r` within each utterance, with Q = h Wq^T and K = h Wk^T.

    Args:
        h: [T, D] steps in the shared space, utterance after utterance.
        query: Wq [D, D]; `key`: Wk [D, D].
        r: [T] reliability of each step, in at least float32; sums to 1 within an utterance.
        host_offsets: [B + 1] where each utterance's steps begin, on the host. A tensor, because torch.compile
            would recompile for each length of a list.
        form: a key of FORMS, for tests and benchmarks; None: the fastest.

    Returns:
        [T] in r's dtype, one value per step.
    """
    steps, dim = h.shape
    lengths = host_offsets.diff().tolist()
    # An evaluation on CPUs computes each utterance in one way, whatever else is in its batch: so ranks and
    # threads that cut batches elsewhere get the same last bits.
    fixed = h.device.type == "cpu" and not torch.is_grad_enabled()
    if steps > dim and not fixed:
        # Q K^T = h (Wq^T Wk) h^T: one product [D, D] x [D, D] replaces one [T, D] x [D, D].
        q, k = h @ (query.T @ key).to(h.dtype), h
    else:
        q, k = F.linear(h, query), F.linear(h, key)
    if form is None and fixed:
        form = "recomputed"
    elif form is None:
        form = choose_form(h.device.type, q.dtype, dim, lengths, triton=has_triton(h.device))
    return FORMS[form](q, k.to(q.dtype), r, lengths)


def choose_form(
    device_type: str, dtype: torch.dtype, dim: int, lengths: Sequence[int], *, triton: bool
) -> str:
    """The fastest form: a key of FORMS.

    Args:
        device_type: "cpu" or "cuda".
        dtype: of q and k.
        dim: D, their width.
        lengths: steps of each utterance.
        triton: the device can run Triton kernels; see `has_triton`.
    """
    if device_type == "cpu":
        short = 0 < sum(lengths) < SHORT_STEPS * sum(length > 0 for length in lengths)
        return "bucketed" if short else "recomputed"
    if triton and dim <= FUSED_DIM and dtype in (torch.float16, torch.bfloat16, torch.float32):
        return "fused"
    return "bucketed"


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton is installed and can compile for `device`: an NVIDIA GPU of compute capability >= 8.0.

    Triton compiles a C launcher for each kernel, for which it needs a C compiler and Python.h.
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
    """The definition, one utterance at a time: `q`, `k` [T, D], `r` [T] -> w [T]."""
    scale = 1.0 / math.sqrt(q.shape[-1])
    w = [
        torch.softmax(scale * (q_u @ k_u.T).to(r.dtype), dim=-1) @ r_u
        for q_u, k_u, r_u in zip(q.split(lengths), k.split(lengths), r.split(lengths), strict=True)
    ]
    return torch.cat(w) if w else r * 1.0


def _without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a forward or backward outside autocast, which would round the scores to half precision."""

    @functools.wraps(method)
    def run(ctx: Any, first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *rest)

    return run


# --- One utterance at a time ---------------------------------------------------------------------


class Recomputed(torch.autograd.Function):
    """`plain` in linear memory: backward computes again all scores but the first KEPT_SCORES.

    With A = softmax(S) and w = A r, a gradient g of w gives, per row i and column j,
    dS_ij = g_i A_ij (r_j - w_i) and dr_j = sum_i g_i A_ij.
    """

    @staticmethod
    @_without_autocast
    def forward(ctx: Any, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        w = torch.empty_like(r)
        ctx.save_for_backward(q, k, r, w)
        ctx.lengths, ctx.kept = lengths, []
        room = KEPT_SCORES if any(ctx.needs_input_grad) else 0
        parts = (of.split(lengths) for of in (q.to(r.dtype), k.to(r.dtype), r, w))
        for q_u, k_u, r_u, w_u in zip(*parts, strict=True):
            for rows in _chunks(len(q_u)):
                attention = _attention_rows(q_u[rows], k_u)
                torch.mv(attention, r_u, out=w_u[rows])
                keep = attention.numel() <= room
                ctx.kept.append(attention if keep else None)
                room -= attention.numel() if keep else 0
        return w

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, r, w = ctx.saved_tensors
        dtype = q.dtype
        scale = 1.0 / math.sqrt(q.shape[-1])
        q, k = q.to(r.dtype), k.to(r.dtype)
        dq, dk, dr = torch.empty_like(q), torch.empty_like(k), torch.empty_like(r)
        of_all = (q, k, r, w[:, None], gradients[0].contiguous()[:, None], dq, dk, dr)
        kept = iter(ctx.kept)
        for q_u, k_u, r_u, w_u, g_u, dq_u, dk_u, dr_u in zip(
            *(of.split(ctx.lengths) for of in of_all), strict=True
        ):
            # A step is a row of exactly one chunk, but a column of all: set dq, add up dk and dr.
            for number, rows in enumerate(_chunks(len(q_u))):
                attention = next(kept)
                attention = _attention_rows(q_u[rows], k_u) if attention is None else attention
                weighted = attention * g_u[rows]  # g_i A_ij
                dr_rows = weighted.sum(0)
                ds = weighted.mul_((r_u - w_u[rows]).mul_(scale))
                torch.mm(ds, k_u, out=dq_u[rows])
                if number == 0:
                    dr_u.copy_(dr_rows)
                    torch.mm(ds.T, q_u[rows], out=dk_u)
                else:
                    dr_u.add_(dr_rows)
                    dk_u.addmm_(ds.T, q_u[rows])
        return dq.to(dtype), dk.to(dtype), dr, None


def _attention_rows(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax((q @ k.T).mul_(1.0 / math.sqrt(q.shape[-1])), -1)


def _chunks(length: int) -> list[slice]:
    """The rows of each chunk of an utterance's scores, of at most CHUNK_SCORES."""
    height = max(1, CHUNK_SCORES // max(1, length))
    return [slice(first, first + height) for first in range(0, length, height)]


# --- Batches of utterances of similar length -----------------------------------------------------


class Bucketed(torch.autograd.Function):
    """`Recomputed`, batched over utterances of similar length.

    A bucket of b utterances is padded to its longest, M steps. Padding repeats the utterance's first step, so
    that NaN and infinity never reach another utterance. As a column, padding is masked; as a row, it has no
    gradient, and its results are written to an extra row T, which is cut off.
    """

    @staticmethod
    @_without_autocast
    def forward(ctx: Any, q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        steps = len(r)
        tables = _bucket_indices(lengths, q.device)
        w = r.new_empty(steps + 1)
        for index in tables:
            padding = index == steps
            source = torch.where(padding, index[:, :1], index)
            k_all, r_all = k[source], r[source]
            for rows in _row_chunks(index):
                attention = _attention(q[source[:, rows]], k_all, padding)
                w[index[:, rows]] = (attention @ r_all[..., None])[..., 0]
        w = w[:steps]
        ctx.save_for_backward(q, k, r, w, *tables)
        return w

    @staticmethod
    @_without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, r, w, *tables = ctx.saved_tensors
        steps, dim = q.shape
        scale = 1.0 / math.sqrt(dim)
        dq, dk, dr = q.new_empty(steps + 1, dim), k.new_empty(steps + 1, dim), r.new_empty(steps + 1)
        for index in tables:
            padding = index == steps
            source = torch.where(padding, index[:, :1], index)
            k_all, r_all, w_all = k[source], r[source], w[source]
            g_all = gradients[0][source].masked_fill(padding, 0.0)
            # dS = g A (r - w), and A and r are about 1 / M each: dS may underflow or overflow float16. So
            # compute with g M / max |g| instead of g, for which |dS| <= M, and scale the results back.
            unit = g_all.abs().amax(1, keepdim=True).clamp(min=torch.finfo(r.dtype).tiny) / index.shape[1]
            g_all = g_all / unit
            back = (unit * scale)[..., None]
            dk_all: Tensor | None = None
            dr_all: Tensor | None = None
            for rows in _row_chunks(index):
                q_rows = q[source[:, rows]]
                weighted = _attention(q_rows, k_all, padding).mul_(g_all[:, rows, None])  # g_i A_ij
                dr_rows = weighted.sum(1)
                ds = weighted.mul_(r_all[:, None, :] - w_all[:, rows, None]).to(q.dtype)
                dq[index[:, rows]] = (_product(ds, k_all) * back).to(q.dtype)
                dk_rows = _product(ds.mT, q_rows)
                dk_all = dk_rows if dk_all is None else dk_all.add_(dk_rows)
                dr_all = dr_rows if dr_all is None else dr_all.add_(dr_rows)
            assert dk_all is not None
            assert dr_all is not None
            dk[index] = (dk_all * back).to(k.dtype)
            dr[index] = dr_all * unit
        return dq[:steps], dk[:steps], dr[:steps], None


def buckets(lengths: Sequence[int]) -> list[list[int]]:
    """Group the utterances that have steps by similar length; each is in exactly one bucket."""
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


def _bucket_indices(lengths: Sequence[int], device: torch.device) -> list[Tensor]:
    """Per bucket the row numbers [b, M] of its utterances' steps; T stands for padding."""
    length = np.asarray(lengths, dtype=np.int64)
    start = np.cumsum(length) - length
    tables = []
    for bucket in buckets(lengths):
        step = np.arange(length[bucket[0]])
        tables.append(np.where(step < length[bucket, None], start[bucket, None] + step, length.sum()))
    if not tables:
        return []
    # One transfer to the device for all buckets.
    parts = to_device_async(np.concatenate([t.ravel() for t in tables]), device).split(
        [t.size for t in tables]
    )
    return [part.view(t.shape) for part, t in zip(parts, tables, strict=True)]


def _row_chunks(index: Tensor) -> list[slice]:
    """Chunks of the M rows of a bucket [b, M]: several only if its single utterance is very long."""
    count, longest = index.shape
    height = max(1, BUCKET_SCORES // (count * longest))
    return [slice(first, first + height) for first in range(0, longest, height)]


def _attention(q: Tensor, k: Tensor, padding: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) without padded columns: `q` [b, R, D], `k` [b, M, D] -> [b, R, M]."""
    scores = _product(q, k.mT)
    mask = torch.zeros_like(padding, dtype=scores.dtype).masked_fill_(padding, float("-inf"))
    torch.add(mask[:, None], scores, alpha=1.0 / math.sqrt(q.shape[-1]), out=scores)
    return torch.softmax(scores, -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched matrix product in at least float32, also of half-precision `a` and `b`."""
    if a.itemsize >= 4:
        return torch.bmm(a, b)
    if a.device.type == "cpu":
        return torch.bmm(a.float(), b.float())
    return torch.bmm(a, b, out_dtype=torch.float32)


# --- All forms -----------------------------------------------------------------------------------


def _fused(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    from awtpn.model.compute.attention_triton import Fused  # imports Triton, which CPU builds of torch lack

    return Fused.apply(q, k, r, lengths)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]] = {
    "plain": plain,
    "recomputed": Recomputed.apply,
    "bucketed": Bucketed.apply,
    "fused": _fused,
}
