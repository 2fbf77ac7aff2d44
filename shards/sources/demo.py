"""A made-up corpus that shows what reliability weights are for.

Each class has a direction per modality. In an utterance only some steps (about 15 %) are informative: they
are close to the direction of its class. All others are noise with a far larger norm than the signal, shifted
by an offset of the utterance. The noise dominates the plain mean over time; a model that finds the
informative steps can read the class from them. The metadata says which steps they are. Further modalities,
such as text, are made on request.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from shards.format.schema import MANIFEST, MODALITY_NAME, Sample
from shards.sources.base import Source

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
# Standard deviation of a class direction's components, and of the noise around it.
SIGNAL = 0.4
SIGNAL_NOISE = 0.3
# Standard deviation of the other steps' noise. Noise of the signal's norm would cancel in the mean.
NOISE = 2.0
# Standard deviation of the offset that all noise of an utterance shares, and which does not cancel in the
# mean.
SHIFT = 0.4

# To be raised when the code makes another corpus from the same constants.
VERSION = 1
# Name of the packed demo. It stays as long as the utterances are the same, since a run resumes only on the
# data that it began with; other utterances need another name.
FOLDER = "demo-95b6b71e37"
# These don't change the utterances of the modalities in DIMS, which FOLDER stands for.
NO_SETTINGS = ("MANIFEST", "MODALITY_NAME", "FOLDER", "OTHER_DIM", "NO_SETTINGS")


def samples(
    seed: int = 0,
    train: int = SIZES["train"],
    val: int = SIZES["val"],
    test: int = SIZES["test"],
    modalities: Sequence[str] = tuple(DIMS),
) -> Source:
    """Make the corpus.

    Args:
        seed: of the random generator.
        train, val, test: utterances per split, classes in turn.
        modalities: names; audio and video are the same with and without others.

    Returns:
        Features [T, F] float32 per modality and utterance, of different lengths: F is 32 for audio, else 24.
        The metadata `informative_audio`, and so on, list the informative steps.

    Raises:
        ValueError: a name that a modality cannot have, or one twice.
    """
    sizes = {split: size for split, size in (("train", train), ("val", val), ("test", test)) if size}
    dims = {name: DIMS.get(name, OTHER_DIM) for name in modalities}
    if not dims or len(dims) < len(modalities) or not all(map(MODALITY_NAME.fullmatch, dims)):
        raise ValueError(
            "modalities of the demo must be different names of small letters, digits and _, not "
            f"{', '.join(map(repr, modalities)) or 'none'}"
        )
    return Source(
        samples=_samples(seed, sizes, dims),
        classes=list(EMOTIONS),
        provenance={"format": "demo", "settings": {"seed": seed, **_settings(), "dims": dims}},
        total=sum(sizes.values()),
    )


def read(source: str | Path = "-", modalities: Sequence[str] = ("audio", "video")) -> Source:
    """Make the corpus with its defaults, for `awtpn pack`.

    Args:
        source: not read; write -.
        modalities: those of the corpus, such as audio video text.
    """
    return samples(modalities=modalities)


def ensure_demo(cache_dir: str | Path) -> str:
    """The demo's dataset folder under `cache_dir`, packed there on first use.

    Several processes may call it at once: one packs, the others wait.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(cache_dir).expanduser() / FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        # The manifest is written last: where it is, the dataset is complete.
        if not (folder / MANIFEST).is_file():
            from shards.packing.pack import pack  # webdataset is slow to import; most starts find the demo

            source = samples()
            pack(
                source.samples,
                str(folder),
                classes=source.classes,
                provenance=source.provenance,
                total=source.total,
            )
    return str(folder)


def _settings() -> dict[str, object]:
    """The constants above."""
    return {
        name.lower(): value for name, value in globals().items() if name.isupper() and name not in NO_SETTINGS
    }


def _samples(seed: int, sizes: Mapping[str, int], dims: Mapping[str, int]) -> Iterator[Sample]:
    # One generator for the modalities of DIMS, and one for each other, so that others don't change these.
    shared = np.random.default_rng(seed)
    rng = {
        name: shared if name in DIMS else np.random.default_rng([seed, zlib.crc32(name.encode())])
        for name in dims
    }
    directions = {name: rng[name].normal(0, SIGNAL, (len(EMOTIONS), dim)) for name, dim in dims.items()}
    for split, size in sizes.items():
        label = np.arange(size) % len(EMOTIONS)
        made = {name: _modality(rng[name], directions[name][label]) for name in dims}
        for i in range(size):
            steps = {name: slice(*offsets[i : i + 2]) for name, (_, _, offsets) in made.items()}
            yield Sample(
                key=f"{split}-{i:06d}",
                split=split,
                label=EMOTIONS[label[i]],
                features={name: values[steps[name]] for name, (values, _, _) in made.items()},
                meta={
                    f"informative_{name}": np.flatnonzero(informative[steps[name]]).tolist()
                    for name, (_, informative, _) in made.items()
                },
            )


def _modality(rng: np.random.Generator, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All steps of a modality of U utterances, given each one's class direction [U, D].

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
    signal = rng.normal(0, SIGNAL_NOISE, (offsets[-1], dim)) + direction[utterance]
    values = np.where(informative[:, None], signal, noise)
    return values.astype(np.float32), informative, offsets
