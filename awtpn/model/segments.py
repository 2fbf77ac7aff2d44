"""Sums, means and softmaxes over the steps of each utterance, with no padding anywhere.

Steps of all utterances lie one after another in one tensor; `offsets` [B+1] says where each
utterance begins. An utterance without steps is legal and yields zero.
"""

from __future__ import annotations

import torch
from torch import Tensor


def utterance_of_step(offsets: Tensor, steps: int) -> Tensor:
    """The utterance that each step belongs to: `offsets` [B+1] -> int64 [steps]."""
    utterances = torch.arange(offsets.numel() - 1, device=offsets.device)
    # `output_size` spares the device-to-host copy that repeat_interleave would need to size its result.
    return utterances.repeat_interleave(offsets.diff(), output_size=steps)


def segment_sum(values: Tensor, offsets: Tensor, utterance: Tensor) -> Tensor:
    """Sum over each utterance's steps: `values` [T, ...] -> [B, ...]; zero where there are none."""
    if values.device.type == "cpu":
        # On a CPU index_add runs in order (so it is deterministic) and is several times faster.
        zeros = values.new_zeros((offsets.numel() - 1, *values.shape[1:]))
        return zeros.index_add(0, utterance, values)
    # Deterministic on GPUs, where index_add would use atomics.
    return torch.segment_reduce(values, "sum", offsets=offsets.long(), axis=0, initial=0)


def segment_mean(values: Tensor, offsets: Tensor, utterance: Tensor) -> Tensor:
    """Mean over each utterance's steps: `values` [T, ...] -> [B, ...]; zero where there are none."""
    lengths = offsets.diff().clamp(min=1).to(values.dtype)
    return segment_sum(values, offsets, utterance) / lengths.view(-1, *[1] * (values.dim() - 1))


def segment_softmax(scores: Tensor, offsets: Tensor, utterance: Tensor) -> Tensor:
    """Softmax over each utterance's steps: `scores` [T] -> [T], summing to 1 in every utterance."""
    # The maximum only keeps exp() in range; no gradient flows through it.
    peak = torch.segment_reduce(scores.detach(), "max", offsets=offsets.long(), axis=0, initial=float("-inf"))
    exponentials = (scores - peak[utterance]).exp()
    return exponentials / segment_sum(exponentials, offsets, utterance)[utterance]
