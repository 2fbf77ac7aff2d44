"""Data of the benchmark of targets: values and several labels at once, of RAVDESS and of made-up corpora.

RAVDESS (Livingstone and Russo 2018) has one acted emotion and its strength per clip, in the clip's name. Both
targets are made of them, so they say how well a model learns such a target, not how people feel:

- values: valence and arousal of the emotion's word by Russell and Mehrabian (1977, table 4, means from -1 to
  1), as later publications and programs quote it. "neutral" has no word there and gets 0, 0; "calm" gets the
  word "relaxed".
- labels: the eight emotions, of which a clip has one, and "strong".

In a made-up corpus, as in the demo, about 15 % of the steps of an utterance are informative: they lie near a
direction. The others are noise, which dominates the plain mean. The targets really vary there:

- values: valence and arousal are uniform from -3 to 3, and missing in 10 % of the utterances. Each has a
  curve through random points, one for each whole number; the direction is the sum of both.
- labels: six independent labels, from common (50 %) to rare (5 %), each with a direction; the direction of an
  utterance is the sum over its labels, and one of speech.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards import FeatureStream, Sample, pack
from shards.format.targets import Target
from shards.sources import npz

Floats = NDArray[np.float64]

CIRCUMPLEX = {
    **{"neutral": (0.0, 0.0), "calm": (0.68, -0.46), "happy": (0.81, 0.51), "sad": (-0.63, -0.27)},
    **{"angry": (-0.51, 0.59), "fearful": (-0.64, 0.60), "disgust": (-0.60, 0.35), "surprised": (0.40, 0.67)},
}
STRENGTH = 3  # field of a clip's name: 01 normal, 02 strong
PREVALENCE = {"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.15, "e": 0.1, "f": 0.05}
RANGE = [-3.0, 3.0]
MISSING = 0.1
DIMS = {"audio": 32, "video": 24}
SIZES = {"train": 1000, "test": 400}
INFORMATIVE_SHARE = 0.15
SIGNAL, SIGNAL_NOISE, NOISE, SHIFT = 0.4, 0.3, 2.0, 0.4


def pack_ravdess(features: Path, folder: Path) -> str:
    """RAVDESS with the targets "values" and "labels" -> the dataset's folder."""
    source = npz.read(features)
    pack(
        (_with_targets(sample) for sample in source.samples if isinstance(sample, Sample)),
        str(folder),
        classes=source.classes,
        provenance=source.provenance,
        targets={
            "values": Target("regression", {"valence": [-1, 1], "arousal": [-1, 1]}),
            "labels": Target("multilabel", {name: [0, 1] for name in (*CIRCUMPLEX, "strong")}),
        },
        progress=False,
    )
    return str(folder)


def _with_targets(sample: Sample) -> Sample:
    emotion = str(sample.label)
    valence, arousal = CIRCUMPLEX[emotion]
    labels = {name: int(name == emotion) for name in CIRCUMPLEX}
    labels["strong"] = int(sample.key.split("-")[STRENGTH] == "02")
    return replace(sample, meta={**sample.meta, "valence": valence, "arousal": arousal, **labels})


def pack_made(seed: int, folder: Path) -> str:
    """A made-up corpus with the targets "values" and "labels" -> the dataset's folder."""
    columns: dict[str, list[float] | None] = {"valence": RANGE, "arousal": RANGE}
    pack(
        _made(seed),
        str(folder),
        classes=[],
        provenance={"format": "made up", "seed": seed},
        target=Target("regression", columns, missing=True),
        targets={
            "values": Target("regression", columns, missing=True),
            "labels": Target("multilabel", {name: [0, 1] for name in PREVALENCE}),
        },
        progress=False,
    )
    return str(folder)


def _made(seed: int) -> Iterator[Sample]:
    """The utterances: half of the informative steps' direction is of the values, half of the labels."""
    rng = np.random.default_rng([7, seed])
    points = int(RANGE[1] - RANGE[0]) + 1
    curves = {m: rng.normal(0, SIGNAL, (2, points, dim)) for m, dim in DIMS.items()}
    of_label = {m: rng.normal(0, SIGNAL, (len(PREVALENCE) + 1, dim)) for m, dim in DIMS.items()}
    for split, size in SIZES.items():
        for i in range(size):
            values = rng.uniform(*RANGE, 2)
            labels = (rng.random(len(PREVALENCE)) < list(PREVALENCE.values())).astype(np.float64)
            features, meta = {}, {}
            for m in DIMS:
                direction = sum(_on_curve(curves[m][k], values[k]) for k in range(2))
                direction = direction + np.append(labels, 1.0) @ of_label[m]
                features[m], informative = _steps(rng, direction)
                meta[f"informative_{m}"] = np.flatnonzero(informative).tolist()
            known = rng.random(2) >= MISSING
            known[0] |= not known.any()
            meta |= {
                name: float(values[k]) if known[k] else None for k, name in enumerate(("valence", "arousal"))
            }
            meta |= {name: int(labels[k]) for k, name in enumerate(PREVALENCE)}
            yield Sample(f"{split}-{i:05d}", split, None, features, meta)


def _on_curve(points: Floats, value: float) -> Floats:
    """The point of a curve [P, D] that belongs to a value of RANGE: [D]."""
    place = np.clip(value - RANGE[0], 0, len(points) - 1 - 1e-9)
    low = int(place)
    return np.asarray(points[low] + (place - low) * (points[low + 1] - points[low]))


def _steps(rng: np.random.Generator, direction: Floats) -> tuple[np.ndarray, NDArray[np.bool_]]:
    """The steps [T, D] float32 of an utterance with this direction [D], and which of them are informative."""
    length = int(np.clip(rng.lognormal(np.log(28), 0.45), 10, 60))
    informative = rng.random(length) < INFORMATIVE_SHARE
    informative[rng.integers(length)] = True
    noise = rng.normal(0, NOISE, (length, len(direction))) + rng.normal(0, SHIFT, len(direction))
    signal = rng.normal(0, SIGNAL_NOISE, (length, len(direction))) + direction
    return np.where(informative[:, None], signal, noise).astype(np.float32), informative


# --- Linear models -------------------------------------------------------------------------------


def pooled(url: str, target: str, split: str, select: dict[str, Any] | None) -> tuple[Floats, Floats]:
    """Mean and deviation over time of all modalities [U, 2 F], and the target's values [U, K]."""
    stream = FeatureStream(
        url, split=split, select=select, target=target, shuffle=False, global_batch_size=256
    )
    rows, values = [], []
    for batch in stream.epoch(0):
        parts = []
        for ragged in batch.features.values():
            steps = ragged.values.double().split(ragged.host_lengths)
            parts.append(np.stack([np.concatenate([s.mean(0), s.std(0, correction=0)]) for s in steps]))
        rows.append(np.concatenate(parts, 1))
        values.append(batch.host_target.numpy())
    return np.concatenate(rows), np.concatenate(values)


def ridge(train: tuple[Floats, Floats], test_x: Floats) -> Floats:
    """Ridge regression of each dimension; the penalty is chosen by leaving out single utterances."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = train
    found = []
    for column in y.T:
        known = ~np.isnan(column)
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 16)))
        found.append(model.fit(x[known], column[known]).predict(test_x))
    return np.stack(found, 1)


def logistic(train: tuple[Floats, Floats], test_x: Floats, balanced: bool = False) -> Floats:
    """Logistic regression of each label; the penalty is chosen by its log loss on three parts in turn.

    With `balanced`, presence and absence of a label weigh the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = train
    grid = {"logisticregression__C": [0.001, 0.01, 0.1, 1.0]}
    found = []
    for column in y.T:
        weights = "balanced" if balanced else None
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000, class_weight=weights))
        search = GridSearchCV(model, grid, cv=3, scoring="neg_log_loss")
        found.append(search.fit(x, column > 0).predict_proba(test_x)[:, 1])
    return np.stack(found, 1)
