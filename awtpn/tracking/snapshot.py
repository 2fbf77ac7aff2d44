"""What TensorBoard shows of a validation besides its metrics: weights, prototypes and some utterances.

Every rank collects from its own share, then calls `gather`. Which utterances are shown depends only on their
place in the plan, so they are the same at every validation and for every number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from awtpn.distributed.engines import ENGINES, unwrap
from awtpn.distributed.world import World
from awtpn.learning.prototypes import find_prototypes
from awtpn.model.base import EmotionModel, ModelOutput
from awtpn.model.blocks import fusion_weights
from awtpn.model.device import to_device_async
from awtpn.model.network import AWTPN
from awtpn.model.task import Task, predicted_values, probabilities
from awtpn.tracking.captions import Caption, caption, color_words, predicted_words, truth_words
from shards import FeatureBatch, FeatureStream

EXAMPLES = 6  # utterances whose weights are drawn over time
EMBEDDED = 1_000  # utterances in the projector
EMBEDDED_DIM = 256  # vectors of more features are projected to this many
SCATTERED = 4_000  # utterances whose predicted values are drawn against the true ones
# Histogram of reliability weights, as multiples of the uniform weight. Bucket k is centered at k * BUCKET, so
# that the uniform weight is not on a border; the last bucket takes all larger weights.
BUCKET = 0.1
BUCKETS = 100


@dataclass(frozen=True)
class Example:
    """One utterance: its truth and prediction in words, and the reliability weights of its time steps."""

    key: str
    caption: Caption
    weights: dict[str, NDArray[np.float32]]  # per modality [T], sum 1; T = 0: missing; a baseline: {}


@dataclass(frozen=True)
class Embeddings:
    """Fused vectors [N, D] of N utterances in plan order, and the prototypes [S*K, D] beside them.

    Of each utterance there are its truth and its prediction in words, and by what to color it.
    """

    key: list[str]
    label: list[str]
    predicted: list[str]
    shown_as: list[str]
    vectors: NDArray[np.float32]
    prototypes: NDArray[np.float32]


@dataclass(frozen=True)
class ValuePairs:
    """True values (NaN where missing) and predicted ones of N utterances in plan order, float64 [N, K]."""

    truth: NDArray[np.float64]
    predicted: NDArray[np.float64]


@dataclass(frozen=True)
class Snapshot:
    """One validation, the same on every rank. Without figures it has no examples, embeddings and values."""

    task: Task
    reliability: dict[str, NDArray[np.int64]]  # per modality, time steps in each bucket [BUCKETS]; or {}
    prototypes: NDArray[np.float32] | None  # [S*K, D]; a baseline has none
    examples: list[Example]
    embeddings: Embeddings | None
    values: ValuePairs | None = None  # of regression only

    @property
    def has_figures(self) -> bool:
        """Whether what figures need was collected."""
        return bool(self.examples) or self.embeddings is not None


class SnapshotCollector:
    """Collects from every batch of a validation; `gather` then makes one snapshot of all ranks' data.

    Args:
        model: wrapped by an engine or not.
        stream: the unshuffled utterances it is evaluated on.
        figures: collect examples, embeddings and values too; the same value on every rank.
    """

    def __init__(self, model: nn.Module, stream: FeatureStream, world: World, figures: bool) -> None:
        self.model: EmotionModel = unwrap(model)
        self.task = self.model.task
        self.world = world
        self.figures = figures
        self.counts = torch.zeros(
            len(self.model.feature_dims), BUCKETS, dtype=torch.int64, device=world.device
        )
        self.shown = evenly_spaced(stream.num_utterances, EXAMPLES)
        self.embedded = evenly_spaced(stream.num_utterances, EMBEDDED)
        scattered = SCATTERED if self.task.type == "regression" else 0
        self.scattered = evenly_spaced(stream.num_utterances, scattered)
        self.examples: list[tuple[int, Example]] = []
        # Per batch: positions, keys, truth, logits, vectors. The last two stay on the device.
        self.vectors: list[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float64], Tensor, Tensor]] = []
        # Per batch: positions, truth, logits.
        self.pairs: list[tuple[NDArray[np.int64], NDArray[np.float64], Tensor]] = []

    def add(self, batch: FeatureBatch, output: ModelOutput) -> None:
        """Collect from a batch; its labels and the output are on the device."""
        for counts, stream in zip(self.counts, output.streams.values(), strict=bool(output.streams)):
            multiples = stream.weights.float() * stream.offsets.diff()[stream.utterance]
            bucket = (multiples / BUCKET + 0.5).long().clamp(0, BUCKETS - 1)
            counts.index_add_(0, bucket, torch.ones_like(bucket))
        if not self.figures:
            return
        position = batch.step * batch.num_places * self.world.size + batch.place.numpy()
        truth = host_truth(batch, self.task)
        rows = np.flatnonzero(np.isin(position, self.embedded))
        if isinstance(self.model, AWTPN) and len(rows):
            chosen = to_device_async(rows, output.logits.device)
            keys = np.array([batch.key[row] for row in rows], dtype=object)
            vectors = project(mean_fused(self.model, output)[chosen])
            self.vectors.append((position[rows], keys, truth[rows], output.logits[chosen], vectors))
        if len(rows := np.flatnonzero(np.isin(position, self.scattered))):
            chosen = to_device_async(rows, output.logits.device)
            self.pairs.append((position[rows], truth[rows], output.logits[chosen]))
        for row in np.flatnonzero(np.isin(position, self.shown)):
            self.examples.append((int(position[row]), example(batch, output, int(row), self.task)))

    def gather(self) -> Snapshot:
        """The snapshot of all ranks' shares; a collective: every rank must call it."""
        reliability = self.world.sum(self.counts.cpu().numpy())
        own_prototypes, prototypes = find_prototypes(self.model), None
        if own_prototypes is not None:
            prototypes = ENGINES[self.world.engine].gather_parameter(own_prototypes)
        counted = {} if prototypes is None else dict(zip(self.model.feature_dims, reliability, strict=True))
        embeddings, values, examples = None, None, []
        if self.figures:
            own = (self.examples, on_host(self.vectors), on_host(self.pairs))
            shown, vectors, pairs = (
                [part for of_rank in parts for part in of_rank]
                for parts in zip(*self.world.all_gather_object(own), strict=True)
            )
            examples = [example for _, example in sorted(shown, key=lambda pair: pair[0])]
            if prototypes is not None:
                embeddings = make_embeddings(vectors, prototypes, self.task)
            if self.task.type == "regression":
                truth, logits = in_plan_order(pairs)
                values = ValuePairs(truth, predictions(logits, self.task))
        return Snapshot(
            task=self.task,
            reliability=counted,
            prototypes=None if prototypes is None else prototypes.numpy(),
            examples=examples,
            embeddings=embeddings,
            values=values,
        )


def evenly_spaced(utterances: int, count: int) -> NDArray[np.int64]:
    """At most `count` evenly spaced positions in a plan of so many utterances; always the same ones."""
    if utterances <= count:
        return np.arange(utterances)
    return ((np.arange(count) + 0.5) * utterances / count).astype(np.int64)


def host_truth(batch: FeatureBatch, task: Task) -> NDArray[np.float64]:
    """The truth of each utterance, without a copy from the device: labels [B, 1], or values [B, K]."""
    of_task = batch.host_label[:, None] if task.type == "classification" else batch.host_target
    return of_task.double().numpy()


def predictions(logits: NDArray[Any], task: Task) -> NDArray[np.float64]:
    """Of logits [N, outputs] on the host: values of regression, else probabilities, [N, K]."""
    wide = torch.from_numpy(logits).double()
    return (predicted_values if task.type == "regression" else probabilities)(wide, task).numpy()


def example(batch: FeatureBatch, output: ModelOutput, row: int, task: Task) -> Example:
    """One utterance of a batch, copied from the device."""
    predicted = predictions(output.logits[row : row + 1].cpu().numpy(), task)[0]
    weights = {}
    for modality, stream in output.streams.items():
        first, last = stream.offsets[row : row + 2].tolist()
        weights[modality] = stream.weights[first:last].float().cpu().numpy()
    return Example(batch.key[row], caption(host_truth(batch, task)[row], predicted, task), weights)


def mean_fused(model: AWTPN, output: ModelOutput) -> Tensor:
    """Fused vectors [B, D] float32, divided by the sum of the modalities' weights.

    The fused vector is a weighted sum whose weights need not add up to 1. Divided, it has the scale of the
    time steps, and so of the prototypes.
    """
    fused = model.fuse(output.streams).float()
    present = torch.stack([stream.present for stream in output.streams.values()])
    given = [model.config.fusion_weight(m) for m in output.streams]
    total = fusion_weights(given, present, fused.dtype).sum(0)
    return fused / torch.where(total > 0, total, 1.0)[:, None]


def project(vectors: Tensor) -> Tensor:
    """Project `vectors` [N, D] float32 to at most EMBEDDED_DIM features; distances are about the same.

    The map is random (Johnson-Lindenstrauss), and the same for all vectors, ranks and validations.
    """
    if vectors.shape[1] <= EMBEDDED_DIM:
        return vectors
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(vectors.shape[1], EMBEDDED_DIM, generator=generator) / EMBEDDED_DIM**0.5
    return vectors @ directions.to(vectors.device)


def make_embeddings(parts: Sequence[tuple[Any, ...]], prototypes: Tensor, task: Task) -> Embeddings:
    """Join parts (positions, keys, truth, logits, vectors) of all ranks, and name their utterances."""
    keys, truth, logits, vectors = in_plan_order(parts)
    return Embeddings(
        key=keys.tolist(),
        label=[truth_words(row, task) for row in truth],
        predicted=[predicted_words(row, task) for row in predictions(logits, task)],
        shown_as=color_words(truth, task),
        vectors=vectors,
        prototypes=project(prototypes).numpy(),
    )


def on_host(parts: Sequence[tuple[Any, ...]]) -> list[tuple[NDArray[Any], ...]]:
    """The parts with their tensors copied to the host."""
    return [tuple(x.cpu().numpy() if isinstance(x, Tensor) else x for x in part) for part in parts]


def in_plan_order(parts: Sequence[tuple[Any, ...]]) -> tuple[NDArray[Any], ...]:
    """Join parts (positions, further columns) by rows; returns the further columns in order of position."""
    position, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(position)
    return tuple(column[order] for column in columns)
