"""What the demo corpora with values and with several labels are about; `demo` makes their utterances.

Each has as many directions per modality as columns. An informative time step lies at the sum of the
directions, each multiplied by the utterance's position on it:

- "values": valence and arousal, drawn evenly from a square; the position is the value.
- "labels": six emotions, several at once or none, with an intensity of 1 to 3; the position of a label that
  is present grows with its intensity. An utterance without labels has informative steps, too, around 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.format.targets import Target

# Standard deviation of the noise around an informative time step.
SIGNAL_NOISE = 0.3
# Share of the utterances whose arousal is not known.
MISSING_SHARE = 0.1
# Probability of each label, and its position at the intensities 0 to 3.
LABEL_SHARE = 0.3
POSITIONS = (0.0, 0.6, 0.8, 1.0)

TARGETS = {
    "values": Target("regression", {"valence": [-1.0, 1.0], "arousal": [-1.0, 1.0]}, missing=True),
    "labels": Target(
        "multilabel",
        {
            name: [0.0, len(POSITIONS) - 1.0]
            for name in ("happy", "sad", "angry", "fearful", "disgust", "surprised")
        },
    ),
}
# Names of the packed corpora; each stays as long as its utterances are the same, as `demo.FOLDER` does.
FOLDERS = {"values": "demo-values-101361370d", "labels": "demo-labels-3f47e8d51c"}


def settings(kind: str) -> dict[str, object]:
    """The constants that a corpus is made from."""
    columns = list(TARGETS[kind].columns)
    if kind == "values":
        return {"target": kind, "columns": columns, "missing_share": MISSING_SHARE}
    return {"target": kind, "columns": columns, "label_share": LABEL_SHARE, "positions": list(POSITIONS)}


def draw(
    rng: np.random.Generator, kind: str, utterances: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw the target of U utterances.

    Returns:
        values [U, K], NaN where missing; positions [U, K] on the directions, which are never missing.
    """
    if kind == "values":
        position = rng.uniform(-1, 1, (utterances, 2)).round(3)
        values = position.copy()
        values[rng.random(utterances) < MISSING_SHARE, 1] = np.nan
        return values, position
    present = rng.random((utterances, len(TARGETS[kind].columns))) < LABEL_SHARE
    intensity = np.where(present, rng.integers(1, len(POSITIONS), present.shape), 0)
    return intensity.astype(np.float64), np.array(POSITIONS)[intensity]
