"""Features of a made-up corpus, modality by modality; `sources.synthetic` has the equations.

Lengths, noise, informative steps and offsets have a generator each, per split and modality. So a change of
one setting leaves what the others draw as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from shards.sources.made_up.labels import Labels, generator, speakers_in
from shards.sources.made_up.settings import Settings

# Lengths: log-normal, as those of real utterances, and clipped at these multiples of the median.
LENGTH_SPREAD = 0.45
SHORTEST, LONGEST = 10 / 28, 60 / 28


def draw_features(
    settings: Settings, split: str, modality: str, labels: Labels
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """The utterances of a split in one modality.

    Yields:
        Per utterance the features [T, D], and the positions of its informative steps; of other carriers than
        "steps" all positions, and of a useless modality none.
    """
    dim, useful = settings.features[modality], modality != settings.useless
    directions = class_directions(settings, modality)
    rng = partial(generator, settings.seed, split, modality)
    size = len(labels.true)
    lengths = draw_lengths(rng("lengths"), settings.steps, size)
    of_speaker = rng("speakers").standard_normal((max(1, speakers_in(settings, split)), dim))
    of_speaker *= settings.speaker_offset * settings.signal
    signal_offset = rng("signal offset").standard_normal((size, dim)) * settings.signal_offset * useful
    noise_offset = rng("noise offset").standard_normal((size, dim)) * settings.noise_offset
    of_noise, of_place = rng("noise"), rng("informative")
    for i, (label, speaker, length) in enumerate(
        zip(labels.true, labels.speaker, lengths.tolist(), strict=True)
    ):
        emotion = directions[label] + signal_offset[i]
        noise = smoothed(of_noise.standard_normal((length, dim)), settings.smoothness)
        informative = np.full(length, useful)
        if settings.carrier == "steps":
            informative &= draw_informative(of_place, length, settings.informative, settings.smoothness)
            values = np.where(
                informative[:, None],
                emotion + settings.signal_noise * noise,
                noise_offset[i] + settings.noise * noise,
            )
        elif settings.carrier == "mean":
            values = emotion + settings.noise * noise
        elif settings.carrier == "deviation":
            values = (settings.noise + emotion) * noise
        else:
            values = emotion + (settings.noise + emotion) * noise
        yield (values + of_speaker[speaker]).astype(np.float32), np.flatnonzero(informative)


def class_directions(settings: Settings, modality: str) -> NDArray[np.float64]:
    """The direction of each class in a modality, the same in all splits: [C, D]; zeros if it is useless."""
    rng = generator(settings.seed, "directions", modality)
    drawn = rng.standard_normal((settings.classes, settings.features[modality]))
    return drawn * settings.signal * (modality != settings.useless)


def draw_lengths(rng: np.random.Generator, median: int, utterances: int) -> NDArray[np.int64]:
    """Time steps of each utterance: [U], at least 1."""
    drawn = rng.lognormal(math.log(median), LENGTH_SPREAD, utterances)
    return np.clip(drawn, max(1, round(median * SHORTEST)), round(median * LONGEST)).astype(np.int64)


def draw_informative(
    rng: np.random.Generator, length: int, share: float, smoothness: float
) -> NDArray[np.bool_]:
    """Which time steps are informative [T]: each with the probability `share`, and at least one.

    They are where a smooth random curve is below the quantile of `share`. So smooth features have them in
    runs, and a smaller share takes some of those of a larger one.
    """
    curve = smoothed(rng.standard_normal((length, 1)), smoothness)[:, 0]
    informative = np.full(length, True) if share == 1 else curve < _quantile(share)
    informative[curve.argmin()] = True
    return informative


def smoothed(noise: NDArray[np.float64], smoothness: float) -> NDArray[np.float64]:
    """White noise [T, D] of deviation 1 made autoregressive, of deviation 1 at every step: [T, D].

    x_t = a x_(t-1) + sqrt(1 - a^2) e_t with the smoothness a, and x_0 = e_0. It is computed as
    sum_k a^k e_(t-k), in which each pass doubles the number of terms.
    """
    if not smoothness:
        return noise
    found = noise.copy()
    found[1:] *= math.sqrt(1 - smoothness**2)
    reach = 1
    while reach < len(found):
        found[reach:] += smoothness**reach * found[:-reach]
        reach *= 2
    return found


def _quantile(share: float) -> float:
    return NormalDist().inv_cdf(share) if share else -math.inf
