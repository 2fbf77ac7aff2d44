"""A small corpus without classes for tests of targets: all values are formulas of an utterance's number."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import shards_support
from shards_support import utterance

import shards
from shards import Sample
from shards.format.targets import Target

AFFECT = Target("regression", {"valence": [1.0, 5.0], "activation": None}, missing=True)
SENTIMENT = Target("regression", {"sentiment": [-3.0, 3.0]})
EMOTIONS = Target("multilabel", {"joy": [0.0, 3.0], "anger": [0.0, 3.0]})
SOME = Target("multilabel", {"surprise": [0.0, 1.0]}, missing=True)
FURTHER = {"sentiment": SENTIMENT, "emotions": EMOTIONS, "some": SOME}


def values(i: int) -> dict[str, Any]:
    """The values of utterance i; activation is null in two thirds, surprise absent in three quarters."""
    found = {
        "valence": 1 + (i % 9) / 2,
        "activation": None if i % 3 else float(i % 5),
        "sentiment": (i % 7) - 3,
        "joy": float(i % 4),
        "anger": float(i % 2),
    }
    return found if i % 4 else found | {"surprise": float(i // 4 % 2)}


def of_columns(i: int, target: Target) -> list[float]:
    """What a stream must give for utterance i."""
    found = (values(i).get(name) for name in target.columns)
    return [math.nan if value is None else float(value) for value in found]


def number(key: str) -> int:
    return int(key.rpartition("-")[2])


def unlabeled(i: int, split: str = "train", **meta: Any) -> Sample:
    return utterance(i, split, label=None, meta=values(i) | {"speaker": f"s{i % 4}"} | meta)


def corpus(train: int = 40, test: int = 7) -> list[Sample]:
    return [unlabeled(i) for i in range(train)] + [unlabeled(1_000 + i, "test") for i in range(test)]


def pack(samples: list[Any], out: Path | str, **options: Any) -> shards.Manifest:
    return shards_support.pack(
        samples, out, **({"classes": [], "target": AFFECT, "targets": FURTHER} | options)
    )
