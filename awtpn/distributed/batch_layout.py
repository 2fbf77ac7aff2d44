"""How a global batch is dealt out: over ranks, and over the micro-batches that a rank accumulates."""

from __future__ import annotations

from dataclasses import dataclass

from awtpn.config.schema import Config


@dataclass(frozen=True)
class Layout:
    """How a global batch is dealt out: global = micro_batch x ranks x accumulation."""

    global_batch: int
    micro_batch: int
    accumulation: int


def make_layout(global_batch: int, micro_batch: int | None, ranks: int) -> Layout:
    """Derive the accumulation; `micro_batch` None means none.

    Raises:
        ValueError: the numbers do not divide; the message says which would.
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


def check_negatives(config: Config, layout: Layout) -> None:
    """Refuse layouts that would change which negatives the losses use.

    Raises:
        ValueError: names the keys and the fix.
    """
    loss = config.loss
    if len(config.model.modalities) < 2:
        return  # no cross-modal terms, no negatives
    if loss.negatives == "group" and layout.micro_batch % loss.negative_group:
        raise ValueError(
            f"loss.negative_group {loss.negative_group} does not divide the micro-batch of "
            f"{layout.micro_batch} utterances, so negatives would depend on the layout: change "
            "train.micro_batch_size or loss.negative_group"
        )
    if loss.negatives == "global" and layout.accumulation > 1:
        raise ValueError(
            f"loss.negatives=global needs the whole global batch at once, but accumulation is "
            f"{layout.accumulation}: use loss.negatives=group, more ranks or a larger train.micro_batch_size"
        )
