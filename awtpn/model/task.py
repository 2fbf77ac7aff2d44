"""What a model recognizes: one class, several labels at once, or values; and what its prototypes stand for.

The prototype table is a list of groups. A group is one question about an utterance, its states are the
possible answers, and each state has K prototypes:

- classification: one group, whose states are the classes
- multilabel: a group per label, with the states "absent" and "present"
- regression: a group per dimension, whose states are values in ascending order (`levels`), evenly spaced over
  the dimension's range. A value between two levels belongs to both, to the nearer one more, so that the
  weighted mean of the levels is the value itself (`states_of_values`).

A model has one task. Its card records it; a card without one is of a model that tells classes apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awtpn.model.device import to_device_async
from awtpn.model.settings import MOST_LEVELS
from shards.safe_io.json_fields import from_record


@dataclass(frozen=True)
class Task:
    """What a model recognizes.

    Attributes:
        type: "classification", "multilabel" or "regression".
        names: of the classes, of the labels, or of the dimensions, in order.
        ranges: least and largest value of each dimension (regression), or intensity of each label that has
            one (multilabel); none for classes.
        levels: values per dimension that have prototypes; 0 unless the task is regression.
        head: of regression: "levels" gives each level a logit, "linear" gives each dimension one value.
        column: the metadata column of the classes, if they are not the dataset's own (its field `label`).
    """

    type: str
    names: list[str]
    ranges: list[list[float]] | None = None
    levels: int = 0
    head: str = "levels"
    column: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if the fields do not make a task."""
        if self.type not in ("classification", "multilabel", "regression"):
            raise ValueError(f"task type {self.type!r:.40}: there is none")
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"a task needs distinct names, at least one, not {self.names!r:.80}")
        if self.head not in ("levels", "linear"):
            raise ValueError(f"task head {self.head!r:.40}: there is none")
        if self.type == "regression":
            if not 2 <= self.levels <= MOST_LEVELS or len(self.ranges or ()) != len(self.names):
                raise ValueError(
                    f"a regression task has 2 to {MOST_LEVELS} levels, and a range for each dimension"
                )
            if not all(len(r) == 2 and r[0] < r[1] for r in self.ranges or ()):
                raise ValueError(f"task ranges {self.ranges!r:.60}: each is a least and a larger value")

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """The groups of the prototype table: the name of each, and the names of its states."""
        if self.type == "classification":
            return [("class", list(self.names))]
        if self.type == "multilabel":
            return [(name, [f"no {name}", name]) for name in self.names]
        levels = level_values(self).tolist()
        return [
            (name, [f"{name} {value:.4g}" for value in of_dimension])
            for name, of_dimension in zip(self.names, levels, strict=True)
        ]

    @property
    def states(self) -> list[str]:
        """Names of all states S, group by group: what the rows of the prototype table stand for."""
        return [state for _, states in self.groups for state in states]

    @property
    def group_sizes(self) -> list[int]:
        """States of each group."""
        if self.type == "classification":
            return [len(self.names)]
        return [2 if self.type == "multilabel" else self.levels] * len(self.names)

    @property
    def outputs(self) -> int:
        """Logits per utterance: one per class, per label, and per level of each dimension (or dimension)."""
        if self.type == "regression" and self.head == "levels":
            return len(self.names) * self.levels
        return len(self.names)

    def described(self) -> str:
        """The task in a few words: "4 classes", "6 labels", "values of valence, arousal"."""
        if self.type == "regression":
            return f"values of {', '.join(self.names)}"
        return f"{len(self.names)} {'classes' if self.type == 'classification' else 'labels'}"

    def record(self) -> dict[str, Any]:
        """The task as plain data, for a card."""
        return {
            "type": self.type,
            "names": list(self.names),
            "ranges": self.ranges,
            "levels": self.levels,
            "head": self.head,
            "column": self.column,
        }

    @property
    def is_classes(self) -> bool:
        """Whether it tells the dataset's own classes apart, as every model of earlier versions does."""
        return self.type == "classification" and self.column is None


def task_of_card(card: Mapping[str, Any]) -> Task:
    """The task of a model's card; of a card without one, classification.

    Raises:
        ValueError: it is not a task.
    """
    if card.get("task") is None:
        return Task("classification", list(card["classes"]))
    return from_record(Task, card["task"], "the card's task")


def level_values(task: Task) -> NDArray[np.float64]:
    """The values that have prototypes, ascending: [K dimensions, levels]."""
    assert task.ranges is not None
    return np.stack([np.linspace(low, high, task.levels) for low, high in task.ranges])


def middles_and_halves(task: Task, like: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of each dimension's range and half of its width, [K] each; dtype and device of `like`."""
    bounds = np.array(task.ranges)
    both = np.stack([bounds.mean(1), (bounds[:, 1] - bounds[:, 0]) / 2])
    middle, half = to_device_async(both, like.device, like.dtype)
    return middle, half


def units_of_values(values: Tensor, task: Task) -> Tensor:
    """Values [B, K] in halves of their range from its middle, float64: -1 is the least, 1 the largest."""
    middle, half = middles_and_halves(task, values.double())
    return (values - middle) / half


def _wide(logits: Tensor) -> Tensor:
    """The logits in float32 or wider."""
    # Not torch.promote_types, which an exported graph would contain as an operator.
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def predicted_units(logits: Tensor, task: Task) -> Tensor:
    """The predictions as `units_of_values`: [B, outputs] -> [B, K], in float32 or wider.

    With head "levels" the mean of the levels, weighted by the softmax over a dimension's logits; with head
    "linear" the logit itself.
    """
    wide = _wide(logits)
    if task.head == "linear":
        return wide
    shares = wide.unflatten(1, (len(task.names), task.levels)).softmax(-1)
    return shares @ torch.linspace(-1, 1, task.levels, device=wide.device, dtype=wide.dtype)


def predicted_values(logits: Tensor, task: Task) -> Tensor:
    """The value of each dimension in the target's unit: [B, outputs] -> [B, K], in float32 or wider."""
    units = predicted_units(logits, task)
    middle, half = middles_and_halves(task, units)
    return middle + half * units


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Of the classes, which sum to 1, or of each label: [B, outputs] -> [B, C], in float32 or wider."""
    wide = _wide(logits)
    return wide.softmax(-1) if task.type == "classification" else wide.sigmoid()


def states_of_values(values: Tensor, task: Task) -> Tensor:
    """How much each state of the prototype table belongs to an utterance: [B, K] values -> [B, S].

    Within a group the shares sum to 1; they are 0 in a group whose value is missing (NaN).

    - multilabel: 1 at "present" where the value is above 0, else 1 at "absent";
    - regression: shares at the two levels around the value, by its distance to them. A value outside of the
      range belongs to the last level.
    """
    known = ~values.isnan()
    if task.type == "multilabel":
        present = (values > 0).to(values.dtype)
        shares = torch.stack([1 - present, present], -1)
    else:
        place = ((units_of_values(values, task) + 1) / 2 * (task.levels - 1)).clamp(0, task.levels - 1)
        positions = torch.arange(task.levels, device=values.device, dtype=place.dtype)
        shares = (1 - (place[..., None] - positions).abs()).clamp(min=0)
    return torch.where(known[..., None], shares, 0.0).flatten(1)
