"""The reliability attention `softmax(Q K^T / sqrt(D)) r` by torch's own kernels, to compare ours with.

- `varlen`: `torch.nn.attention.varlen`, flash attention of packed sequences; half precision, D <= 256
- `flex`: `torch.nn.attention.flex_attention`, compiled, with a mask of utterances that is made in each step;
  `flex, mask kept`: the same without the time for the mask, which no training step can do without

Both want a value matrix and return its dtype. So r, one number per step, is the first column of a matrix of
zeros, and half precision rounds r and the result: their errors are those of the dtype, where our forms keep
both in float32.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from awtpn.model.attention import FUSED_DIM
from awtpn.model.device import to_device_async

KERNELS = ("varlen", "flex", "flex, mask kept")
# Columns of flex attention's value matrix, the fewest that its kernel takes.
FLEX_VALUES = 16
SAME_SPEED = 1.10
RULE = (
    "The rule: where a library's kernel is as fast as our fused one within 10 % at these shapes (library / "
    f"ours at most {SAME_SPEED:.2f}x), use the library's and delete ours."
)


class Absent(Exception):
    """A kernel is not in this version of torch, or does not take these inputs."""


def kernels(lengths: Sequence[int], dtype: torch.dtype, dim: int) -> dict[str, Any]:
    """By name the library's form of the attention, or a text that says why there is none."""
    if dim > FUSED_DIM:
        return {}  # there our form is a batched product
    half = dtype in (torch.float16, torch.bfloat16)
    found: dict[str, Any] = {"varlen": varlen if half else "absent: half precision only"}
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        found["varlen"] = f"absent from torch {torch.__version__}"
    if importlib.util.find_spec("torch.nn.attention.flex_attention") is None:
        return found | dict.fromkeys(KERNELS[1:], f"absent from torch {torch.__version__}")
    kept: list[Any] = []

    def with_mask(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
        kept[:] = kept or [block_mask(lengths, q.device)]
        return flex(q, k, r, lengths, kept[0])

    return found | {"flex": flex, "flex, mask kept": with_mask}


def varlen(q: Tensor, k: Tensor, r: Tensor, lengths: Sequence[int]) -> Tensor:
    """By `torch.nn.attention.varlen`: q, k [T, D] of half precision, r [T] -> [T] in r's dtype."""
    from torch.nn.attention.varlen import varlen_attn

    offsets = to_device_async(np.cumsum([0, *lengths], dtype=np.int32), q.device)
    value = F.pad(r[:, None].to(q.dtype), (0, q.shape[1] - 1))
    longest = max(lengths)
    out = varlen_attn(q[:, None], k[:, None], value[:, None], offsets, offsets, longest, longest)
    assert isinstance(out, Tensor)
    return out[:, 0, 0].to(r.dtype)


def flex(
    q: Tensor,
    k: Tensor,
    r: Tensor,
    lengths: Sequence[int],
    mask: Any = None,
    attention: Callable[..., Any] | None = None,
) -> Tensor:
    """By `flex_attention`: q, k [T, D], r [T] -> [T] in r's dtype.

    Args:
        mask: of `block_mask`; None: make it.
        attention: `flex_attention` or a compiled one; None: compile it.
    """
    value = F.pad(r[:, None].to(q.dtype), (0, FLEX_VALUES - 1))
    mask = mask or block_mask(lengths, q.device)
    out = (attention or compiled_flex())(q[None, None], k[None, None], value[None, None], block_mask=mask)
    return out[0, 0, :, 0].to(r.dtype)


@functools.cache
def compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def block_mask(lengths: Sequence[int], device: torch.device) -> Any:
    """The mask that lets a step attend to the steps of its own utterance."""
    from torch.nn.attention.flex_attention import create_block_mask

    numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    utterance = to_device_async(numbers, device)

    def same(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return utterance[row] == utterance[column]

    steps = len(numbers)
    return create_block_mask(same, None, None, steps, steps, device=str(device))


def verdicts(ratios: Sequence[dict[str, float]]) -> list[str]:
    """A line for each kernel: what `RULE` says of its times, each divided by ours of the same case.

    Args:
        ratios: by kernel, of each case in which our fused form ran; NaN where the kernel did not run.
    """
    cases = [of for of in ratios if of]
    if not cases:
        return ["The fused form did not run here, so there is nothing to compare."]
    lines = []
    for name in KERNELS:
        found = [of.get(name, math.nan) for of in cases]
        ran = [ratio for ratio in found if not math.isnan(ratio)]
        as_fast = sum(ratio <= SAME_SPEED for ratio in ran)
        text = f"- {name}: ran in {len(ran)} of {len(cases)} cases, as fast as ours within 10 % in {as_fast}"
        if ran:
            text += f", {min(ran):.2f}x to {max(ran):.2f}x our time"
        everywhere = as_fast == len(cases)
        lines.append(f"{text}: {'use it, if its errors will do' if everywhere else 'keep ours'}.")
    return lines
