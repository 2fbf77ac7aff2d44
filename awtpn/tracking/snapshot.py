"""What TensorBoard shows of a validation besides its metrics: weights, prototypes and some utterances.

Every rank collects from its own share, then calls `gather`. Which utterances are shown depends only on their
place in the plan, so they are the same at every validation and for every number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from awtpn.distributed.engines import ENGINES, unwrap
from awtpn.distributed.world import World
from awtpn.model.network import AWTPN, ModelOutput
from awtpn.model.task import Task
from shards import FeatureBatch, FeatureStream

EXAMPLES = 6  # utterances whose weights are drawn over time
EMBEDDED = 1_000  # utterances in the projector
EMBEDDED_DIM = 256  # vectors of more features are projected to this many
# Histogram of reliability weights, as multiples of the uniform weight. Bucket k is centered at k * BUCKET, so
# that the uniform weight is not on a border; the last bucket takes all larger weights.
BUCKET = 0.1
BUCKETS = 100


@dataclass(frozen=True)
class Example:
    """One utterance: its label, the prediction, and the reliability weights of its time steps."""

    key: str
    label: int
    predicted: int
    probability: float  # of `predicted`
    weights: dict[str, NDArray[np.float32]]  # per modality [T], with sum 1; T = 0 if it is missing


@dataclass(frozen=True)
class Embeddings:
    """Fused vectors [N, D] of N utterances in plan order, and the prototypes [C*K, D] beside them."""

    key: list[str]
    label: NDArray[np.int64]
    predicted: NDArray[np.int64]
    vectors: NDArray[np.float32]
    prototypes: NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """One validation, the same on every rank. Without figures it has no examples and no embeddings."""

    task: Task
    reliability: dict[str, NDArray[np.int64]]  # per modality, time steps in each bucket [BUCKETS]
    prototypes: NDArray[np.float32]  # [C*K, D]
    examples: list[Example]
    embeddings: Embeddings | None


class SnapshotCollector:
    """Collects from every batch of a validation; `gather` then makes one snapshot of all ranks' data.

    Args:
        model: wrapped by an engine or not.
        stream: the unshuffled utterances it is evaluated on.
        figures: collect examples and embeddings too; the same value on every rank.
    """

    def __init__(self, model: nn.Module, stream: FeatureStream, world: World, figures: bool) -> None:
        self.model: AWTPN = unwrap(model)
        self.world = world
        self.figures = figures and self.model.task.type == "classification"
        self.counts = torch.zeros(
            len(self.model.feature_dims), BUCKETS, dtype=torch.int64, device=world.device
        )
        self.shown = evenly_spaced(stream.num_utterances, EXAMPLES)
        self.embedded = evenly_spaced(stream.num_utterances, EMBEDDED)
        self.examples: list[tuple[int, Example]] = []
        # Per batch: positions, keys, labels, predicted, vectors. The last three stay on the device.
        self.vectors: list[tuple[NDArray[np.int64], list[str], Tensor, Tensor, Tensor]] = []

    def add(self, batch: FeatureBatch, output: ModelOutput) -> None:
        """Collect from a batch; its labels and the output are on the device."""
        for counts, stream in zip(self.counts, output.streams.values(), strict=True):
            multiples = stream.weights.float() * stream.offsets.diff()[stream.utterance]
            bucket = (multiples / BUCKET + 0.5).long().clamp(0, BUCKETS - 1)
            counts.index_add_(0, bucket, torch.ones_like(bucket))
        if self.figures:
            position = batch.step * batch.num_places * self.world.size + batch.place.numpy()
            self._add_vectors(batch, output, position)
            for row in np.flatnonzero(np.isin(position, self.shown)):
                self.examples.append((int(position[row]), example(batch, output, int(row))))

    def _add_vectors(self, batch: FeatureBatch, output: ModelOutput, position: NDArray[np.int64]) -> None:
        rows = np.flatnonzero(np.isin(position, self.embedded))
        if len(rows) == 0:
            return
        chosen = torch.from_numpy(rows).to(batch.label.device)
        keys = [batch.key[row] for row in rows]
        predicted = output.logits[chosen].argmax(-1)
        vectors = project(mean_fused(self.model, output)[chosen])
        self.vectors.append((position[rows], keys, batch.label[chosen], predicted, vectors))

    def gather(self) -> Snapshot:
        """The snapshot of all ranks' shares; a collective: every rank must call it."""
        reliability = self.world.sum(self.counts.cpu().numpy())
        prototypes = ENGINES[self.world.engine].gather_parameter(self.model.tpn.prototypes)
        embeddings, examples = None, []
        if self.figures:
            fetched = [
                (position, keys, *(t.cpu().numpy() for t in tensors))
                for position, keys, *tensors in self.vectors
            ]
            everyone = self.world.all_gather_object((self.examples, fetched))
            found = [pair for of_rank, _ in everyone for pair in of_rank]
            examples = [example for _, example in sorted(found, key=lambda pair: pair[0])]
            embeddings = _join([part for _, parts in everyone for part in parts], prototypes)
        return Snapshot(
            task=self.model.task,
            reliability=dict(zip(self.model.feature_dims, reliability, strict=True)),
            prototypes=prototypes.numpy(),
            examples=examples,
            embeddings=embeddings,
        )


def evenly_spaced(utterances: int, count: int) -> NDArray[np.int64]:
    """At most `count` evenly spaced positions in a plan of so many utterances; always the same ones."""
    if utterances <= count:
        return np.arange(utterances)
    return ((np.arange(count) + 0.5) * utterances / count).astype(np.int64)


def example(batch: FeatureBatch, output: ModelOutput, row: int) -> Example:
    """One utterance of a batch, copied from the device."""
    probabilities = output.logits[row].float().softmax(-1).cpu()
    predicted = int(probabilities.argmax())
    weights = {}
    for modality, stream in output.streams.items():
        first, last = batch.features[modality].host_offsets[row : row + 2].tolist()
        weights[modality] = stream.weights[first:last].float().cpu().numpy()
    label = int(batch.label[row])
    return Example(batch.key[row], label, predicted, float(probabilities[predicted]), weights)


def mean_fused(model: AWTPN, output: ModelOutput) -> Tensor:
    """Fused vectors [B, D] float32, divided by the sum of the modalities' weights.

    The fused vector is a weighted sum whose weights need not add up to 1. Divided, it has the scale of the
    time steps, and so of the prototypes.
    """
    total = sum(model.config.fusion_weight(m) for m in model.config.modalities)
    if len(output.streams) == 1:
        return model.fuse(output.streams).float()
    complete = torch.stack([stream.present for stream in output.streams.values()]).all(0)
    fused = model.fuse(output.streams).float()
    return torch.where(complete[:, None] & (total > 0), fused / (total or 1.0), fused)


def project(vectors: Tensor) -> Tensor:
    """Project `vectors` [N, D] float32 to at most EMBEDDED_DIM features; distances are about the same.

    The map is random (Johnson-Lindenstrauss), and the same for all vectors, ranks and validations.
    """
    if vectors.shape[1] <= EMBEDDED_DIM:
        return vectors
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(vectors.shape[1], EMBEDDED_DIM, generator=generator) / EMBEDDED_DIM**0.5
    return vectors @ directions.to(vectors.device)


def _join(parts: list[Any], prototypes: Tensor) -> Embeddings:
    """Join parts (positions, keys, labels, predicted, vectors) in plan order."""
    position, keys, label, predicted, vectors = zip(*parts, strict=True)
    order = np.argsort(np.concatenate(position))
    flat = [key for of_batch in keys for key in of_batch]
    return Embeddings(
        key=[flat[i] for i in order],
        label=np.concatenate(label)[order],
        predicted=np.concatenate(predicted)[order],
        vectors=np.concatenate(vectors)[order],
        prototypes=project(prototypes).numpy(),
    )
