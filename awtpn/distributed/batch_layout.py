"""How a global batch is divided over ranks, and over the micro-batches that a rank accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from awtpn.learning.settings import LossConfig


@dataclass(frozen=True)
class Layout:
    """Utterances of a global batch, of a micro-batch, and micro-batches per rank and step.

    global_batch = micro_batch x ranks x accumulation.
    """

    global_batch: int
    micro_batch: int
    accumulation: int


def make_layout(global_batch: int, micro_batch: int | None, ranks: int) -> Layout:
    """Derive the accumulation; without a `micro_batch` there is none.

    Raises:
        ValueError: the numbers do not divide; the message names numbers that do.
    """
    if global_batch % ranks:
        raise ValueError(
            f"train.global_batch_size {global_batch} does not divide over {ranks} ranks: "
            f"use a multiple of {ranks}, e.g. {-(-global_batch // ranks) * ranks}"
        )
    per_rank = global_batch // ranks
    micro = micro_batch or per_rank
    if per_rank % micro:
        raise ValueError(
            f"train.micro_batch_size {micro} does not divide the {per_rank} utterances that each of "
            f"{ranks} ranks has of train.global_batch_size {global_batch}"
        )
    return Layout(global_batch, micro, per_rank // micro)


def check_negatives(loss: LossConfig, modalities: Sequence[str], layout: Layout) -> None:
    """Refuse groups of negatives that do not fill the global batch.

    Raises:
        ValueError: names the keys and the fix.
    """
    if len(modalities) < 2:
        return  # no cross-modal terms, no negatives
    if loss.negatives == "group" and layout.global_batch % loss.negative_group:
        raise ValueError(
            f"loss.negative_group {loss.negative_group} does not divide train.global_batch_size "
            f"{layout.global_batch}: change one of them"
        )


def negatives_cross_micro_batches(loss: LossConfig, modalities: Sequence[str], layout: Layout) -> bool:
    """Whether an utterance's negative can lie in another micro-batch of its step.

    Then `awtpn.training.held_means` computes the cross-modal terms, at the cost of one more forward pass.
    Global negatives without accumulation need none: each rank's only micro-batch is live at the same time.
    """
    if len(modalities) < 2 or loss.negatives == "reference":
        return False
    if loss.negatives == "global":
        return layout.accumulation > 1
    return layout.micro_batch % loss.negative_group != 0
