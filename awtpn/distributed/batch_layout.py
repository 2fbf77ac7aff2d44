"""How a global batch is divided over ranks, and over the micro-batches that a rank accumulates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from awtpn.learning.settings import LossConfig


@dataclass(frozen=True)
class Layout:
    """Utterances of a global batch, of a micro-batch, and micro-batches per rank and step.

    global_batch = micro_batch x ranks x accumulation, if the ranks have equal shares (`even`). Else
    `micro_batch` is the largest one; all ranks have equally many, of which some may be empty.
    """

    global_batch: int
    micro_batch: int
    accumulation: int
    even: bool = True

    def edges(self, first_place: int, num_places: int) -> list[int]:
        """Edges, in places, of the micro-batches of a rank that has these places: [accumulation + 1]."""
        return [first_place + i * num_places // self.accumulation for i in range(self.accumulation + 1)]


def make_layout(global_batch: int, micro_batch: int | None, ranks: int, uneven: bool = False) -> Layout:
    """Derive the accumulation; without a `micro_batch` there is none.

    Args:
        uneven: take ranks that do not divide the global batch, too.

    Raises:
        ValueError: the numbers do not divide; the message names numbers that do.
    """
    if global_batch % ranks and not uneven:
        raise ValueError(
            f"train.global_batch_size {global_batch} does not divide over {ranks} ranks: "
            f"use a multiple of {ranks}, e.g. {-(-global_batch // ranks) * ranks}"
        )
    most = -(-global_batch // ranks)  # utterances of a rank
    micro = micro_batch or most
    if most % micro and not uneven:
        raise ValueError(
            f"train.micro_batch_size {micro} does not divide the {most} utterances that each of "
            f"{ranks} ranks has of train.global_batch_size {global_batch}"
        )
    accumulation = -(-most // micro)
    even = global_batch % (ranks * accumulation) == 0
    return Layout(global_batch, -(-most // accumulation), accumulation, even)


def check_negatives(loss: LossConfig, modalities: Sequence[str], layout: Layout) -> None:
    """Refuse negatives that would depend on the layout.

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
    if loss.negatives == "reference" and not layout.even:
        raise ValueError(
            f"loss.negatives=reference permutes micro-batches, and these ranks do not have equal ones of "
            f"train.global_batch_size {layout.global_batch}: use another number of ranks, or "
            "loss.negatives=group"
        )


def negatives_cross_micro_batches(
    loss: LossConfig, modalities: Sequence[str], layout: Layout, by_length: bool = False
) -> bool:
    """Whether an utterance's negative can lie in another micro-batch of its step.

    Then `awtpn.training.held_means` computes the cross-modal terms, at the cost of one more forward pass.
    Global negatives without accumulation need none: each rank's only micro-batch is live at the same time.

    Args:
        by_length: micro-batches are cut into passes by the lengths of recordings.
    """
    if len(modalities) < 2 or loss.negatives == "reference":
        return False
    if not layout.even or by_length:
        return True
    if loss.negatives == "global":
        return layout.accumulation > 1
    return layout.micro_batch % loss.negative_group != 0
