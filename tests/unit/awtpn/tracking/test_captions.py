"""The words for an utterance's truth and prediction, in every task."""

from __future__ import annotations

import numpy as np
import pytest

from awtpn.model.task import Task
from awtpn.tracking.captions import (
    COLORS,
    OTHERS,
    Caption,
    caption,
    color_words,
    join_fitting,
    predicted_words,
    shorten,
    truth_words,
)

NAN = float("nan")
CLASSES = Task("classification", ["calm", "happy", "sad"])
LABELS = Task("multilabel", ["happy", "sad", "angry"])
VALUES = Task("regression", ["valence", "arousal"], [[-3, 3], [1, 5]], levels=7)


def array(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float64)


def test_a_class_has_its_name_and_its_probability() -> None:
    assert caption(array(1), array(0.05, 0.9, 0.05), CLASSES) == Caption("happy", "happy 90 %", True)
    assert caption(array(2), array(0.05, 0.9, 0.05), CLASSES) == Caption("sad", "happy 90 %", False)
    assert truth_words(array(2), CLASSES) == "sad"
    assert predicted_words(array(0.05, 0.9, 0.05), CLASSES) == "happy"
    long = Task("classification", ["an emotion whose name is long", "sad"])
    said = caption(array(0), array(1.0, 0.0), long)
    assert said.truth == "an emotion wh…name is long"
    assert said.answer == "an emotion wh…name is long 100 %"
    assert truth_words(array(0), long) == long.names[0]


@pytest.mark.parametrize(
    ("truth", "probability", "expected"),
    [
        ((1, 2, 0), (0.81, 0.63, 0.5), Caption("happy + sad", "happy 81 % + sad 63 %", True)),
        ((1, 0, 0), (0.6, 0.9, 0.1), Caption("happy", "sad 90 % + happy 60 %", False)),
        ((0, 0, 0), (0.1, 0.3, 0.2), Caption("none", "none (sad 30 %)", True)),
        ((0, NAN, 0), (0.1, 0.9, 0.2), Caption("none", "sad 90 %", True)),
        ((NAN, NAN, NAN), (0.1, 0.9, 0.2), Caption("unknown", "sad 90 %", None)),
        ((1, 1, 1), (0.7, 0.8, 0.9), Caption("happy + sad + angry", "angry 90 % + sad 80 % + …", True)),
    ],
)
def test_labels_are_a_set(
    truth: tuple[float, ...], probability: tuple[float, ...], expected: Caption
) -> None:
    assert caption(array(*truth), array(*probability), LABELS) == expected
    assert truth_words(array(*truth), LABELS) == expected.truth


def test_values_are_rounded_and_may_be_unknown() -> None:
    said = caption(array(-1.2345, NAN), array(-0.001, 3.0), VALUES)
    assert said == Caption("true -1.23, unknown", "predicted -0.001, 3", None)
    assert truth_words(array(-0.0, NAN), VALUES) == "valence 0, arousal unknown"
    assert predicted_words(array(2.5, 4.25), VALUES) == "valence 2.5, arousal 4.25"
    many = Task("regression", [f"v{i}" for i in range(12)], [[0, 1]] * 12, levels=2)
    said = caption(np.linspace(0, 1, 12), np.linspace(0, 1, 12), many)
    assert said.truth == "true 0, 0.0909, 0.182, …"
    assert len(said.answer) <= 30


def test_utterances_are_colored_by_class_rounded_value_or_labels() -> None:
    assert color_words(array(2, 0)[:, None], CLASSES) == ["sad", "calm"]
    values = np.array([[-2.6, 1], [0.4, NAN], [9.0, 2], [NAN, 3]])
    assert color_words(values, VALUES) == ["valence -3", "valence 0", "valence 3", "valence unknown"]
    fine = Task("regression", ["v"], [[0, 1]], levels=1_000)
    assert len(set(color_words(np.linspace(0, 1, 500)[:, None], fine))) == COLORS
    assert color_words(np.array([[1.0, 0, 1], [0, 0, 0]]), LABELS) == ["happy + angry", "none"]


def test_rare_sets_of_labels_share_a_color() -> None:
    task = Task("multilabel", list("abcdef"))
    rows = (np.arange(64)[:, None] >> np.arange(6)) & 1
    often = np.repeat(rows[:COLORS], 2, axis=0)
    words = color_words(np.concatenate([rows, often]).astype(np.float64), task)
    assert words[:COLORS] == [truth_words(row, task) for row in rows[:COLORS].astype(np.float64)]
    assert set(words[COLORS:64]) == {OTHERS}


def test_what_does_not_fit_is_left_out_by_words() -> None:
    assert join_fitting(["happy", "sad"], " + ", 11) == "happy + sad"
    assert join_fitting(["happy", "sad"], " + ", 10) == "happy + …"
    assert join_fitting(["happy", "sad"], " + ", 1) == "happy + …", "one at least"
    assert join_fitting([], " + ", 5) == ""
    assert shorten("sad\x1b[2J") == r"sad\x1b[2J"
    assert len(shorten("x" * 99)) == 26
