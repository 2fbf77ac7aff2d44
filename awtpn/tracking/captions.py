"""Words for the truth and the prediction of an utterance, by task: for figures, and for the projector.

The truth of an utterance is [K] float64: of classification its label [1], else its values or intensities, NaN
where one is missing. Its prediction is [K] too: values, or the probabilities of the classes or labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.multilabel import THRESHOLD
from awtpn.model.task import Task
from shards.safe_io.printable import printable

UNKNOWN, NONE, OTHERS = "unknown", "none", "other labels"
JOINED = " + "
LETTERS = 26  # of a name in a figure
ANSWER_LETTERS = 30  # of an answer in a figure, which has more than a name
# Colors that the projector shows besides those of classes; it has no more than 50 for a column.
COLORS = 12


@dataclass(frozen=True)
class Caption:
    """What a figure says of an utterance: its truth, the model's answer, and whether that is right.

    `right` is None if an answer is only near to the truth or far from it, or if no truth is known.
    """

    truth: str
    answer: str
    right: bool | None


def caption(truth: NDArray[np.float64], predicted: NDArray[np.float64], task: Task) -> Caption:
    """The words for an utterance in a figure, as long as there is room for."""
    if task.type == "classification":
        label, best = int(truth[0]), int(predicted.argmax())
        answer = f"{shorten(task.names[best])} {_percent(predicted[best])}"
        return Caption(shorten(task.names[label]), answer, label == best)
    if task.type == "regression":
        given, found = ([_number(value) for value in values] for values in (truth, predicted))
        return Caption(
            f"true {join_fitting(given, ', ', LETTERS - 5)}",
            f"predicted {join_fitting(found, ', ', ANSWER_LETTERS - 10)}",
            None,
        )
    known, present = ~np.isnan(truth), predicted > THRESHOLD
    ranked = [i for i in np.argsort(-predicted, kind="stable") if present[i]]
    words = [f"{shorten(task.names[i])} {_percent(predicted[i])}" for i in ranked]
    best = int(predicted.argmax())
    answer = join_fitting(words, JOINED, ANSWER_LETTERS)
    return Caption(
        join_fitting([shorten(word) for word in label_words(truth, task)], JOINED, LETTERS),
        answer or f"{NONE} ({shorten(task.names[best], LETTERS - 6)} {_percent(predicted[best])})",
        bool(((truth > 0) == present)[known].all()) if known.any() else None,
    )


def truth_words(truth: NDArray[np.float64], task: Task) -> str:
    """The truth: "happy", "happy + sad" or "none" of several labels, or "valence 3.5, arousal unknown"."""
    if task.type == "classification":
        return task.names[int(truth[0])]
    if task.type == "regression":
        return ", ".join(f"{name} {_number(value)}" for name, value in zip(task.names, truth, strict=True))
    return JOINED.join(label_words(truth, task))


def label_words(truth: NDArray[np.float64], task: Task) -> list[str]:
    """Names of the labels that are present; "none" or "unknown" alone if there are none."""
    if np.isnan(truth).all():
        return [UNKNOWN]
    return [task.names[i] for i in np.flatnonzero(truth > 0)] or [NONE]


def predicted_words(predicted: NDArray[np.float64], task: Task) -> str:
    """The prediction, in the words of `truth_words`."""
    if task.type == "classification":
        return task.names[int(predicted.argmax())]
    if task.type == "multilabel":
        return truth_words((predicted > THRESHOLD).astype(np.float64), task)
    return truth_words(predicted, task)


def color_words(truth: NDArray[np.float64], task: Task) -> list[str]:
    """By what to color each of N utterances [N, K] in the projector; few words in all.

    - classification: the class
    - regression: the value of the first dimension, rounded to one of a few that are evenly spaced
    - multilabel: the labels; those of rare sets of labels are together
    """
    if task.type == "regression":
        assert task.ranges is not None
        low, high = task.ranges[0]
        steps = np.linspace(low, high, min(task.levels, COLORS))
        nearest = [
            UNKNOWN if np.isnan(value) else _number(steps[np.abs(steps - value).argmin()])
            for value in truth[:, 0]
        ]
        return [f"{task.names[0]} {value}" for value in nearest]
    words = [truth_words(row, task) for row in truth]
    if task.type == "classification":
        return words
    often = {word for word, _ in Counter(words).most_common(COLORS)}
    return [word if word in often else OTHERS for word in words]


def join_fitting(words: Sequence[str], between: str, letters: int) -> str:
    """The words joined by `between`; if they have more letters, the first ones (one at least) and "…"."""
    kept = len(words)
    while kept > 1 and len(between.join([*words[:kept], *["…"] * (kept < len(words))])) > letters:
        kept -= 1
    return between.join([*words[:kept], *["…"] * (kept < len(words))])


def shorten(name: str, letters: int = LETTERS) -> str:
    """A name in one line of at most so many letters, without those of its middle if it has more."""
    name = printable(name)
    return name if len(name) <= letters else f"{name[: letters // 2]}…{name[-(letters // 2 - 1) :]}"


def _number(value: float) -> str:
    return UNKNOWN if np.isnan(value) else f"{value + 0.0:.3g}"


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f} %"
