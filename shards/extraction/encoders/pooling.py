"""Averages an encoder's hidden steps over steps of a given length."""

from __future__ import annotations

import numpy as np

# Durations are quotients of whole numbers; 2.3 / 0.1 must count as 23 steps.
ROUNDING = 1e-6


def steps_in(seconds: float, step_seconds: float) -> int:
    """Whole steps in a clip, floor(seconds / step_seconds), but at least 1 unless it is empty."""
    return max(1, int(seconds / step_seconds + ROUNDING)) if seconds > 0 else 0


def pool(hidden: np.ndarray, centers: np.ndarray, seconds: float, step_seconds: float) -> np.ndarray:
    """Mean of the hidden steps whose center lies in each step.

    Args:
        hidden: [H, D], H >= 1 unless `seconds` is 0.
        centers: [H] in seconds, ascending.
        seconds: length of the clip.
        step_seconds: length of a step.

    Returns:
        float32 [steps_in(seconds, step_seconds), D]. Step t is the mean over centers in
        [t, t + 1) * step_seconds; a step without any (at the end, where some models stop early) gets the
        nearest hidden step.
    """
    steps = steps_in(seconds, step_seconds)
    bounds = np.searchsorted(centers, np.arange(steps + 1) * step_seconds - ROUNDING)
    if steps == 1:
        bounds[:] = 0, len(centers)
    pooled = np.empty((steps, hidden.shape[1]), np.float32)
    for t in range(steps):
        begin, end = bounds[t], bounds[t + 1]
        if end > begin:
            pooled[t] = hidden[begin:end].mean(axis=0, dtype=np.float64)
        else:
            pooled[t] = hidden[np.abs(centers - (t + 0.5) * step_seconds).argmin()]
    return pooled
