"""Scales that a model takes from its training data before the first step.

They are of the first utterances of the plan's first epoch, in eval mode, so that every layout finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from awtpn.model.blocks import Spread, Statistics, mean_and_deviation
from awtpn.model.network import AWTPN
from awtpn.model.segments import segment_mean, utterance_of_step
from shards import FeatureBatch

# Smallest spread of distances to divide by: without it, equal steps would give an infinite factor.
LEAST = 1e-3
Total = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@torch.no_grad()
def set_scales_from_data(
    model: AWTPN, batches: Iterable[FeatureBatch], device: torch.device, total: Total = lambda array: array
) -> None:
    """Set what `model.statistics` are standardized by, and the spread that relative distances are divided by.

    The spread is the standard deviation of a step's distance to its nearest prototype around the mean of its
    utterance: with it the reliabilities of Eq. 15 are neither even nor on a single step at the start.

    Args:
        model: not yet wrapped by an engine; its features' own statistics and its prototypes are set.
        batches: this rank's share of the utterances.
        device: of the model.
        total: sums an array over ranks, as `World.sum`; called twice per modality, in their order.
    """
    training = model.training
    model.eval()
    of_rows = {m: np.zeros((3, 2 * dim)) for m, dim in model.feature_dims.items()}
    of_distances = {m: np.zeros(2) for m in model.feature_dims}
    for batch in batches:
        for m in model.feature_dims:
            ragged = batch.to(device).features[m]
            offsets = ragged.offsets.long()
            utterance = utterance_of_step(offsets, len(ragged.values))
            x = model.standardise[m](ragged.values)
            rows = mean_and_deviation(x, offsets, utterance)[offsets.diff() > 0].double()
            of_rows[m] += (
                torch.stack([torch.ones_like(rows).sum(0), rows.sum(0), rows.square().sum(0)]).cpu().numpy()
            )
            of_distances[m] += within_utterances(model.distances(m, model.ses[m](x)), offsets, utterance)
    model.train(training)
    for m in model.feature_dims:
        count, mean, squares = total(of_rows[m])
        steps, variance = total(of_distances[m])
        if m in model.statistics:
            count = np.maximum(count, 1)
            mean = mean / count
            std = np.sqrt(np.maximum(squares / count - mean**2, 0))
            block = cast(Statistics, model.statistics[m])
            block.set_statistics(torch.from_numpy(mean).float(), torch.from_numpy(std).float())
        if m in model.spread:
            spread = max(LEAST, float(np.sqrt(variance / max(steps, 1))))
            cast(Spread, model.spread[m]).spread.fill_(spread)


def within_utterances(distances: Tensor, offsets: Tensor, utterance: Tensor) -> NDArray[np.float64]:
    """[2]: the number of steps, and the sum of squared deviations of their nearest distance [T, C] from the
    mean of their utterance."""
    nearest = distances.amin(-1).double()
    deviation = nearest - segment_mean(nearest, offsets, utterance)[utterance]
    return np.array([len(nearest), float(deviation.square().sum())])
