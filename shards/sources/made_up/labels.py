"""Classes, speakers, wrong labels and missing modalities of a made-up corpus's utterances.

Each property is drawn by a generator of its own, and shares are exact. So a change of one setting leaves the
others as they are, and the utterances with a wrong label at 10 % are among those at 20 %.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.sources.made_up.settings import Settings

FOLDS = 4
# The training split has `speakers`; each other split this share of it, and other speakers.
OTHER_SPEAKERS = 0.5


@dataclass(frozen=True)
class Labels:
    """What is known of the U utterances of a split before their features are drawn.

    Attributes:
        true: [U] position of the class that the features have.
        given: [U] position of the class that the label names; another one where the label is wrong.
        speaker: [U] number of the speaker within the split; 0 without speakers.
        lacks: [U] position of the modality that is missing, -1 for none.
    """

    true: NDArray[np.int64]
    given: NDArray[np.int64]
    speaker: NDArray[np.int64]
    lacks: NDArray[np.int64]


def generator(seed: int, *purpose: str) -> np.random.Generator:
    """The generator of one purpose: the same on every machine, and independent of all others."""
    return np.random.default_rng([seed, zlib.crc32(" ".join(purpose).encode())])


def draw_labels(settings: Settings, split: str, size: int) -> Labels:
    """Draw the labels of the `size` utterances of a split."""
    seed, classes = settings.seed, settings.classes
    of_class = np.repeat(np.arange(classes), class_counts(size, classes, settings.imbalance))
    true = generator(seed, "classes", split).permutation(of_class)
    given = true.copy()
    if split != "test":
        rng = generator(seed, "wrong labels", split)
        wrong = _share(rng, size, settings.label_noise)
        given[wrong] = (true + rng.integers(1, classes, size))[wrong] % classes
    rng = generator(seed, "missing", split)
    lacking = _share(rng, size, settings.missing)
    lacks = np.where(lacking, rng.integers(len(settings.features), size=size), -1)
    return Labels(true, given, np.arange(size) % max(1, speakers_in(settings, split)), lacks)


def speakers_in(settings: Settings, split: str) -> int:
    """The number of speakers of a split; 0 if the corpus has none."""
    if split == "train" or not settings.speakers:
        return settings.speakers
    return max(1, int(settings.speakers * OTHER_SPEAKERS))


def class_counts(size: int, classes: int, imbalance: float) -> NDArray[np.int64]:
    """Utterances of each class: `imbalance` times as many in the first as in the last, geometric between.

    A class has at least one, if there are as many utterances as classes.

    Returns:
        [C], with the sum `size`.
    """
    shares = np.array([imbalance ** -(i / (classes - 1)) for i in range(classes)])
    exact = size * shares / shares.sum()
    counts = exact.astype(np.int64)
    rest = size - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    while size >= classes and counts.min() == 0:
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return counts


def _share(rng: np.random.Generator, size: int, share: float) -> NDArray[np.bool_]:
    """Which of `size` are a random share of them: [U], with round(share * size) that are."""
    return rng.permutation(size) < round(share * size)
