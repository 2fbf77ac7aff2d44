"""Scales that a model takes from its training data before the first step."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from support import batch, small_model, utterances

from awtpn.learning.data_scales import LEAST, set_scales_from_data
from awtpn.model.blocks import Spread, Statistics
from awtpn.model.network import AWTPN

LENGTHS = [(4, 3), (1, 6), (5, 0), (2, 2), (0, 4), (3, 3)]
BATCH = batch(utterances(LENGTHS, dtype=torch.float32), [0] * len(LENGTHS))


def scaled_model(factor: float | None) -> AWTPN:
    """A model of relative distances with this factor (None: the default), and its scales set from BATCH."""
    settings = {"distance_scale_audio": factor, "distance_scale_video": factor}
    model = small_model(dtype=torch.float32, distances="relative", statistics=True, **settings)
    set_scales_from_data(model, [BATCH], torch.device("cpu"))
    return model


@pytest.mark.parametrize("factor", [None, 0.5, 20.0])
def test_the_spread_of_scaled_distances_is_their_factor(factor: float | None) -> None:
    model = scaled_model(factor).eval()
    for m, stream in model(BATCH.features).streams.items():
        nearest = stream.distances.detach().amin(-1).double()
        assert float(nearest.std(correction=0)) == pytest.approx(model.config.distance_scale(m), rel=1e-4)


def test_shares_of_the_utterances_give_the_scales_of_all() -> None:
    whole, parts = scaled_model(None), small_model(dtype=torch.float32, statistics=True)
    set_scales_from_data(parts, BATCH.split(2), torch.device("cpu"))
    for name, value in whole.named_buffers():
        torch.testing.assert_close(dict(parts.named_buffers())[name], value, msg=name)


def test_statistics_come_out_with_mean_0_and_deviation_1() -> None:
    model = scaled_model(None)
    for m, stream in model(BATCH.features).streams.items():
        of_statistics = cast(Statistics, model.statistics[m])
        units = ((stream.statistics - of_statistics.mean) / of_statistics.std)[stream.present]
        torch.testing.assert_close(units.mean(0), torch.zeros(units.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(units.std(0, correction=0), torch.ones(units.shape[1]))


def test_utterances_that_are_not_finite_are_left_out_and_equal_steps_give_the_least_spread() -> None:
    broken = batch(utterances(LENGTHS, dtype=torch.float32), [0] * len(LENGTHS))
    broken.features["audio"].values[0, 0] = torch.nan
    model = small_model(dtype=torch.float32, statistics=True)
    set_scales_from_data(model, [broken], torch.device("cpu"))
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    equal = batch(utterances([(1, 1)], dtype=torch.float32), [0])
    set_scales_from_data(model, [equal], torch.device("cpu"))
    assert all(float(cast(Spread, s).spread) == pytest.approx(LEAST) for s in model.spread.values())
