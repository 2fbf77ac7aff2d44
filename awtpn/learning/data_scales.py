"""Scales that a model takes from its training data before the first step.

They are of the first utterances of the plan's first epoch, in eval mode, so that every layout finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awtpn.model.base import EmotionModel
from awtpn.model.blocks import Spread, Statistics, mean_and_deviation
from awtpn.model.encoders.passes import passes_of
from awtpn.model.network import AWTPN
from awtpn.model.segments import utterance_of_step
from shards import FeatureBatch

# Smallest spread of distances to divide by: without it, equal steps would give an infinite factor.
LEAST = 1e-3
Total = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@torch.no_grad()
def set_scales_from_data(
    model: AWTPN, batches: Iterable[FeatureBatch], device: torch.device, total: Total = lambda array: array
) -> None:
    """Set what `model.statistics` are standardized by, and the spread that relative distances are divided by.

    The spread is the standard deviation over all steps of the distance to the nearest prototype: with it the
    reliabilities of Eq. 15 are neither even nor on a single step at the start.

    Args:
        model: not yet wrapped by an engine; its features' own statistics and its prototypes are set.
        batches: this rank's share of the utterances.
        device: of the model.
        total: sums an array over ranks, as `World.sum`; called twice per modality, in their order.
    """
    training = model.training
    model.eval()
    of_rows = {m: np.zeros((3, 2 * dim)) for m, dim in model.feature_dims.items()}
    of_distances = {m: np.zeros((3, 1)) for m in model.feature_dims}
    for batch in batches:
        for m in model.feature_dims:
            ragged = batch.to(device).features[m]
            offsets = ragged.offsets.long()
            x = model.standardise[m](ragged.values, ragged.quantization)
            rows = mean_and_deviation(x, offsets, utterance_of_step(offsets, len(x)))
            of_rows[m] += sums_of(rows[offsets.diff() > 0])
            nearest = model.tpn(model.ses[m](x), 1.0).amin(-1, keepdim=True)  # without its distance_scale
            of_distances[m] += sums_of(nearest)
    model.train(training)
    for m in model.feature_dims:
        mean, std = mean_and_std(*total(of_rows[m]))
        _, spread = mean_and_std(*total(of_distances[m]))
        if m in model.statistics:
            statistics = cast(Statistics, model.statistics[m])
            statistics.set_statistics(torch.from_numpy(mean).float(), torch.from_numpy(std).float())
        if m in model.spread:
            cast(Spread, model.spread[m]).spread.fill_(max(LEAST, float(spread[0])))


def encode_batches(
    model: EmotionModel, batches: Iterable[FeatureBatch], device: torch.device
) -> Iterator[FeatureBatch]:
    """The batches on the device, with features in place of recordings, by the encoders in eval mode.

    With encoders a batch comes in parts, and its utterances in another order.

    Args:
        model: not wrapped by an engine, in eval mode.
        batches: this rank's share of the utterances.
    """
    for batch in batches:
        parts = [batch]
        if len(model.encoders):
            parts = [batch.take(rows) for rows in passes_of(model, batch, [range(len(batch))])]
        for part in parts:
            moved = part.to(device)
            with torch.no_grad():
                yield replace(moved, features=model.encoded(moved.features))


@torch.no_grad()
def set_statistics_of_encoders(
    model: EmotionModel,
    modalities: Iterable[str],
    batches: Iterable[FeatureBatch],
    total: Total = lambda array: array,
) -> None:
    """Standardize encoders' features by their mean and standard deviation over the time steps of `batches`.

    Args:
        modalities: those whose statistics are set.
        batches: of `encode_batches`.
        total: sums an array over ranks, as `World.sum`; called once per modality.
    """
    for m in modalities:
        sums = np.zeros((3, model.feature_dims[m]))
        for batch in batches:
            sums += sums_of(batch.features[m].dequantized())
        mean, std = mean_and_std(*total(sums))
        model.set_statistics(m, torch.from_numpy(mean).float(), torch.from_numpy(std).float())


def sums_of(rows: Tensor) -> NDArray[np.float64]:
    """[3, F]: the number of finite rows among [N, F], their sum, and the sum of their squares."""
    rows = rows[rows.isfinite().all(1)].double()  # others are left out of the training, too, and named there
    return torch.stack([torch.ones_like(rows).sum(0), rows.sum(0), rows.square().sum(0)]).cpu().numpy()


def mean_and_std(
    count: NDArray[np.float64], total: NDArray[np.float64], squares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [F] of values, from their number, sum and sum of squares; 0 of none."""
    mean = total / np.maximum(count, 1)
    return mean, np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
