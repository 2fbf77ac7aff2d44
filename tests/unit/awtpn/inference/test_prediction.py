"""What a predictor answers in each task, by formulas of its own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from support import CLASSES, DIMS, small_model

from awtpn import Predictor
from awtpn.inference.prediction import Prediction, make_predictions
from awtpn.model.finite_outputs import NotFiniteError
from awtpn.model.task import Task
from shards.safe_io.json_text import json_text

VALUES = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5)
LINEAR = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5, head="linear")
LABELS = Task("multilabel", ["loud", "bright", "calm"])
VALIDATED = {
    "val": {
        "task": "regression",
        "per_dimension": {"valence": {"interval": 0.75}, "activation": {"interval": None}},
    }
}


def some(count: int = 9) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found = [{m: rng.normal(size=(i + 1, dim)) for m, dim in DIMS.items()} for i in range(count)]
    found[0]["video"] = None
    return found


def logits_of(predictor: Predictor, utterance: dict[str, Any]) -> np.ndarray:
    """By the network alone, of one utterance."""
    from awtpn.inference.inputs import check_features
    from awtpn.inference.predictor import pack_arrays

    arrays = check_features("u", utterance, DIMS)
    with torch.no_grad():
        return predictor.model({m: pack_arrays([arrays[m]], d) for m, d in DIMS.items()}).logits[0].numpy()


def test_classes_are_answered_as_ever() -> None:
    predictor = Predictor(small_model(dtype=torch.float32))
    for utterance, answer in zip(some(), predictor.predict(some()), strict=True):
        shares = np.exp(logits_of(predictor, utterance).astype(float))
        shares /= shares.sum()
        assert list(answer.probabilities) == CLASSES
        assert list(answer.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-6)
        assert answer.label == CLASSES[int(shares.argmax())]
        assert (answer.labels, answer.values, answer.intervals) == (None, None, None)
        assert list(answer.as_json()) == ["label", "probabilities", "weights"]


@pytest.mark.parametrize("task", [VALUES, LINEAR], ids=["levels", "linear"])
def test_values_and_their_intervals(task: Task) -> None:
    predictor = Predictor(small_model(dtype=torch.float32, task=task), results=VALIDATED)
    assert predictor.half_widths == {"valence": 0.75, "activation": None}
    for utterance, answer in zip(some(), predictor.predict(some()), strict=True):
        logits = logits_of(predictor, utterance).astype(float)
        if task.head == "levels":
            shares = np.exp(logits.reshape(2, 5))
            shares /= shares.sum(1, keepdims=True)
            expected = [shares[0] @ [-3, -1.5, 0, 1.5, 3], shares[1] @ [1, 2, 3, 4, 5]]
        else:
            expected = [3 * logits[0], 3 + 2 * logits[1]]
        assert answer.values is not None
        assert list(answer.values.items()) == [
            ("valence", pytest.approx(expected[0], abs=1e-5)),
            ("activation", pytest.approx(expected[1], abs=1e-5)),
        ]
        value = answer.values["valence"]
        assert answer.intervals == {
            "valence": (max(value - 0.75, -3), min(value + 0.75, 3)),
            "activation": None,
        }
        assert (answer.label, answer.labels, answer.probabilities) == (None, None, {})
        for weights in answer.weights.values():
            assert not len(weights) or weights.sum() == pytest.approx(1, abs=1e-5)
        written = json.loads(json_text(answer.as_json()))
        assert list(written) == ["values", "intervals", "weights"]
        assert written["values"]["valence"] == pytest.approx(value, abs=1e-6)
        assert written["intervals"]["valence"] == pytest.approx(answer.intervals["valence"], abs=1e-6)
        assert written["intervals"]["activation"] is None


def test_labels_and_their_probabilities() -> None:
    predictor = Predictor(small_model(dtype=torch.float32, task=LABELS))
    for utterance, answer in zip(some(), predictor.predict(some()), strict=True):
        expected = 1 / (1 + np.exp(-logits_of(predictor, utterance).astype(float)))
        assert list(answer.probabilities) == LABELS.names
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert answer.labels == [name for name, p in zip(LABELS.names, expected, strict=True) if p > 0.5]
        assert (answer.label, answer.values, answer.intervals) == (None, None, None)
        assert list(answer.as_json()) == ["labels", "probabilities", "weights"]


def test_a_label_is_present_where_the_metrics_count_it() -> None:
    """Above one half, and not at it: `metrics.multilabel`."""
    [answer] = make_predictions(torch.tensor([[0.0, 1e-3, -1e-3]]), {}, LABELS, {})
    assert answer.labels == ["bright"]
    assert answer.probabilities["loud"] == 0.5


def test_an_answer_in_words() -> None:
    assert Prediction("calm", {"calm": 1.0}, {}).described() == "calm"
    assert Prediction(None, {"a": 0.9, "b": 0.8}, {}, labels=["a", "b"]).described() == "a and b"
    assert Prediction(None, {"a": 0.1}, {}, labels=[]).described() == "no label"
    assert Prediction(None, {}, {}, values={"v": 3.21987, "a": -1.0}).described() == "v 3.22, a -1"


@pytest.mark.parametrize("task", [VALUES, LINEAR, LABELS], ids=["values", "linear", "labels"])
def test_answers_that_are_not_finite_are_refused(task: Task) -> None:
    model = small_model(dtype=torch.float32, task=task)
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(NotFiniteError, match="utterance 0"):
        Predictor(model).predict(some(2))


def test_without_validation_there_are_no_intervals() -> None:
    model = small_model(dtype=torch.float32, task=VALUES)
    [answer] = Predictor(model).predict(some(1))
    assert answer.intervals == {"valence": None, "activation": None}
    model.record = {"results": VALIDATED}  # as an export has them
    [answer] = Predictor(model).predict(some(1))
    assert answer.intervals is not None
    assert answer.intervals["valence"] is not None
