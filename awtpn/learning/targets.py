"""What the losses take from an utterance's target: states of prototypes, codes for negatives, counts.

A target is a class, or values [K] of which some may be missing (NaN); see `awtpn.model.task`. A missing value
takes part in no loss, and its utterance does not count in the mean over that dimension or label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from awtpn.model.task import Task, states_of_values
from shards import FeatureBatch

Values = NDArray[np.float64]

# Codes stay below this prime, so that a slot table can pack them with the modalities into one integer.
CODE_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class TargetCounts:
    """Of K dimensions or labels, over the global batch: what the losses' means are divided by.

    Attributes:
        known: [K] utterances whose value is known.
        weight: [K] sum of their class weights (multilabel); the same as `known` without class weights.
        known_with: per modality [K] those among the known that have it.
    """

    known: Values
    weight: Values
    known_with: dict[str, Values]


def states_of_batch(label: Tensor, values: Tensor, task: Task) -> Tensor:
    """How much each state of the prototype table belongs to an utterance: [B, S] float32.

    Args:
        label: int64 [B], of classification.
        values: [B, K], of the other tasks.
    """
    if task.type == "classification":
        return F.one_hot(label, len(task.names)).float()
    return states_of_values(values, task).float()


def nearest_states(states: Tensor, task: Task) -> Tensor:
    """The state of each group that an utterance belongs to most: [B, S] shares -> [B, S] bool.

    None of a group whose value is missing.
    """
    groups = states.unflatten(1, (len(task.group_sizes), -1))
    nearest = F.one_hot(groups.argmax(-1), groups.shape[-1]).bool()
    return (nearest & (groups.sum(-1, keepdim=True) > 0)).flatten(1)


def target_codes(batch: FeatureBatch, task: Task) -> NDArray[np.int64]:
    """A number [B] that is equal for utterances with the same target: negatives have another one.

    It is the class; or the states of all labels or dimensions (the nearest level of each), where missing is a
    state of its own.
    """
    if task.type == "classification":
        label: NDArray[np.int64] = batch.host_label.numpy()
        return label
    shares = states_of_values(batch.host_target, task).unflatten(1, (len(task.names), -1))
    groups = shares.numpy()  # [B, K, states]
    missing = ~groups.any(-1)
    digits = np.where(missing, groups.shape[-1], shares.argmax(-1).numpy())
    codes = np.zeros(len(batch), np.int64)
    for k in range(len(task.names)):
        # Of very many labels, two sets may get the same code; then they are no negatives of each other.
        codes = (codes * (groups.shape[-1] + 1) + digits[:, k]) % CODE_LIMIT
    return codes


def count_targets(batch: FeatureBatch, task: Task, present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """This rank's part of the `TargetCounts`, as one vector that can be summed over ranks.

    Args:
        present: [M, B] whether an utterance has modality m.

    Returns:
        [(2 + M) K], empty for classification.
    """
    if task.type == "classification":
        return np.zeros(0, np.int64)
    values = batch.host_target.numpy()
    known = ~np.isnan(values)
    with_modality = present.astype(np.int64) @ known.astype(np.int64)  # [M, K]
    counts = [known.sum(0), (values > 0).sum(0), *with_modality]
    return np.concatenate(counts).astype(np.int64)


def read_target_counts(
    vector: NDArray[np.int64], modalities: list[str], class_weights: Values | None
) -> TargetCounts | None:
    """The counts in the sum of all ranks' vectors; None for classification.

    Args:
        class_weights: [K, 2] of each label's absence and presence; None for equal ones.
    """
    if not len(vector):
        return None
    known, positive, *with_modality = vector.reshape(2 + len(modalities), -1).astype(np.float64)
    weight = known
    if class_weights is not None:
        weight = class_weights[:, 0] * (known - positive) + class_weights[:, 1] * positive
    return TargetCounts(known, weight, dict(zip(modalities, with_modality, strict=True)))


def balanced_label_weights(values: Values) -> Values:
    """Weights [K, 2] of a label's absence and presence: utterances / (2 * utterances with that state).

    Args:
        values: [U, K] of the training utterances; NaN where it is not known.
    """
    known, positive = (~np.isnan(values)).sum(0), (values > 0).sum(0)
    counts = np.stack([known - positive, positive], axis=1)
    weights: Values = known[:, None] / (2.0 * np.maximum(counts, 1))
    return weights
