"""Sound and pictures whose class lies in short moments, and there in an order or arrangement only.

Sound: tones of four pitches. A word is all four of them, one directly after the other; the order of the
pitches is the class. Each of the twelve ordered pairs of pitches occurs in one class's word only. Elsewhere
the same tones sound alone, between pauses.

Pictures: four squares of stripes, two of them upright and two lying. Left and right, or top and bottom, make
the class; in all other pictures both kinds lie on a diagonal. Each square's stripes have a random phase, so
the mean over pictures of one class is an even gray.

So a moment's parts are the same for all classes, and no mean over time of spectra or pictures tells them
apart. Words and pictures of the class take about `SHARE` of an utterance's time, and at least one moment.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.format.recording import as_int16

SHARE = 0.12

RATE = 4000  # samples per second
TONE = 180  # samples of a tone: 45 ms
PITCHES = (300.0, 500.0, 850.0, 1400.0)  # Hz
DETUNING = 0.02  # standard deviation of a pitch's logarithm
LOUDNESS = (0.15, 0.3)  # of tones, drawn for each word and each pair of lone tones; full scale is 1
SOUND_NOISE = 0.02  # standard deviation
PAUSE = 80  # samples, the shortest between lone tones
# By class the positions in PITCHES.
ORDERS = ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1))
WORD = TONE * len(PITCHES)
SLOT = WORD + PAUSE  # the least time of a word, or of two lone tones

FPS = 5  # pictures per second
SIDE = 32  # pixels
PERIOD = (3.5, 4.5)  # pixels of a stripe and the next gap
CONTRAST = (0.25, 0.45)  # amplitude of stripes, as a share of the range; drawn for each picture
PICTURE_NOISE = 0.04  # standard deviation, as a share of the range
# Whether the stripes of each square lie: upper left, upper right, lower left, lower right.
ARRANGEMENTS = ((0, 1, 0, 1), (1, 0, 1, 0), (0, 0, 1, 1), (1, 1, 0, 0))
OTHERS = ((0, 1, 1, 0), (1, 0, 0, 1))


def draw_sound(
    rng: np.random.Generator, label: int, samples: int
) -> tuple[NDArray[np.int16], list[tuple[int, int]]]:
    """The sound of an utterance.

    Args:
        rng: the generator.
        label: position of the class in `ORDERS`.
        samples: its length, at least `SLOT`.

    Returns:
        int16 [samples], and of each word the first sample and that after its last.
    """
    sound = rng.normal(0, SOUND_NOISE, samples)
    slots = samples // SLOT
    of_class = _moments(rng, slots)
    words = []
    # Slots share the time evenly.
    edges = np.linspace(0, samples, slots + 1).astype(np.int64).tolist()
    for slot, (begin, end) in enumerate(pairwise(edges)):
        loudness = rng.uniform(*LOUDNESS)
        if slot in of_class:
            at = int(rng.integers(begin, end - WORD, endpoint=True))
            word = np.concatenate([_tone(rng, PITCHES[i]) for i in ORDERS[label]])
            sound[at : at + WORD] += loudness * word
            words.append((at, at + WORD))
            continue
        middle = (begin + end) // 2
        first, second = rng.permutation(len(PITCHES))[:2]
        for pitch, low, high in ((first, begin, middle), (second, middle, end)):
            at = int(rng.integers(low, high - TONE - PAUSE // 2, endpoint=True))
            sound[at : at + TONE] += loudness * _tone(rng, PITCHES[pitch])
    return as_int16(sound.astype(np.float32)), words


def draw_pictures(rng: np.random.Generator, label: int, pictures: int) -> tuple[NDArray[np.uint8], list[int]]:
    """The pictures of an utterance.

    Args:
        rng: the generator.
        label: position of the class in `ARRANGEMENTS`.
        pictures: their number N, at least 1.

    Returns:
        uint8 RGB [N, SIDE, SIDE, 3], and the positions of those with the arrangement of the class.
    """
    of_class = _moments(rng, pictures)
    found = np.empty((pictures, SIDE, SIDE, 3), np.uint8)
    for i in range(pictures):
        arrangement = ARRANGEMENTS[label] if i in of_class else OTHERS[rng.integers(len(OTHERS))]
        found[i] = _picture(rng, arrangement)
    return found, sorted(of_class)


def _moments(rng: np.random.Generator, places: int) -> set[int]:
    """Which of so many places are moments of the class: `SHARE` of them, and at least one."""
    chosen: list[int] = rng.permutation(places)[: max(1, round(SHARE * places))].tolist()
    return set(chosen)


def _tone(rng: np.random.Generator, pitch: float) -> NDArray[np.float64]:
    """[TONE], of random phase, that fades in and out."""
    hertz = pitch * np.exp(rng.normal(0, DETUNING))
    waves = np.sin(2 * np.pi * (hertz * np.arange(TONE) / RATE + rng.random()))
    return waves * np.sqrt(np.hanning(TONE))


def _picture(rng: np.random.Generator, arrangement: tuple[int, ...]) -> NDArray[np.uint8]:
    """uint8 [SIDE, SIDE, 3]."""
    half = SIDE // 2
    gray = np.empty((SIDE, SIDE))
    for square, lies in enumerate(arrangement):
        stripes = np.sin(2 * np.pi * (np.arange(half) / rng.uniform(*PERIOD) + rng.random()))
        row, column = half * (square // 2), half * (square % 2)
        gray[row : row + half, column : column + half] = stripes[:, None] if lies else stripes
    light = 0.5 + rng.uniform(*CONTRAST) * gray[..., None] + rng.normal(0, PICTURE_NOISE, (SIDE, SIDE, 3))
    return np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8)
