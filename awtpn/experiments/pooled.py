"""Utterances as rows of fixed length for the baseline: features pooled over time, and targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.config.schema import Config
from awtpn.model.task import Task
from awtpn.run.data import open_stream, stream_source, target_arguments
from shards import FeatureStream
from shards.progress import progress_bar

BATCH = 256  # utterances read at a time


@dataclass(frozen=True)
class Pooled:
    """Utterances, one per row.

    Attributes:
        rows: [U, 2 * sum of dims] per modality the mean and the standard deviation over time steps; zeros
            where an utterance lacks it.
        label: [U] int64 position of the class; 0 where the target is not one class.
        values: [U, K] values of the target, NaN where missing; [U, 0] where it is one class.
        keys: of the U utterances; none where nobody asks for them.
    """

    rows: NDArray[np.float64]
    label: NDArray[np.int64]
    values: NDArray[np.float64]
    keys: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)


def concatenate(parts: Sequence[Pooled]) -> Pooled:
    """The utterances of all parts, in their order."""
    return Pooled(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.values for part in parts]),
        [key for part in parts for key in part.keys],
    )


def open_utterances(
    config: Config, role: str, select: dict[str, Any] | None = None, task: Task | None = None
) -> FeatureStream | None:
    """The utterances of a role ("train", "val", "test"), unshuffled; None where it has none.

    Args:
        config: of the runs that the baseline is compared with; it takes their modalities.
        role: as in `data.select`.
        select: in place of `data.select.<role>`.
        task: its target; default: `data.target` and `task.type`.
    """
    if (source := stream_source(config.data, role)) is None:
        return None
    source |= {"modalities": list(config.model.modalities)}
    source |= {"task": config.task.type} if task is None else target_arguments(task)
    if select is not None:
        source |= {"select": select}
    return open_stream(**source, global_batch_size=BATCH, shuffle=False)


def pool_utterances(streams: Iterable[FeatureStream]) -> list[Pooled]:
    """Read all utterances of each stream and pool them; shows the progress."""
    streams, pooled = list(streams), []
    total = sum(stream.num_utterances for stream in streams)
    with progress_bar("baseline: pool features", "utterance", total) as bar:
        for stream in streams:
            rows, labels, values, keys = [], [], [], list[str]()
            for batch in stream.epoch(0):
                parts = [
                    [
                        pool(steps.double().numpy())
                        for steps in ragged.dequantized().split(ragged.host_offsets.diff().tolist())
                    ]
                    for ragged in batch.features.values()
                ]
                rows += [np.concatenate(of_utterance) for of_utterance in zip(*parts, strict=True)]
                labels.append(batch.label.numpy())
                values.append(batch.target.numpy())
                keys += batch.key
                bar.update(len(batch))
            pooled.append(Pooled(np.stack(rows), np.concatenate(labels), np.concatenate(values), keys))
    return pooled


def pool(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean and standard deviation over time steps: [T, D] -> [2 * D]; zeros for T = 0."""
    if not len(steps):
        return np.zeros(2 * steps.shape[1])
    return np.concatenate([steps.mean(0), steps.std(0)])
