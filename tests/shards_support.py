"""A small corpus for tests of the data plane."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from support import LIMIT

import shards
from shards import FeatureBatch, FeatureStream, Sample

CLASSES = ["calm", "happy", "sad"]
DIMS = {"audio": 5, "video": 3}


def utterance(i: int, split: str = "train", **changes: Any) -> Sample:
    """Utterance i: features that float16 holds exactly; every fifth lacks video; metadata by i."""
    rng = np.random.default_rng(i)
    features: dict[str, np.ndarray | None] = {
        name: rng.integers(-100, 100, (rng.integers(1, 9), dim)).astype(np.float32) / 8
        for name, dim in DIMS.items()
    }
    if i % 5 == 4:
        features["video"] = None
    meta = {"speaker": f"s{i % 4}", "fold": i % 3, "gain": i / 2, "notes": ["n", i]}
    fields = {"key": f"{split}-{i}", "label": CLASSES[i % 3], "features": features, "meta": meta}
    return Sample(split=split, **(fields | changes))


def corpus(train: int = 40, test: int = 7) -> list[Sample]:
    return [utterance(i) for i in range(train)] + [utterance(1_000 + i, "test") for i in range(test)]


def pack(samples: list[Any], out: Path | str, **options: Any) -> shards.Manifest:
    """Pack into shards of about four utterances."""
    settings = {"classes": CLASSES, "shard_bytes": 12_000, "progress": False} | options
    return shards.pack(samples, str(out), **settings)


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> str:
    """The URL of a dataset after a change of its manifest."""
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return str(folder)


def utterances(batch: FeatureBatch) -> Iterator[tuple[int, str, int, dict[str, np.ndarray]]]:
    """Place, key, label and features of each utterance of a batch."""
    for i in range(len(batch)):
        features = {
            name: ragged.values[ragged.offsets[i] : ragged.offsets[i + 1]].numpy()
            for name, ragged in batch.features.items()
        }
        yield int(batch.place[i]), batch.key[i], int(batch.label[i]), features


def global_keys(streams: list[FeatureStream], epoch: int, start_step: int = 0) -> list[list[tuple[int, str]]]:
    """(place, key) of each step, over the streams of all ranks."""
    steps = []
    for batches in zip(*(stream.epoch(epoch, start_step) for stream in streams), strict=True):
        steps.append([(int(p), k) for b in batches for p, k in zip(b.place, b.key, strict=True)])
    return steps


def dying(out: str) -> None:
    """Pack a corpus in a process that exits after its last sample, before packing is complete."""

    def samples() -> Iterator[Sample]:
        yield from corpus()
        os._exit(9)

    pack(samples(), out)  # type: ignore[arg-type]


def in_fork(work: Callable[[], object]) -> None:
    """Run in a fork of this process, which must end without an error."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode == 0
