"""The six loss terms (Eq. 9-12, 23-25) and their weighted sum.

Every term is a mean over utterances of the *global* batch. A micro-batch computes its share: its sum over
the global denominator. Shares add up over micro-batches and ranks to exactly the loss that one process
with one big batch would have, whatever the layout and however many utterances miss a modality.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from awtpn.learning.settings import LossConfig
from awtpn.model.device import to_device_async
from awtpn.model.network import ModalityOutput, ModelOutput
from awtpn.model.segments import segment_mean


@dataclass(frozen=True)
class LossNormalizers:
    """What each term is divided by: counts over the whole global batch (at least 1 each).

    Attributes:
        utterances: all of them.
        present: per modality those that have it.
        both: those that have audio and video.
        negative: per draw those among them with a valid negative.
        class_weight: sum of the class weights of the utterances.
    """

    utterances: float
    present: dict[str, float]
    both: float
    negative: dict[str, float]
    class_weight: float


@dataclass(frozen=True)
class NegativePool:
    """Video means to draw negatives from, and each utterance's row among them per draw.

    Attributes:
        means: [P, D].
        row: draw -> [B] int64, -1 where there is no valid negative.
    """

    means: Tensor
    row: dict[str, Tensor]


def loss_terms(
    output: ModelOutput,
    label: Tensor,
    pool: NegativePool | None,
    normalizers: LossNormalizers,
    config: LossConfig,
    class_weights: Tensor | None = None,
) -> Tensor:
    """This micro-batch's shares of the six terms.

    Args:
        output: of B utterances; B may be 0, and the result still reaches every parameter.
        label: int64 [B].
        pool: negatives for the cross-modal terms; None when the model uses one modality.
        normalizers: of the global batch.
        class_weights: [C] for the cross-entropy, or None for equal ones.

    Returns:
        [6] in the order of TERMS, unweighted; add over micro-batches and ranks, then apply the weights.
    """
    align = torch.stack(
        [
            _align(stream, label, config) / normalizers.present[modality]
            for modality, stream in output.streams.items()
        ]
    ).sum()
    if pool is None:
        intra = inter = contrast = torch.zeros_like(align)
    else:
        intra, inter, contrast = _cross_modal(output.streams, pool, normalizers, config)
    ce, mse = _classification(output.logits, label, normalizers, class_weights)
    return torch.stack([align, intra, inter, contrast, ce, mse])


def total_loss(terms: Tensor, config: LossConfig) -> Tensor:
    """The weighted sum of `terms` [6] (Eq. 25)."""
    # Not a dot product, which autocast would take to half precision.
    return (terms * to_device_async(config.weights(), terms.device, terms.dtype)).sum()


def _align(stream: ModalityOutput, label: Tensor, config: LossConfig) -> Tensor:
    """Sum over utterances of the mean over steps of the distance to the true class (Eq. 9)."""
    if config.align_form == "reference":
        of_class = stream.distances
    else:
        of_class = -torch.log_softmax(-config.tau * stream.distances, dim=-1)
    at_truth = of_class.gather(1, label[stream.utterance][:, None])[:, 0]
    return segment_mean(at_truth, stream.offsets, stream.utterance).sum()


def _cross_modal(
    streams: dict[str, ModalityOutput], pool: NegativePool, normalizers: LossNormalizers, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """intra, inter and contrast (Eq. 10-12); utterances that lack a modality or a negative are masked."""
    audio, video = streams["audio"], streams["video"]
    a, v = audio.mean, video.mean
    both = audio.present & video.present
    own = F.cosine_similarity(a, v, dim=-1)

    intra = _masked_sum(1 - own, both) / normalizers.both

    negative, valid = _negatives(pool, "inter", both)
    other = F.cosine_similarity(a, negative, dim=-1)
    rank = own - other if config.inter_form == "reference" else other - own
    inter = _masked_sum(F.relu(config.margin_inter + rank), valid) / normalizers.negative["inter"]

    negative, valid = _negatives(pool, "contrast", both)
    # vector_norm has gradient 0 at 0, where sqrt would have none.
    near = torch.linalg.vector_norm(a - v, dim=-1)
    far = F.relu(config.margin_contrast - torch.linalg.vector_norm(a - negative, dim=-1))
    contrast = _masked_sum(near, both) / normalizers.both
    contrast = contrast + _masked_sum(far, valid) / normalizers.negative["contrast"]
    return intra, inter, contrast


def _negatives(pool: NegativePool, draw: str, both: Tensor) -> tuple[Tensor, Tensor]:
    """Each utterance's negative video mean [B, D], and where it is valid [B]."""
    row = pool.row[draw]
    # Padding by one row of zeros lets an empty pool be indexed, too; row -1 then reads zeros.
    return F.pad(pool.means, (0, 0, 0, 1))[row], both & (row >= 0)


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    # where, not a product: a masked NaN must not come back as NaN.
    return torch.where(mask, values, 0.0).sum()


def _classification(
    logits: Tensor, label: Tensor, normalizers: LossNormalizers, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and squared error of the probabilities (Eq. 23-24)."""
    weight = None if class_weights is None else class_weights.to(logits.dtype)
    ce = F.cross_entropy(logits, label, weight=weight, reduction="sum") / normalizers.class_weight
    onehot = F.one_hot(label, logits.shape[-1]).to(logits.dtype)
    squares = (logits.softmax(-1) - onehot).square().sum()
    return ce, squares / (normalizers.utterances * logits.shape[-1])
