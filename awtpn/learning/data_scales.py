"""Scales that a model takes from its training data before the first step.

They are of the first utterances of the plan's first epoch, in eval mode, so that every layout finds the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from awtpn.model.blocks import Statistics, mean_and_deviation
from awtpn.model.network import AWTPN
from awtpn.model.segments import utterance_of_step
from shards import FeatureBatch

Total = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@torch.no_grad()
def set_scales_from_data(
    model: AWTPN, batches: Iterable[FeatureBatch], device: torch.device, total: Total = lambda array: array
) -> None:
    """Set what `model.statistics` are standardized by.

    Args:
        model: not yet wrapped by an engine; its features' own statistics are set.
        batches: this rank's share of the utterances.
        device: of the model.
        total: sums an array over ranks, as `World.sum`; called once per modality, in their order.
    """
    sums = {m: np.zeros((3, 2 * dim)) for m, dim in model.feature_dims.items()}
    for batch in batches:
        for m in sums:
            ragged = batch.to(device).features[m]
            offsets = ragged.offsets.long()
            x = model.standardise[m](ragged.values)
            rows = mean_and_deviation(x, offsets, utterance_of_step(offsets, len(x)))
            rows = rows[offsets.diff() > 0].double()
            ones = torch.full_like(rows[:1].sum(0), len(rows))
            sums[m] += torch.stack([ones, rows.sum(0), rows.square().sum(0)]).cpu().numpy()
    for m, own in sums.items():
        count, mean, squares = total(own)
        count = np.maximum(count, 1)
        mean, squares = mean / count, squares / count
        std = np.sqrt(np.maximum(squares - mean**2, 0))
        block = cast(Statistics, model.statistics[m])
        block.set_statistics(torch.from_numpy(mean).float(), torch.from_numpy(std).float())
