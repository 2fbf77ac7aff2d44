"""Which utterances of a split are known to be damaged, so that they are not read again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class DamageRecord:
    """Rows of shards that are damaged, each with a name and the cause.

    Several threads may use it at once. If two add rows of one shard at the same instant, one addition may be
    lost; then those rows are read, found damaged and added again.
    """

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, tuple[str, str]]] = {}  # shard: row: (name, cause)

    @property
    def known(self) -> bool:
        """Whether there are any."""
        return bool(self._rows)

    def add(self, shard: int, names: Mapping[int, str], cause: str) -> None:
        """Record the rows of `names`. A new dict, so that other threads never see one that changes."""
        self._rows[shard] = self._rows.get(shard, {}) | {row: (name, cause) for row, name in names.items()}

    def of_whole(self, shard: int, utterances: int) -> str | None:
        """The first cause, if all of a shard's utterances are damaged."""
        rows = self._rows.get(shard, {})
        return rows[0][1] if utterances and len(rows) == utterances else None

    def split(self, shard: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
        """Positions of the rows that are not known to be damaged, [B]; name and cause of the others."""
        if not self._rows:
            return np.arange(len(row)), {}
        damaged = {}
        for i, (s, r) in enumerate(zip(shard.tolist(), row.tolist(), strict=True)):
            if r in self._rows.get(s, ()):
                damaged[i] = self._rows[s][r]
        return np.delete(np.arange(len(row)), list(damaged)), dict(damaged.values())
