"""A small dataset with every kind of target, and runs in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awtpn.experiments.runner import Job, is_done
from awtpn.training.trainer import main as train
from shards import Sample, pack
from shards.format.targets import CLASSES, Target

# Of valence only the range is known to the dataset that has no classes.
VALUES = Target("regression", {"valence": [-4.0, 4.0], "arousal": None}, missing=True)


def pack_values(
    folder: Path,
    *,
    splits: bool = False,
    classes: bool = True,
    utterances: int = 96,
    **changed: Sequence[Any],
) -> str:
    """Utterances whose features tell valence, arousal, and the labels a and b; three folds.

    Every fifth lacks valence. With `splits` they are in train, val and test (two thirds, a sixth, a sixth);
    without `classes` the dataset's target is valence and arousal.

    Args:
        changed: metadata in place of those of these columns, an entry for each utterance.
    """
    rng = np.random.default_rng(0)
    truth = rng.uniform(-3, 3, size=(utterances, 2))
    samples = []
    for i, (valence, arousal) in enumerate(truth.tolist()):
        steps = rng.normal(size=(3, 6)) * 0.1 + np.array([valence, arousal, 0, 0, 1, -valence])
        meta = {
            "fold": i % 3,
            "valence": None if i % 5 == 0 else round(valence, 3),
            "arousal": round(arousal, 3),
            "a": int(valence > 0),
            "b": int(arousal > 1),
        } | {name: values[i] for name, values in changed.items()}
        split = ["train", "train", "train", "train", "val", "test"][i % 6] if splits else "all"
        label = ["low", "high"][int(valence > 0)] if classes else None
        samples.append(Sample(f"u{i}", split, label, {"audio": steps, "video": steps[:1, :4]}, meta))
    pack(
        samples,
        str(folder),
        classes=["low", "high"] if classes else [],
        target=CLASSES if classes else VALUES,
        progress=False,
    )
    return str(folder)


def train_here(jobs: Sequence[Job], *_: Any, **__: Any) -> None:
    """In place of `runner.train_all`, which starts a process for each run."""
    for job in jobs:
        if not is_done(job.run_dir):
            train(job.arguments)


def write_figures(job: Job, figures: Mapping[str, Any]) -> None:
    """What a run of these figures leaves, on its validation and its test utterances."""
    job.run_dir.mkdir(parents=True)
    (job.run_dir / "results.json").write_text(json.dumps({"val": figures, "test": figures}))
