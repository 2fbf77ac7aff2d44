"""Averages an encoder's hidden steps over steps of a given length."""

from __future__ import annotations

import numpy as np

# Durations are quotients of whole numbers; 2.3 / 0.1 must count as 23 steps.
ROUNDING = 1e-6


def steps_in(seconds: float, step_seconds: float) -> int:
    """Whole steps in a clip, floor(seconds / step_seconds), but at least 1 unless it is empty."""
    return max(1, int(seconds / step_seconds + ROUNDING)) if seconds > 0 else 0


def spans(centers: np.ndarray, seconds: float, step_seconds: float) -> np.ndarray:
    """The hidden steps that each step is the mean of.

    Args:
        centers: [H] in seconds, ascending, H >= 1 unless `seconds` is 0.
        seconds: length of the clip.
        step_seconds: length of a step.

    Returns:
        int [steps_in(seconds, step_seconds), 2], begin and end. Step t has the centers in
        [t, t + 1) * step_seconds; a step without any (at the end, where some models stop early) has the
        nearest hidden step.
    """
    steps = steps_in(seconds, step_seconds)
    bounds = np.searchsorted(centers, np.arange(steps + 1) * step_seconds - ROUNDING)
    if steps == 1:
        bounds[:] = 0, len(centers)
    found = np.stack([bounds[:-1], bounds[1:]], axis=1)
    for t in np.flatnonzero(found[:, 0] >= found[:, 1]):
        nearest = np.abs(centers - (t + 0.5) * step_seconds).argmin()
        found[t] = nearest, nearest + 1
    return found


def pool(hidden: np.ndarray, centers: np.ndarray, seconds: float, step_seconds: float) -> np.ndarray:
    """Mean of the hidden steps whose center lies in each step, by `spans`.

    Args:
        hidden: [H, D].
        centers: [H] in seconds, ascending.
        seconds: length of the clip.
        step_seconds: length of a step.

    Returns:
        float32 [steps_in(seconds, step_seconds), D].
    """
    found = spans(centers, seconds, step_seconds)
    pooled = np.empty((len(found), hidden.shape[1]), np.float32)
    for t, (begin, end) in enumerate(found):
        pooled[t] = hidden[begin:end].mean(axis=0, dtype=np.float64)
    return pooled
