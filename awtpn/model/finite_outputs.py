"""Find utterances for which the model computes NaN or infinity, and raise an error that names them.

Without this check they would enter the metrics: the `argmax` of NaN is class 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SHOWN = 8  # utterances that an error message names
PENDING = 64  # batches between two copies of their flags to the host, each of which waits for the device


class NotFiniteError(ValueError):
    """The model's outputs are NaN or infinite. In an evaluation all ranks raise it."""


class FiniteOutputs:
    """Collects, over the batches of an evaluation, the utterances whose outputs are NaN or infinite."""

    def __init__(self) -> None:
        self.count = self.seen = 0
        self.names: list[str] = []  # keys of this rank's first SHOWN such utterances
        self._pending: list[tuple[Sequence[str], Tensor]] = []

    def add(self, keys: Sequence[str], outputs: Tensor) -> None:
        """Add a batch: the keys of its B utterances, and their outputs [B, ...] on the device."""
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
        """Raise if any rank has such utterances. Collective: every rank calls it after its last batch.

        Args:
            all_gather_object: `World.all_gather_object`: the value of every rank, on every rank.
            where: the utterances' dataset and split, for the message.

        Raises:
            NotFiniteError: on every rank; names the first utterances.
        """
        self._flush()
        gathered = all_gather_object((self.count, self.seen, self.names))
        count, seen = (sum(of_rank[i] for of_rank in gathered) for i in (0, 1))
        if count:
            names = [name for of_rank in gathered for name in of_rank[2]]
            raise NotFiniteError(f"{where}: {describe_not_finite(names, count, seen)}")


def describe_not_finite(names: Sequence[str], count: int, seen: int) -> str:
    """The error message for `count` of `seen` utterances, of which `names` are some, and the fix."""
    shown = ", ".join(names[:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")
    fix = (
        "the model itself may be broken: take an earlier checkpoint, or train again with a lower optim.lr"
        if count == seen > 1
        else "look for huge values in their features, correct them, or pack the dataset without them"
    )
    return (
        f"the model's outputs for {count} of {seen} utterances are NaN or infinite, so they have no "
        f"prediction: {shown}; {fix}"
    )
