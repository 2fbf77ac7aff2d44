"""What several baseline networks share: a linear layer, attention pooling, late fusion, padding.

B utterances have T time steps of a modality in all, packed one after another; utterance u has the steps
`offsets[u]` to `offsets[u + 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from awtpn.model.segments import segment_softmax, segment_sum, utterance_of_step
from shards import Ragged


class Linear(nn.Linear):
    """`W x + b` in the dtype of W: engines cast whole models to half precision, but sums are wider."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., F] -> [..., D]."""
        return super().forward(x.to(self.weight.dtype))


def widen(x: Tensor) -> Tensor:
    """`x` in at least float32, for what half precision would round too much: softmax, sums, logits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pool(h: Tensor, scores: Tensor, offsets: Tensor, utterance: Tensor) -> tuple[Tensor, Tensor]:
    """Attention pooling: `a = softmax_t(scores)` and `sum_t a_t h_t` within each utterance.

    Args:
        h: [T, D] steps.
        scores: [T, 1].
        offsets: [B + 1] int64.
        utterance: [T] int64, the utterance of each step.

    Returns:
        The sums [B, D], zero for an utterance without steps, and the weights a [T]; at least float32.
    """
    weights = segment_softmax(widen(scores).squeeze(1), offsets, utterance)
    return segment_sum(weights[:, None] * widen(h), offsets, utterance), weights


def late_fusion(logits: Sequence[Tensor], features: Sequence[Ragged]) -> Tensor:
    """Mean of the logits over the modalities that an utterance has.

    Args:
        logits: per modality [B, outputs].
        features: the same modalities' steps.

    Returns:
        [B, outputs], at least float32.
    """
    present = torch.stack([ragged.offsets.diff() > 0 for ragged in features])
    of_present = torch.where(present[..., None], widen(torch.stack(list(logits))), 0.0)
    return of_present.sum(0) / present.sum(0).clamp(min=1)[:, None]


def pad(h: Tensor, ragged: Ragged) -> tuple[Tensor, Tensor]:
    """Pad utterances with zeros to the longest one's length M, without waiting for the device.

    M is at least 1, and so is the number of utterances: attention over nothing is not defined.

    Args:
        h: [T, D] a vector per step.
        ragged: the steps that they are of.

    Returns:
        [B, M, D], and [B, M] bool: not padding. For B = 0 both have one utterance, all padding.
    """
    rows, longest = max(1, len(ragged)), max([1, *ragged.host_lengths])
    offsets, step = ragged.offsets.long(), torch.arange(len(h), device=h.device)
    utterance = utterance_of_step(offsets, len(h))
    slot = utterance * longest + step - offsets[utterance]
    padded = h.new_zeros(rows * longest, h.shape[1]).index_copy(0, slot, h).view(rows, longest, -1)
    lengths = F.pad(offsets.diff(), (0, rows - len(ragged)))
    return padded, torch.arange(longest, device=h.device) < lengths[:, None]
