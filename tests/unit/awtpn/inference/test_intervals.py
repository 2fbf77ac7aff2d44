"""Prediction intervals: where their width comes from, and how many true values they hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from awtpn.inference.intervals import half_widths, interval_around, results_of_run
from awtpn.inference.results_intervals import coverage, measure
from awtpn.metrics.bootstrap_values import bootstrap_labels, bootstrap_values
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.model.task import Task
from awtpn.run.predictions import truth_and_predictions

SENTIMENT = Task("regression", ["sentiment"], [[-3, 3]], levels=7)
LABELS = Task("multilabel", ["happy", "sad"])


def validated(**entry: Any) -> dict[str, Any]:
    return {"val": {"task": "regression", "per_dimension": {"sentiment": entry}}}


@pytest.mark.parametrize(
    ("results", "half"),
    [
        (validated(interval=0.5), 0.5),
        (validated(interval=0), 0.0),
        (validated(interval=None), None),
        (validated(), None),
        # Cards may be forged.
        (validated(interval=-1), None),
        (validated(interval=math.nan), None),
        (validated(interval=math.inf), None),
        (validated(interval=10**300), 1e300),
        (validated(interval=True), None),
        (validated(interval="1"), None),
        (validated(interval=[1]), None),
        ({"val": {"task": "regression", "per_dimension": {"sentiment": 3}}}, None),
        ({"val": {"task": "regression", "per_dimension": [3]}}, None),
        ({"val": {"task": "multilabel", "per_dimension": {"sentiment": {"interval": 1.0}}}}, None),
        ({"val": {"task": ["regression"]}}, None),
        ({"val": 3}, None),
        ({"test": validated(interval=0.5)["val"]}, None),
        ([], None),
        ("val", None),
        (None, None),
    ],
)
def test_half_widths_are_those_of_the_validation(results: Any, half: float | None) -> None:
    assert half_widths(results, SENTIMENT) == {"sentiment": half}
    assert half_widths(results, LABELS) == {}


@given(st.floats(-9, 9), st.floats(0, 20))
def test_an_interval_lies_within_the_range(value: float, half: float) -> None:
    interval = interval_around(value, half, [-3, 3])
    assert interval is not None
    low, high = interval
    assert -3 <= low <= high <= 3
    if -3 <= value <= 3:
        assert low <= value <= high
    for truth in np.linspace(-3, 3, 13):  # cutting leaves no true value out
        if abs(truth - value) <= half:
            assert low <= truth <= high
    assert interval_around(value, None, [-3, 3]) is None


def test_nine_of_ten_true_values_lie_within() -> None:
    """Of other utterances like those of the validation; on average over validations."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        truth = rng.uniform(-3, 3, (100, 1))
        predicted = 0.6 * truth + rng.standard_t(4, (100, 1)) * 0.3
        figures = summarize_values(truth[:50], predicted[:50], ["sentiment"], [[-3, 3]])
        width = half_widths({"val": figures}, SENTIMENT)
        shares.append(coverage(truth[50:], predicted[50:], SENTIMENT, width)["sentiment"])
    # ceil(0.9 * 51) = 46 of 51.
    assert np.mean(shares) == pytest.approx(46 / 51, abs=0.01)


def test_results_are_looked_for_in_the_run_of_a_checkpoint(tmp_path: Path) -> None:
    for step in (3, 7):
        folder = tmp_path / f"run/checkpoints/step-{step:08d}"
        folder.mkdir(parents=True)
        record = {"position": {"step": step}, "files": {"model.safetensors": {"sha256": str(step)}}}
        (folder / "checkpoint.json").write_text(json.dumps(record))
        (folder / "config.json").write_text("{}")
    run = tmp_path / "run"
    (run / "checkpoints/best").symlink_to("step-00000007")
    assert results_of_run(run).results is None
    results = {"checkpoint": {"step": 7, "sha256": "7"}, **validated(interval=1.5)}
    (run / "results.json").write_text(json.dumps(results))
    for place in (run, run / "checkpoints/best", run / "checkpoints/step-00000007", str(run)):
        assert results_of_run(place).results == results
    other = results_of_run(run / "checkpoints/step-00000003")
    assert other.results is None
    assert other.note is not None
    assert "was measured on other weights (of step 7), not on step-00000003" in other.note
    for place in (tmp_path, "user/model", tmp_path / "none"):
        assert results_of_run(place).results is None


# --- Of a run's results --------------------------------------------------------------------------


def written(folder: Path, lines: list[dict[str, Any]], role: str = "test") -> Path:
    (folder / f"predictions-{role}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_values_are_measured_by_their_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(-3, 3, (60, 1)).round(6)
    truth[::7] = np.nan
    predicted = (0.5 * truth + rng.normal(0, 0.5, (60, 1))).round(6)
    predicted[np.isnan(predicted)] = 0.25
    figures = summarize_values(truth, predicted, ["sentiment"], [[-3, 3]])
    card = {"classes": [], "task": SENTIMENT.record(), "results": validated(interval=1.0) | {"test": figures}}
    lines = [
        {"key": f"u{i}", "values": {"sentiment": None if np.isnan(t) else t}, "predicted": {"sentiment": p}}
        for i, (t, p) in enumerate(zip(truth[:, 0].tolist(), predicted[:, 0].tolist(), strict=True))
    ]
    assert measure(card, tmp_path) == (None, None), "no predictions were kept"
    measured, note = measure(card, written(tmp_path, lines))
    assert note is None
    assert measured is not None
    assert measured.intervals == bootstrap_values(truth, [predicted], [[-3, 3]])
    within = [abs(t - p) <= 1 for t, p in zip(truth[:, 0], predicted[:, 0], strict=True) if not np.isnan(t)]
    assert measured.coverage == {"sentiment": np.mean(within)}
    # The validation utterances themselves cannot tell it.
    of_val = card | {"results": {"val": figures}}
    measured, _ = measure(of_val, written(tmp_path, lines, "val"))
    assert measured is not None
    assert measured.coverage == {}
    # Predictions of other weights, of fewer utterances, of another task.
    off = [line | {"predicted": {"sentiment": 0.1}} for line in lines]
    for others in (
        off,
        lines[2:],
        [],
        [{"key": "u", "labels": {"happy": 1}, "probabilities": {"happy": 1.0}}],
    ):
        measured, note = measure(card, written(tmp_path, others))
        assert measured is None
        assert note is not None
        assert "predictions-test.jsonl does not match the results" in note
    (tmp_path / "predictions-test.jsonl").write_text("oops\n")
    with pytest.raises(ValueError, match=r"predictions-test.jsonl, line 1: not a prediction"):
        measure(card, tmp_path)


def test_labels_are_measured_by_their_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, (50, 2)).astype(float)
    probability = rng.uniform(0, 1, (50, 2)).round(6)
    figures = summarize_labels(truth, probability, LABELS.names)
    lines = [
        {
            "key": f"u{i}",
            "labels": dict(zip(LABELS.names, t, strict=True)),
            "probabilities": dict(zip(LABELS.names, p, strict=True)),
        }
        for i, (t, p) in enumerate(zip(truth.tolist(), probability.tolist(), strict=True))
    ]
    found = truth_and_predictions(lines, LABELS.type, LABELS.names)
    assert found is not None
    np.testing.assert_array_equal(found[0], truth)
    np.testing.assert_array_equal(found[1], probability)
    card = {"classes": [], "task": LABELS.record(), "results": {"test": figures}}
    measured, note = measure(card, written(tmp_path, lines))
    assert (note, measured and measured.intervals) == (None, bootstrap_labels(truth, [probability]))
