"""A made-up corpus that shows what reliability weights are for.

Each class has a direction per modality. In an utterance only some steps (about 15 %) are informative: they
are around the direction of its class. All others are noise with a far larger norm than the signal, shifted
by an offset of the utterance. The noise dominates the plain mean over time; a model that finds the
informative steps can read the class from them. The metadata says which steps they are. Further modalities,
such as text, are made on request.

There is such a corpus for each kind of target: classes, values and several labels at once (`demo_targets`).
`demo_recordings` is one of sound and pictures in place of features.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from shards.format.schema import MANIFEST, MODALITY_NAME, Sample
from shards.sources.base import Source
from shards.sources.made_up import demo_recordings, demo_targets

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
DIMS = {"audio": 32, "video": 24}
OTHER_DIM = 24  # features of any other modality
SIZES = {"train": 2_000, "val": 400, "test": 400}

# Lengths: log-normal, as those of real utterances, and clipped.
MEDIAN_STEPS = 28
LENGTH_SPREAD = 0.45
SHORTEST, LONGEST = 10, 60
# Probability that a step is informative; at least one step of each utterance is.
INFORMATIVE_SHARE = 0.15
# Standard deviation of a class direction's components, and of the noise around it. With less noise each model
# that finds the informative steps recognizes all utterances, and one cannot see what its parts are good for.
SIGNAL = 0.4
SIGNAL_NOISE = 1.0
# Standard deviation of the other steps' noise. Noise of the signal's norm would cancel in the mean.
NOISE = 2.0
# Standard deviation of the offset that all noise of an utterance shares, and which does not cancel in the
# mean.
SHIFT = 0.4

# To be raised when the code makes another corpus from the same constants.
VERSION = 1
# Name of the packed demo. It stays as long as the utterances are the same, since a run resumes only on the
# data that it began with; other utterances need another name.
FOLDER = "demo-e5c61bd67b"
# These don't change the utterances of the modalities in DIMS, which FOLDER stands for.
NO_SETTINGS = ("MANIFEST", "MODALITY_NAME", "FOLDER", "OTHER_DIM", "NO_SETTINGS")


def samples(
    seed: int = 0,
    train: int = SIZES["train"],
    val: int = SIZES["val"],
    test: int = SIZES["test"],
    modalities: Sequence[str] = tuple(DIMS),
    target: str = "classification",
    signal_noise: float | None = None,
) -> Source:
    """Make the corpus.

    Args:
        seed: of the random generator.
        train, val, test: utterances per split; of a classification classes in turn.
        modalities: names; audio and video are the same with and without others.
        target: "classification", or a corpus of `demo_targets`.
        signal_noise: standard deviation of the noise around an informative step; default: the target's own.

    Returns:
        Features [T, F] float32 per modality and utterance, of different lengths: F is 32 for audio, else 24.
        The metadata `informative_audio`, and so on, list the informative steps.

    Raises:
        ValueError: a name that a modality cannot have, or one twice; no such target.
    """
    if target not in ("classification", *demo_targets.TARGETS):
        raise ValueError(
            f"target {target!r}: must be {' or '.join(('classification', *demo_targets.TARGETS))}"
        )
    sizes = {split: size for split, size in (("train", train), ("val", val), ("test", test)) if size}
    dims = {name: DIMS.get(name, OTHER_DIM) for name in modalities}
    if not dims or len(dims) < len(modalities) or not all(map(MODALITY_NAME.fullmatch, dims)):
        raise ValueError(
            "modalities of the demo must be different names of small letters, digits and _, not "
            f"{', '.join(map(repr, modalities)) or 'none'}"
        )
    if signal_noise is None:
        signal_noise = SIGNAL_NOISE if target == "classification" else demo_targets.SIGNAL_NOISE
    settings = {"seed": seed, **_settings(), "dims": dims, "signal_noise": signal_noise}
    provenance: dict[str, Any] = {"format": "demo", "settings": settings}
    total = sum(sizes.values())
    if target == "classification":
        return Source(_samples(seed, sizes, dims, signal_noise), list(EMOTIONS), provenance, total)
    del settings["emotions"]
    settings |= demo_targets.settings(target)
    made = _samples_of_values(seed, sizes, dims, target, signal_noise)
    return Source(made, [], provenance, total, target=demo_targets.TARGETS[target])


def read(
    source: str | Path = "-",
    modalities: Sequence[str] = ("audio", "video"),
    target: Literal["classification", "values", "labels"] = "classification",
) -> Source:
    """Make the corpus with its defaults, for `awtpn pack`.

    Args:
        source: not read; write -.
        modalities: those of the corpus, such as audio video text.
        target: what is to be recognized: classification (classes), values (valence and arousal) or labels
            (six emotions, several at once).
    """
    return samples(modalities=modalities, target=target)


def ensure_demo(cache_dir: str | Path, target: str = "classification") -> str:
    """The demo's dataset folder under `cache_dir`, packed there on first use.

    Several processes may call it at once: one packs, the others wait.

    Args:
        cache_dir: the folder of the dataset's folder.
        target: see `samples`; or "recordings", the corpus of `demo_recordings`.

    Raises:
        OSError: the folder cannot be written.
    """
    if target == "recordings":
        return demo_recordings.ensure_recordings(cache_dir)
    name = FOLDER if target == "classification" else demo_targets.FOLDERS[target]
    folder = Path(cache_dir).expanduser() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        # The manifest is written last: where it is, the dataset is complete.
        if not (folder / MANIFEST).is_file():
            from shards.packing.pack import pack  # webdataset is slow to import; most starts find the demo

            source = samples(target=target)
            pack(
                source.samples,
                str(folder),
                classes=source.classes,
                target=source.target,
                provenance=source.provenance,
                total=source.total,
            )
    return str(folder)


def _settings() -> dict[str, object]:
    """The constants above."""
    return {
        name.lower(): value for name, value in globals().items() if name.isupper() and name not in NO_SETTINGS
    }


def _samples(
    seed: int, sizes: Mapping[str, int], dims: Mapping[str, int], signal_noise: float
) -> Iterator[Sample]:
    rng = _generators(seed, dims)
    directions = {name: rng[name].normal(0, SIGNAL, (len(EMOTIONS), dim)) for name, dim in dims.items()}
    for split, size in sizes.items():
        label = np.arange(size) % len(EMOTIONS)
        centers = {name: directions[name][label] for name in dims}
        yield from _of_split(split, rng, centers, signal_noise, [EMOTIONS[i] for i in label], [{}] * size)


def _samples_of_values(
    seed: int, sizes: Mapping[str, int], dims: Mapping[str, int], target: str, signal_noise: float
) -> Iterator[Sample]:
    columns = demo_targets.TARGETS[target].columns
    rng = _generators(seed, dims)
    # No modality's name has a space, so none has the same generator.
    of_target = np.random.default_rng([seed, zlib.crc32(f"target {target}".encode())])
    directions = {name: rng[name].normal(0, SIGNAL, (len(columns), dim)) for name, dim in dims.items()}
    for split, size in sizes.items():
        values, position = demo_targets.draw(of_target, target, size)
        centers = {name: position @ directions[name] for name in dims}
        metas = [
            {name: None if np.isnan(value) else value for name, value in zip(columns, row, strict=True)}
            for row in values.tolist()
        ]
        yield from _of_split(split, rng, centers, signal_noise, [None] * size, metas)


def _generators(seed: int, dims: Mapping[str, int]) -> dict[str, np.random.Generator]:
    """One generator for the modalities of DIMS, and one for each other, so that others don't change these."""
    shared = np.random.default_rng(seed)
    return {
        name: shared if name in DIMS else np.random.default_rng([seed, zlib.crc32(name.encode())])
        for name in dims
    }


def _of_split(
    split: str,
    rng: Mapping[str, np.random.Generator],
    centers: Mapping[str, np.ndarray],
    signal_noise: float,
    labels: Sequence[str | None],
    metas: Sequence[Mapping[str, Any]],
) -> Iterator[Sample]:
    """The U utterances of a split.

    Args:
        split: its name.
        rng: the generator of each modality.
        centers: per modality where the informative steps of each utterance lie [U, D].
        signal_noise: standard deviation of the noise around them.
        labels: U classes.
        metas: further metadata of each utterance.
    """
    made = {name: _modality(rng[name], center, signal_noise) for name, center in centers.items()}
    for i, (label, meta) in enumerate(zip(labels, metas, strict=True)):
        steps = {name: slice(*offsets[i : i + 2]) for name, (_, _, offsets) in made.items()}
        informative = {
            f"informative_{name}": np.flatnonzero(is_informative[steps[name]]).tolist()
            for name, (_, is_informative, _) in made.items()
        }
        yield Sample(
            key=f"{split}-{i:06d}",
            split=split,
            label=label,
            features={name: values[steps[name]] for name, (values, _, _) in made.items()},
            meta={**meta, **informative},
        )


def _modality(
    rng: np.random.Generator, direction: np.ndarray, signal_noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All steps of a modality of U utterances, given where each one's informative steps lie [U, D].

    Returns:
        values [sum T, D] float32, which steps are informative [sum T] bool, offsets [U + 1].
    """
    utterances, dim = direction.shape
    drawn = rng.lognormal(np.log(MEDIAN_STEPS), LENGTH_SPREAD, utterances)
    lengths = np.clip(drawn, SHORTEST, LONGEST).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    utterance = np.repeat(np.arange(utterances), lengths)
    informative = rng.random(offsets[-1]) < INFORMATIVE_SHARE
    without = ~np.logical_or.reduceat(informative, offsets[:-1])
    informative[(offsets[:-1] + rng.integers(lengths))[without]] = True

    shift = rng.normal(0, SHIFT, (utterances, dim))
    noise = rng.normal(0, NOISE, (offsets[-1], dim)) + shift[utterance]
    signal = rng.normal(0, signal_noise, (offsets[-1], dim)) + direction[utterance]
    values = np.where(informative[:, None], signal, noise)
    return values.astype(np.float32), informative, offsets
