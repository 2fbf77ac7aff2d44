"""What the loss terms are computed from: outputs, targets, negatives, and the counts to divide by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from awtpn.learning.settings import LossConfig, Pair
from awtpn.learning.targets import TargetCounts
from awtpn.model.base import ModalityOutput, ModelOutput
from awtpn.model.task import Task, states_of_values


@dataclass(frozen=True)
class LossNormalizers:
    """What each term is divided by: counts over the whole global batch (at least 1 each).

    Attributes:
        utterances: all of them.
        present: per modality those that have it.
        both: per pair of modalities those that have both.
        negative: per pair and draw those among them with a valid negative.
        class_weight: sum of the class weights of the utterances.
        targets: of labels or values; None for classification.
    """

    utterances: float
    present: dict[str, float]
    both: dict[Pair, float]
    negative: dict[Pair, dict[str, float]]
    class_weight: float
    targets: TargetCounts | None = None


@dataclass(frozen=True)
class NegativePool:
    """What a pair of modalities draws its negatives from, and each utterance's row in it per draw.

    Attributes:
        means: [P, D] of the pair's second modality.
        row: draw -> [B] int64, -1 where there is no valid negative.
    """

    means: Tensor
    row: dict[str, Tensor]


@dataclass(frozen=True)
class LossInputs:
    """What the loss terms are computed from: a micro-batch of B utterances.

    Attributes:
        output: of the model; B may be 0, and every term must still reach every parameter that it uses.
        label: int64 [B], of classification.
        pools: per pair of modalities to compare its negatives, in order; none if the model uses one modality.
        normalizers: of the global batch.
        class_weights: [C] for the cross-entropy, [K, 2] for absence and presence of labels, or None for equal
            ones.
        task: what is recognized; None for classes.
        values: [B, K] of labels or dimensions, NaN where it is not known; None for classes.
    """

    output: ModelOutput
    label: Tensor
    pools: Mapping[Pair, NegativePool]
    normalizers: LossNormalizers
    config: LossConfig
    class_weights: Tensor | None
    task: Task | None = None
    values: Tensor | None = None

    @property
    def has_classes(self) -> bool:
        return self.task is None or self.task.type == "classification"

    @cached_property
    def states(self) -> Tensor:
        """How much each state of each group belongs to an utterance of labels or values: [B, K, states]."""
        assert self.task is not None
        assert self.values is not None
        return states_of_values(self.values, self.task).unflatten(1, (len(self.task.names), -1))

    @cached_property
    def pairs(self) -> dict[Pair, PairInputs]:
        """What the cross-modal terms are computed from, by pair."""
        streams, counts = self.output.streams, self.normalizers
        return {
            (a, v): PairInputs(
                streams[a], streams[v], pool, counts.both[a, v], counts.negative[a, v], self.config
            )
            for (a, v), pool in self.pools.items()
        }

    def mean_over_pairs(self, share: Callable[[PairInputs], Tensor]) -> Tensor:
        """The weighted mean of a cross-modal term over the pairs of modalities; 0 where there is none."""
        if not self.pairs:
            return next(iter(self.output.streams.values())).distances.new_zeros(())
        weights = self.config.shares_of_pairs(self.output.streams)
        return torch.stack([weights[pair] * share(inputs) for pair, inputs in self.pairs.items()]).sum()


@dataclass(frozen=True)
class PairInputs:
    """Two modalities that a cross-modal term compares, named as in the equations: audio a and video v.

    Attributes:
        a, v: the output of the first and of the second modality; negatives are of the second.
        pool: the negatives.
        count: utterances of the global batch that have both.
        negative_count: those among them with a valid negative, per draw.
        config: of the losses.
    """

    a: ModalityOutput
    v: ModalityOutput
    pool: NegativePool
    count: float
    negative_count: dict[str, float]
    config: LossConfig

    @cached_property
    def both(self) -> Tensor:
        """Utterances that have both modalities: bool [B]."""
        return self.a.present & self.v.present

    @cached_property
    def cosine(self) -> Tensor:
        """Cosine similarity of the means of the two modalities: [B]."""
        return F.cosine_similarity(self.a.mean, self.v.mean, dim=-1)

    def negatives(self, draw: str) -> tuple[Tensor, Tensor]:
        """Each utterance's negative, a mean of the second modality [B, D], and where it is valid [B]."""
        row = self.pool.row[draw]
        # Padding by one row of zeros lets an empty pool be indexed, too; row -1 then reads zeros.
        return F.pad(self.pool.means, (0, 0, 0, 1))[row], self.both & (row >= 0)
