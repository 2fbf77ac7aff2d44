"""Tasks: what the prototypes stand for, and how values and probabilities are read off the logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from awtpn.model.task import (
    Task,
    level_values,
    predicted_units,
    predicted_values,
    probabilities,
    states_of_values,
    task_of_card,
    units_of_values,
)

NAN = math.nan
SENTIMENT = Task("regression", ["sentiment"], [[-3, 3]], levels=7)
TWO = Task("regression", ["valence", "activation"], [[1, 5], [-1, 1]], levels=3)
LABELS = Task("multilabel", ["happy", "sad"])


def tensor(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_groups_of_prototypes() -> None:
    assert Task("classification", ["a", "b"]).groups == [("class", ["a", "b"])]
    assert LABELS.states == ["no happy", "happy", "no sad", "sad"]
    assert TWO.states[:3] == ["valence 1", "valence 3", "valence 5"]
    for task, sizes, outputs in ((LABELS, [2, 2], 2), (TWO, [3, 3], 6), (SENTIMENT, [7], 7)):
        assert task.group_sizes == sizes
        assert task.outputs == outputs
        assert len(task.states) == sum(sizes)
    assert Task("regression", ["v"], [[0, 1]], 5, head="linear").outputs == 1


def test_states_of_values_by_hand() -> None:
    assert level_values(SENTIMENT).tolist() == [[-3, -2, -1, 0, 1, 2, 3]]
    shares = states_of_values(tensor([[0], [1.25], [3], [7], [NAN]]), SENTIMENT)
    expected = [
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0.75, 0.25, 0],
        [0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 1],  # outside of the range: the last level
        [0] * 7,
    ]
    torch.testing.assert_close(shares, tensor(expected), rtol=0, atol=1e-12)
    assert states_of_values(tensor([[2, NAN]]), TWO).tolist() == [[0.5, 0.5, 0, 0, 0, 0]]
    assert states_of_values(tensor([[0, 1.33], [NAN, 0]]), LABELS).tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]


@given(st.lists(st.floats(1, 5), min_size=1, max_size=4), st.integers(2, 9))
def test_the_mean_of_the_levels_by_a_values_states_is_the_value(values: list[float], levels: int) -> None:
    task = Task("regression", ["valence"], [[1, 5]], levels)
    shares = states_of_values(tensor([[v] for v in values]), task)
    assert np.allclose(shares.numpy() @ level_values(task)[0], values, atol=1e-12)
    # So logits whose softmax is these shares give the value.
    found = predicted_values(shares.clamp(min=1e-300).log(), task)
    assert np.allclose(found[:, 0].numpy(), values, atol=1e-9)


def test_values_and_probabilities_of_logits() -> None:
    linear = Task("regression", ["valence", "activation"], [[1, 5], [-1, 1]], 3, head="linear")
    assert predicted_values(tensor([[0, 0], [1, -0.5]]), linear).tolist() == [[3, 0], [5, -0.5]]
    assert predicted_values(torch.zeros(1, 6, dtype=torch.bfloat16), TWO).tolist() == [[3, 0]]
    assert probabilities(tensor([[0, math.log(3)]]), LABELS)[0].tolist() == pytest.approx([0.5, 0.75])
    classes = Task("classification", ["a", "b"])
    assert probabilities(tensor([[0, math.log(3)]]), classes)[0].tolist() == pytest.approx([0.25, 0.75])


def test_a_narrow_range_far_from_zero_is_exact() -> None:
    task = Task("regression", ["year"], [[1e8, 1e8 + 1]], levels=5)
    values = tensor([[1e8], [1e8 + 0.25], [1e8 + 0.625]])
    assert units_of_values(values, task).flatten().tolist() == [-1, -0.5, 0.25]
    found = predicted_units(states_of_values(values, task).clamp(min=1e-30).log().float(), task)
    assert found.flatten().tolist() == pytest.approx([-1, -0.5, 0.25], abs=1e-6)


def test_a_card_keeps_the_task() -> None:
    for task in (SENTIMENT, TWO, LABELS, Task("classification", ["x", "y"], column="speaker")):
        assert task_of_card({"classes": [], "task": task.record()}) == task
    assert task_of_card({"classes": ["a", "b"]}) == Task("classification", ["a", "b"])


@pytest.mark.parametrize(
    "record",
    [
        {"type": "ranking", "names": ["a"]},
        {"type": "classification", "names": []},
        {"type": "classification", "names": ["a", "a"]},
        {"type": "regression", "names": ["v"], "levels": 7},
        {"type": "regression", "names": ["v"], "ranges": [[1, 1]], "levels": 7},
        {"type": "regression", "names": ["v"], "ranges": [[0, math.inf]], "levels": 7},
        {"type": "regression", "names": ["v"], "ranges": [[0, 1]], "levels": 1},
        {"type": "regression", "names": ["v"], "ranges": [[0, 1]], "levels": 10**12},
        {"type": "regression", "names": ["v"], "ranges": [[0, 1]], "levels": 3, "head": "x"},
        {"type": "multilabel", "names": ["a"], "more": 1},
        "multilabel",
    ],
)
def test_a_forged_task_is_refused(record: Any) -> None:
    with pytest.raises(ValueError, match="task"):
        task_of_card({"classes": [], "task": record})
