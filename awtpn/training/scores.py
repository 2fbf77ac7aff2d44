"""The figures of one evaluation, gathered batch by batch, for each task.

Classes are counted in a confusion matrix, which is summed over ranks. Values and labels are kept, a few
numbers per utterance, and put into plan order at the end: so the figures have the same bits for any number of
ranks, and no utterance counts twice.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from awtpn.distributed.world import World
from awtpn.metrics.classification import count_confusion, summarize
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.model.task import Task, predicted_values, probabilities
from shards import FeatureBatch

# Of the cross-entropy of an utterance: how exactly it is counted, and the most that is counted.
ENTROPY_UNIT, MOST_ENTROPY = 2.0**-32, 2.0**20


class Scores(Protocol):
    """What `evaluate` needs of a task's scores."""

    def add(self, batch: FeatureBatch, logits: Tensor) -> None:
        """Count a batch with its logits [B, outputs], both on the device."""

    def figures(self, world: World) -> dict[str, Any]:
        """The figures over all ranks; every rank calls and gets the same."""


def make_scores(task: Task, world: World) -> Scores:
    """Empty scores of a task."""
    if task.type == "classification":
        return ClassScores(task, world.device)
    return ValueScores(task)


class ClassScores:
    """A confusion matrix and the cross-entropy, on the device."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.names = task.names
        self.confusion = torch.zeros(len(self.names), len(self.names), dtype=torch.int64, device=device)
        # Whole numbers, whose sums do not depend on the order: of units, and of utterances without a value.
        self.entropy = torch.zeros(2, dtype=torch.int64, device=device)

    def add(self, batch: FeatureBatch, logits: Tensor) -> None:
        """See `Scores`."""
        self.confusion += count_confusion(batch.label, logits.argmax(-1), len(self.names))
        of_each = F.cross_entropy(logits.double(), batch.label, reduction="none")
        units = (of_each.clamp(max=MOST_ENTROPY) / ENTROPY_UNIT).round()
        finite = of_each.isfinite()
        self.entropy += torch.stack([torch.where(finite, units, 0.0).long().sum(), (~finite).sum()])

    def figures(self, world: World) -> dict[str, Any]:
        """`classification.summarize`, and the mean "cross-entropy" per utterance."""
        figures = summarize(world.sum(self.confusion.cpu().numpy()), self.names)
        units, undefined = world.sum(self.entropy.cpu().numpy()).tolist()
        mean = units * ENTROPY_UNIT / max(figures["utterances"], 1)
        return figures | {"cross-entropy": math.nan if undefined else mean}


class ValueScores:
    """The truth, and the prediction, of each utterance: of values, or of the labels' probabilities."""

    def __init__(self, task: Task) -> None:
        self.task = task
        # Per batch: step, places, truth [B, K], and on the device values or logits of labels [B, K].
        self.parts: list[tuple[int, NDArray[np.int64], NDArray[np.float64], Tensor]] = []

    def add(self, batch: FeatureBatch, logits: Tensor) -> None:
        """See `Scores`."""
        found = logits.double()
        if self.task.type == "regression":  # at once, since the logits of levels are many
            found = predicted_values(found, self.task)
        self.parts.append((batch.step, batch.place.numpy(), batch.host_target.numpy(), found))

    def figures(self, world: World) -> dict[str, Any]:
        """`regression.summarize_values`, or `multilabel.summarize_labels` and the mean "cross-entropy"."""
        own = [(*on_host, found.cpu().numpy()) for *on_host, found in self.parts]
        everyone = [part for of_rank in world.all_gather_object(own) for part in of_rank]
        none = np.zeros((0, len(self.task.names)))
        truth, found = (np.concatenate([none, *(part[i] for part in everyone)]) for i in (2, 3))
        steps = np.repeat([part[0] for part in everyone], [len(part[1]) for part in everyone])
        places = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in everyone)])
        order = np.lexsort((places, steps))  # the plan's: batch after batch, and within a batch by place
        truth, found = truth[order], found[order]
        if self.task.type == "regression":
            return summarize_values(truth, found, self.task.names, self.task.ranges)
        of_labels = probabilities(torch.from_numpy(found), self.task).numpy()
        return summarize_labels(truth, of_labels, self.task.names) | {
            "cross-entropy": binary_cross_entropy(truth, found)
        }


def binary_cross_entropy(truth: NDArray[np.float64], logits: NDArray[np.float64]) -> float | None:
    """Mean over the known labels of -log of the probability of the truth; [U, E] each, NaN is unknown.

    None if no label is known, or a logit is not finite.
    """
    known = ~np.isnan(truth)
    signed = np.where(truth > 0, logits, -logits)
    surprise = np.logaddexp(0.0, -signed)
    mean = float(surprise[known].mean()) if known.any() else math.nan
    return mean if math.isfinite(mean) else None
