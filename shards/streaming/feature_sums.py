"""Sums over the features of some utterances, of which means and deviations are made. Recordings have none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shards.format.schema import Modality
from shards.format.statistics import Sums, add, sums_of
from shards.streaming.reader import ShardReader

# Utterances read at a time: enough to make the cost per call small, few enough for memory.
CHUNK = 256


def no_sums(modalities: Mapping[str, Modality]) -> dict[str, Sums]:
    """The sums over no time step, per modality."""
    return {
        name: Sums(0, np.zeros(m.dim), np.zeros(m.dim)) for name, m in modalities.items() if not m.recording
    }


def sums_of_rows(reader: ShardReader, shard: np.ndarray, row: np.ndarray) -> dict[str, Sums]:
    """Sums per modality over all time steps of utterances.

    Args:
        reader: of the split.
        shard, row: [B] each.

    Raises:
        ValueError, OSError: as `ShardReader.features` does.
    """
    total = no_sums(reader.modalities)
    for start in range(0, len(row), CHUNK):
        chunk = slice(start, start + CHUNK)
        utterances = reader.features(shard[chunk], row[chunk])
        reader.close_all_but(shard[chunk].tolist())
        for name in total:
            total[name] = add(total[name], sums_of(utterances.features[name].dequantized().numpy()))
    return total
