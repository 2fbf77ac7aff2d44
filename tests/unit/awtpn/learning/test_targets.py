"""Targets of labels and values: states, codes for negatives, counts, and what is missing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from support import batch, utterances

from awtpn.learning.targets import (
    balanced_label_weights,
    count_targets,
    nearest_states,
    read_target_counts,
    states_of_batch,
    target_codes,
)
from awtpn.model.task import Task
from shards import FeatureBatch

NAN = math.nan
VALUES = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=3)
LABELS = Task("multilabel", ["happy", "sad"])
CLASSES = Task("classification", ["a", "b", "c"])


def with_target(values: list[list[float]]) -> FeatureBatch:
    of = batch(utterances([(2, 2), (1, 0), (0, 3), (2, 1)][: len(values)]), [0] * len(values))
    target = torch.tensor(values, dtype=torch.float64)
    return replace(of, target=target, host_target=target)


def test_the_nearest_state_of_each_group() -> None:
    states = states_of_batch(torch.zeros(2), torch.tensor([[0.9, NAN], [-3.0, 4.4]]), VALUES)
    assert nearest_states(states, VALUES).int().tolist() == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1]]
    one_hot = states_of_batch(torch.tensor([2, 0]), torch.zeros(2, 0), CLASSES)
    assert one_hot.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert torch.equal(nearest_states(one_hot, CLASSES), one_hot.bool())


def test_codes_are_equal_for_equal_targets_alone() -> None:
    same = with_target([[1.6, 2.0], [2.9, 1.9], [1.4, 2.0], [1.6, NAN]])
    codes = target_codes(same, VALUES).tolist()
    assert codes[0] == codes[1], "the same nearest levels"
    assert len(set(codes)) == 3, "another level, and a missing value, are other targets"
    labels = target_codes(with_target([[0, 1], [0, 2.5], [1, 0], [NAN, 1]]), LABELS).tolist()
    assert labels[0] == labels[1], "intensities don't count"
    assert len(set(labels)) == 3
    classes = batch(utterances([(1, 1)] * 3), [2, 0, 2])
    assert target_codes(classes, CLASSES).tolist() == [2, 0, 2]
    # Also of so many labels that the code does not fit: it stays in its limit.
    many = Task("multilabel", [f"label {i}" for i in range(100)])
    assert 0 <= target_codes(with_target([[1.0] * 100, [0.0] * 100]), many).max() < 2**31


def test_counts_add_up_over_ranks_and_leave_missing_values_out() -> None:
    whole = with_target([[1, 0], [NAN, 2], [0, NAN], [3, 3]])
    present = np.array([[True, True, False, True], [True, False, True, True]])
    total = count_targets(whole, LABELS, present)
    parts = [count_targets(m, LABELS, present[:, i * 2 : i * 2 + 2]) for i, m in enumerate(whole.split(2))]
    assert sum(parts).tolist() == total.tolist()  # type: ignore[union-attr]
    counts = read_target_counts(total, ["audio", "video"], None)
    assert counts is not None
    assert counts.known.tolist() == [3, 3]
    assert counts.known_with["audio"].tolist() == [2, 3]
    assert counts.known_with["video"].tolist() == [3, 2]
    weighted = read_target_counts(total, ["audio", "video"], np.array([[1.0, 10.0], [2.0, 3.0]]))
    assert weighted is not None
    assert weighted.weight.tolist() == [1 + 2 * 10, 2 + 2 * 3]
    assert read_target_counts(count_targets(whole, CLASSES, present), ["audio"], None) is None


def test_balanced_weights_of_labels() -> None:
    weights = balanced_label_weights(np.array([[1, 0], [0, 0], [0, NAN], [0, 0.5]]))
    assert np.allclose(weights, [[4 / 6, 4 / 2], [3 / 4, 3 / 2]])
    assert np.isfinite(balanced_label_weights(np.array([[1.0], [NAN]]))).all()
