"""Sum, mean and softmax over the time steps of each utterance, without padding.

The T steps of all B utterances lie one after another in one tensor; utterance u has the rows
`offsets[u]` to `offsets[u + 1]` of it. An utterance may have no steps; its sum and mean are zero.
"""

from __future__ import annotations

import torch
from torch import Tensor


def utterance_of_step(offsets: Tensor, steps: int) -> Tensor:
    """The utterance that each step belongs to: `offsets` [B+1] -> int64 [steps]."""
    utterances = torch.arange(offsets.numel() - 1, device=offsets.device)
    # Without `output_size`, repeat_interleave copies the total from the device to the host and waits for it.
    return utterances.repeat_interleave(offsets.diff(), output_size=steps)


def segment_sum(values: Tensor, offsets: Tensor, utterance: Tensor) -> Tensor:
    """Sum over each utterance's steps: `values` [T, ...] -> [B, ...]; zero where there are none."""
    if values.device.type == "cpu":
        # On a CPU index_add adds in order, so it is deterministic, and several times faster.
        zeros = values.new_zeros((offsets.numel() - 1, *values.shape[1:]))
        return zeros.index_add(0, utterance, values)
    # Deterministic on GPUs, where index_add would use atomics.
    return torch.segment_reduce(values, "sum", offsets=offsets.long(), axis=0, initial=0)


def segment_mean(values: Tensor, offsets: Tensor, utterance: Tensor) -> Tensor:
    """Mean over each utterance's steps: `values` [T, ...] -> [B, ...]; zero where there are none."""
    return mean_of_sum(segment_sum(values, offsets, utterance), offsets)


def mean_of_sum(total: Tensor, offsets: Tensor) -> Tensor:
    """Of a sum over each utterance's steps [B, ...] the mean; zero where there are none."""
    lengths = offsets.diff().clamp(min=1).to(total.dtype)
    return total / lengths.view(-1, *[1] * (total.dim() - 1))


def segment_softmax(scores: Tensor, offsets: Tensor, utterance: Tensor) -> Tensor:
    """Softmax over each utterance's steps: `scores` [T] -> [T], summing to 1 in every utterance."""
    # Subtracting the maximum keeps exp() in range. The result does not depend on it, so it needs no gradient.
    peak = torch.segment_reduce(scores.detach(), "max", offsets=offsets.long(), axis=0, initial=float("-inf"))
    exponentials = (scores - peak[utterance]).exp()
    return exponentials / segment_sum(exponentials, offsets, utterance)[utterance]
