"""Utterances for which a model computes NaN or infinity: they are named, and nothing is concluded from them.

`argmax` of NaN is class 0, so such utterances would count as answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SHOWN = 8
PENDING = 64  # batches whose flags stay on the device, so that not every batch waits for it


class NotFiniteError(ValueError):
    """The model computes values that are not finite; raised on every rank alike."""


class FiniteOutputs:
    """Collects the utterances whose outputs are not finite, over the batches of an evaluation."""

    def __init__(self) -> None:
        self.count = self.seen = 0
        self.names: list[str] = []  # the first ones of this rank
        self._pending: list[tuple[Sequence[str], Tensor]] = []

    def add(self, keys: Sequence[str], outputs: Tensor) -> None:
        """Look at a batch: the names of its utterances, and their outputs [B, ...] on the device."""
        self._pending.append((keys, outputs.detach().flatten(1).isfinite().all(1)))
        if len(self._pending) >= PENDING:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        finite = torch.cat([flags for _, flags in self._pending]).tolist()
        keys = [key for names, _ in self._pending for key in names]
        broken = [key for key, good in zip(keys, finite, strict=True) if not good]
        self.seen += len(keys)
        self.count += len(broken)
        self.names += broken[: SHOWN - len(self.names)]
        self._pending = []

    def check(self, all_gather_object: Callable[[Any], list[Any]], where: str) -> None:
        """Every rank calls it after its last batch.

        Args:
            all_gather_object: `World.all_gather_object`: the value of every rank, on every rank.
            where: the utterances' dataset and split, for the message.

        Raises:
            NotFiniteError: some rank has such utterances; on every rank, with the first names.
        """
        self._flush()
        everyone = all_gather_object((self.count, self.seen, self.names))
        count, seen = (sum(of_rank[i] for of_rank in everyone) for i in (0, 1))
        if count:
            names = [name for of_rank in everyone for name in of_rank[2]]
            raise NotFiniteError(f"{where}: {told(names, count, seen)}")


def told(names: Sequence[str], count: int, seen: int) -> str:
    """What is wrong with `count` of `seen` utterances, of which some names are known, and what to do."""
    shown = ", ".join(names[:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")
    fix = (
        "the model itself may be broken: take an earlier checkpoint, or train again with a lower optim.lr"
        if count == seen > 1
        else "look for huge values in their features, mend them, or pack the dataset without them"
    )
    return (
        f"the model's outputs for {count} of {seen} utterances are NaN or infinite, which is no answer: "
        f"{shown}; {fix}"
    )
