"""Charts of values: each figure is drawn where it is, and any values have axes."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from awtpn.report import value_charts

NAN = math.nan


def test_the_scatter_draws_each_prediction_where_it_is() -> None:
    drawn = value_charts.scatter_svg(np.array([0.0, 1.0, NAN]), np.array([1.0, 0.0, 5.0]), "a<b")
    assert 'aria-label="a&lt;b: predicted over true values of 2 predictions"' in drawn
    [path] = re.findall(r'class="points" d="(.*?)"', drawn)
    points = [tuple(map(float, p)) for p in re.findall(r"M([\d.]+) ([\d.]+)h0", path)]
    frame = value_charts.Frame([0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1])
    assert points == [(frame.x(0), frame.y(1)), (frame.x(1), frame.y(0))]
    [x1, x2, y1, y2] = map(
        float, re.findall(r'"diagonal" x1="(.*?)" x2="(.*?)" y1="(.*?)" y2="(.*?)"', drawn)[0]
    )
    assert (x1, x2, y1, y2) == (frame.x(0), frame.x(1), frame.y(0), frame.y(1))
    many = value_charts.scatter_svg(np.arange(9_999.0), np.arange(9_999.0), "many")
    assert many.count("h0") == value_charts.MOST_POINTS


def test_the_histogram_has_the_share_of_each_bin_and_the_interval() -> None:
    drawn = value_charts.residuals_svg(np.array([-1.0, 0.5, 0.5, 2.0, NAN]), 1.5, "v")
    counts = [int(n) for n in re.findall(r"<title>\S+ to \S+: (\d+) of 4</title>", drawn)]
    assert sorted(counts) == [1, 1, 2]
    assert "<title>90 % interval: -1.5 to 1.5</title>" in drawn
    assert "90 % interval" not in value_charts.residuals_svg(np.array([1.0]), None, "v")


@pytest.mark.parametrize("values", [[3.0], [0.0], [-1e12, -1e12], [1e-13, 2e-13], [1e20, 1e20], [-2, 7e9]])
def test_axes_hold_all_values(values: list[float]) -> None:
    ticks = value_charts.axis_ticks(np.array(values, float))
    assert ticks == sorted(set(ticks))
    rounding = 1e-8 * (ticks[-1] - ticks[0])
    assert ticks[0] <= min(values) + rounding
    assert ticks[-1] >= max(values) - rounding
    drawn = value_charts.scatter_svg(np.array(values, float), np.array(values, float), "v")
    assert "nan" not in drawn


def test_bins_show_the_deviation_of_the_truth() -> None:
    table = [{"predicted": 1.0, "truth": 2.0, "deviation": 0.5, "count": 3}]
    drawn = value_charts.value_calibration_svg(table, "v")
    assert "<title>3 predictions, mean 1, true 2, deviation 0.5</title>" in drawn
    assert "no utterances" in value_charts.value_calibration_svg([], "v")
