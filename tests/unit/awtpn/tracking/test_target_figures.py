"""Pictures of values and of labels: where points and bars lie is read back from the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.tracking.canvas import BLUE, Image
from awtpn.tracking.snapshot import ValuePairs
from awtpn.tracking.target_figures import MOST_LABELS, MOST_PANELS, MOST_POINTS, label_bars, value_scatter


def is_color(image: Image, color: str) -> NDArray[np.bool_]:
    """[H, W] pixels that have a color "#rrggbb"."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    return (image == rgb).all(-1)


def is_bluish(image: Image) -> NDArray[np.bool_]:
    return image[..., 2].astype(int) - image[..., 0] > 30


def is_reddish(image: Image) -> NDArray[np.bool_]:
    return image[..., 0].astype(int) - image[..., 2] > 60


def scatter(truth: Any, predicted: Any, ranges: Any = ((-1, 1),)) -> Image:
    truth, predicted = (
        np.atleast_2d(np.array(truth, float).T).T,
        np.atleast_2d(np.array(predicted, float).T).T,
    )
    names = [f"dimension {k}" for k in range(truth.shape[1])]
    rows = summarize_values(truth, predicted, names, ranges)["per_dimension"]
    return value_scatter(ValuePairs(truth, predicted), rows, ranges, "validation")


def test_points_lie_at_their_values() -> None:
    image = scatter([-1.0, 0.0, 1.0], [0.5, 0.5, -0.5])
    line = np.argwhere(is_reddish(image))
    bottom, left = line[:, 0].max(), line[:, 1].min()
    top, right = line[:, 0].min(), line[:, 1].max()
    assert bottom - top == pytest.approx(right - left, abs=3), "the identity, in a square"
    points = is_bluish(image)
    # Each column of pixels within a point's width of a value has one point: its height is the prediction.
    for truth, predicted in ((-1.0, 0.5), (0.0, 0.5), (1.0, -0.5)):
        at = left + (right - left) * (truth + 1.1) / 2.2
        rows = np.flatnonzero(points[:, round(at) - 2 : round(at) + 3].any(1))
        middle = rows[rows > top].mean()
        assert (bottom - middle) / (bottom - top) * 2.2 - 1.1 == pytest.approx(predicted, abs=0.05)


def test_an_axis_holds_the_range_and_all_values() -> None:
    within, beyond = scatter([0.0, 0.5], [0.1, 0.6]), scatter([0.0, 0.5], [0.1, 9.0])
    assert within.shape == beyond.shape
    spread = [np.ptp(np.argwhere(is_bluish(image))[:, 1]) for image in (within, beyond)]
    assert spread[0] > 3 * spread[1], "beside 9 the truths lie close together"


def test_many_points_are_a_density() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, 5_000)
    image = scatter(truth, truth)
    assert len(truth) > MOST_POINTS
    rows, columns = np.argwhere(is_bluish(image)).T
    assert np.corrcoef(rows, columns)[0, 1] < -0.98
    alone = scatter([*truth[: MOST_POINTS + 1] * 0.05, 0.95], [*truth[: MOST_POINTS + 1] * 0.05, -0.95])
    found = np.argwhere(is_bluish(alone))
    low_right = found[(found[:, 0] > 0.8 * len(alone)) & (found[:, 1] > 0.8 * alone.shape[1])]
    assert len(low_right) > 20, "a single utterance can be seen"


@pytest.mark.parametrize("utterances", [1, 2, 1_000])
def test_a_dimension_without_truth_has_an_empty_panel(utterances: int) -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.uniform(1, 5, (2, utterances, 2))
    truth[:, 1] = np.nan
    image = scatter(truth, predicted, ((1, 5), (1, 5)))
    half = image.shape[1] // 2
    assert is_bluish(image[:, :half]).sum() > 20
    assert not is_bluish(image[:, half + 60 :]).any()
    assert is_reddish(image[:, half:]).any()


def test_equal_values_and_no_values_can_be_drawn() -> None:
    scatter([0.0] * 600, [0.0] * 600)
    scatter(np.zeros((0, 1)), np.zeros((0, 1)))
    scatter([np.nan], [np.inf])


def test_panels_are_as_many_as_fit() -> None:
    one, four, five, most = (
        scatter(np.zeros((3, k)), np.ones((3, k)), ((0, 1),) * k) for k in (1, 4, 5, MOST_PANELS)
    )
    assert five.shape[0] > 1.5 * four.shape[0]
    assert five.shape[1] == four.shape[1]
    assert one.shape[1] < four.shape[1]
    more = scatter(np.zeros((3, 20)), np.ones((3, 20)), ((0, 1),) * 20)
    assert more.shape == most.shape
    assert (more[:40] != most[:40]).any(), "the title says how many are left out"


def bars(truth: Any, probability: Any) -> tuple[Image, dict[str, Any]]:
    names = [f"label {i}" for i in range(np.shape(truth)[1])]
    figures = summarize_labels(np.array(truth, float), np.array(probability, float), names)
    return label_bars(figures["per_label"], "validation"), figures["per_label"]


def test_bars_are_as_long_as_their_metrics() -> None:
    rng = np.random.default_rng(2)
    truth = (rng.random((200, 3)) < [0.5, 0.3, 0.1]).astype(float)
    image, rows = bars(truth, np.clip(0.4 * truth + rng.random((200, 3)) * 0.6, 0, 1))
    blue = is_color(image, BLUE).astype(int)
    # Rows of bars from the top; columns of panels from the left.
    edges = np.flatnonzero(np.diff(blue.any(1).astype(int), prepend=0, append=0)).reshape(-1, 2)
    assert len(edges) == 3
    scale = None
    for (top, bottom), row in zip(edges, rows.values(), strict=True):
        line = blue[top + (bottom - top) // 8]
        starts = np.flatnonzero(np.diff(line, prepend=0) == 1)
        panels = np.split(line, [s for s in starts if line[s - 30 : s].sum() == 0])[1:]
        lengths = [np.flatnonzero(panel).max() + 1 for panel in panels]
        assert len(lengths) == 3
        for length, metric in zip(lengths, ("F1", "WA", "AP"), strict=True):
            scale = scale or length / row[metric]
            assert length / scale == pytest.approx(row[metric], abs=0.02)


def test_undefined_metrics_have_no_bar() -> None:
    image, rows = bars([[0.0, np.nan]], [[0.9, 0.1]])  # one utterance, which lacks a label
    assert all(row["F1"] is None for row in rows.values())
    assert not is_color(image, BLUE).any()
    words = (image < 200).any(-1).sum()
    assert words > 300, "names, and 'undefined'"


def test_of_many_labels_the_first_are_drawn() -> None:
    truth = np.tile([[0.0], [1.0]], (1, MOST_LABELS + 5))
    image, _ = bars(truth, truth)
    most, _ = bars(truth[:, :MOST_LABELS], truth[:, :MOST_LABELS])
    assert image.shape[0] == most.shape[0] < 2_500
