"""The figures of an evaluation: gathered from batches and ranks in any order, each utterance once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support import ALONE, batch, utterances

from awtpn.distributed.world import World
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.model.task import Task, predicted_values
from awtpn.run.predictions import prediction_lines
from awtpn.training.scores import binary_cross_entropy, make_scores
from shards import FeatureBatch

NAN = float("nan")
VALUES = np.array([[-3, 1], [0.5, NAN], [2.25, 4], [NAN, 2], [3, 5], [-1, NAN], [0, 3]])
LEVELS = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5)
LINEAR = replace(LEVELS, head="linear")
LABELS = Task("multilabel", ["loud", "bright"])


def part(values: np.ndarray, step: int, first: int) -> FeatureBatch:
    """A rank's share of a global batch, whose places begin at `first`; it may be empty."""
    target = torch.from_numpy(values)
    made = batch(utterances([(1, 1)] * len(values)), [0] * len(values), num_places=2)
    return replace(
        made, target=target, host_target=target, place=torch.arange(first, first + len(values)), step=step
    )


@pytest.mark.parametrize("task", [LEVELS, LINEAR, LABELS])
def test_parts_of_ranks_are_put_into_plan_order(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with two places each: steps of 4, 3 and 0 utterances; the second rank ends without any."""
    logits = torch.randn(7, task.outputs, generator=torch.Generator().manual_seed(0))
    whole = make_scores(task, ALONE)
    whole.add(part(VALUES, 0, 0), logits)
    expected = whole.figures(ALONE)

    ranks: list[Any] = [make_scores(task, ALONE) for _ in range(2)]
    for step, rank, rows in ((0, 0, [0, 1]), (0, 1, [2, 3]), (1, 0, [4, 5]), (1, 1, [6]), (2, 1, [])):
        ranks[rank].add(part(VALUES[rows], step, 2 * rank), logits[rows])
    sent: list[Any] = []
    monkeypatch.setattr(World, "all_gather_object", lambda self, value: sent.append(value) or [value])
    for scores in ranks:
        scores.figures(ALONE)
    monkeypatch.setattr(World, "all_gather_object", lambda self, value: sent[::-1])
    assert ranks[0].figures(ALONE) == ranks[1].figures(ALONE) == expected

    if task.type == "regression":
        predicted = predicted_values(logits.double(), task).numpy()
        assert expected == summarize_values(VALUES, predicted, task.names, task.ranges)
    else:
        own = summarize_labels(VALUES, logits.double().sigmoid().numpy(), task.names)
        entropy = binary_cross_entropy(VALUES, logits.double().numpy())
        assert expected == own | {"cross-entropy": entropy}


def test_levels_are_reduced_to_values_batch_by_batch() -> None:
    """The logits of many levels would fill the device's memory on a large split."""
    scores: Any = make_scores(LEVELS, ALONE)
    scores.add(part(VALUES, 0, 0), torch.zeros(7, LEVELS.outputs))
    assert [tuple(kept.shape) for *_, kept in scores.parts] == [(7, 2)]


def test_the_cross_entropy_of_known_labels() -> None:
    logits = np.array([[2.0, -800.0], [0.0, 3.0]])
    found = binary_cross_entropy(np.array([[1.0, 2.0], [0.0, NAN]]), logits)
    assert found == pytest.approx((np.log1p(np.exp(-2)) + 800 + np.log(2)) / 3)
    assert binary_cross_entropy(np.full((2, 2), NAN), logits) is None
    assert binary_cross_entropy(np.zeros((2, 2)), np.full((2, 2), NAN)) is None


def test_predictions_of_a_small_unit_keep_their_digits() -> None:
    """Values are rounded by significant digits, and the truth not at all: 3e-7 is not 0, nor an absence."""
    task = Task("regression", ["seconds"], [[0, 1e-6]], head="linear", levels=2)
    made = part(np.array([[3e-7], [NAN]]), 0, 0)
    first, second = prediction_lines(made, torch.tensor([[0.5], [-1 / 3]]), task)
    assert first == {
        "key": "u0",
        "values": {"seconds": 3e-7},
        "predicted": {"seconds": pytest.approx(7.5e-7)},
    }
    assert second["values"] == {"seconds": None}
    assert second["predicted"]["seconds"] == pytest.approx(1e-6 / 3, rel=1e-6)
    [line] = prediction_lines(part(np.array([[1e-7, 0]]), 0, 0), torch.zeros(1, 2), LABELS)
    assert line == {
        "key": "u0",
        "labels": {"loud": 1e-7, "bright": 0.0},
        "probabilities": {"loud": 0.5, "bright": 0.5},
    }


def test_the_cross_entropy_has_the_same_bits_in_any_order() -> None:
    task = Task("classification", ["a", "b", "c"])
    logits = 20 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = [0, 1, 2, 0, 1] * 10
    found = set()
    for order in (range(50), reversed(range(50)), [*range(1, 50, 2), *range(0, 50, 2)]):
        scores = make_scores(task, ALONE)
        for i in order:
            scores.add(batch(utterances([(1, 1)]), label[i : i + 1]), logits[i : i + 1])
        found.add(scores.figures(ALONE)["cross-entropy"])
    [value] = found
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(label))
    assert value == pytest.approx(float(expected), rel=1e-9)


def test_the_cross_entropy_of_logits_that_are_not_finite_is_not_a_number() -> None:
    scores = make_scores(Task("classification", ["a", "b"]), ALONE)
    scores.add(batch(utterances([(1, 1)] * 2), [0, 1]), torch.tensor([[NAN, 1.0], [0.0, 1.0]]))
    assert np.isnan(scores.figures(ALONE)["cross-entropy"])
