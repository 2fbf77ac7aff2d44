"""Figures of a validation of values, and of several labels: pure functions, as those of `figures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.metrics.summary import format_metric, shown
from awtpn.tracking.canvas import (
    BLUE,
    DARK,
    GRAY,
    TOP,
    VERMILION,
    Image,
    add_axes,
    names_width,
    new_figure,
    show_frame,
    to_image,
)
from awtpn.tracking.captions import shorten
from awtpn.tracking.snapshot import ValuePairs
from shards.safe_io.printable import plural

MOST_PANELS, PANELS_A_ROW = 12, 4  # dimensions in a scatter plot
MOST_POINTS = 400  # drawn one by one; of more, their density is drawn
MOST_LABELS = 40
LABEL_METRICS = ("F1", "WA", "AP")


def value_scatter(
    values: ValuePairs,
    rows: Mapping[str, Mapping[str, Any]],
    ranges: Sequence[Sequence[float]],
    title: str,
) -> Image:
    """Predicted values against true ones, a panel per dimension, and the line on which they are equal.

    Both axes of a panel have one scale: the dimension's range, or more if a value lies outside of it.

    Args:
        values: of K dimensions; utterances whose truth is missing are left out.
        rows: the metrics of each dimension, by its name, in order.
        ranges: least and largest value of each dimension.
    """
    names = list(rows)[:MOST_PANELS]
    across = min(len(names), PANELS_A_ROW)
    down = math.ceil(len(names) / across)
    side = 5.0 if len(names) == 1 else 3.0
    left, bottom, gap = 0.75, 0.55, 0.5  # of each panel, inches
    width, height = across * (left + side) + gap, down * (gap + side + bottom) + TOP
    figure = new_figure(width, height, title + _left_out(len(rows) - len(names), "dimension"))
    for k, name in enumerate(names):
        down_to_here, across_to_here = divmod(k, across)
        top = TOP + down_to_here * (gap + side + bottom) + gap
        x = left + across_to_here * (left + side)
        axes = add_axes(figure, x, height - top - side, side, side)
        pairs = np.stack([values.truth[:, k], values.predicted[:, k]])
        _draw_pairs(axes, pairs[:, np.isfinite(pairs).all(0)], ranges[k])
        metrics = ", ".join(f"{m} {format_metric(m, rows[name][m])}" for m in ("MAE", "Corr", "CCC"))
        axes.text(0, 1 + 0.22 / side, shorten(name), fontsize=9, weight="bold", transform=axes.transAxes)
        axes.text(0, 1 + 0.06 / side, metrics, fontsize=8, color=DARK, transform=axes.transAxes)
        axes.set_xlabel("true", fontsize=8.5, color=GRAY)
        axes.set_ylabel("predicted", fontsize=8.5, color=GRAY)
    return to_image(figure)


def _draw_pairs(axes: Any, pairs: NDArray[np.float64], bounds: Sequence[float]) -> None:
    """Draw pairs [2, N] (truth, prediction) as points, or many of them as their density."""
    from matplotlib.colors import LogNorm

    all_values = np.append(pairs, bounds)
    low, high = all_values.min(), all_values.max()
    edge = 0.05 * (high - low)
    limits = (low - edge, high + edge)
    if pairs.shape[1] > MOST_POINTS:
        # From below 1, so that a single utterance is not white.
        axes.hexbin(*pairs, gridsize=40, extent=(*limits, *limits), mincnt=1, cmap="Blues", norm=LogNorm(0.2))
    else:
        axes.scatter(*pairs, s=14, color=BLUE, alpha=0.5, linewidths=0)
    axes.plot(limits, limits, color=VERMILION, lw=1.0)
    if pairs.shape[1] == 0:
        axes.text(0.5, 0.5, "no true values", transform=axes.transAxes, ha="center", fontsize=8.5, color=GRAY)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.tick_params(labelsize=7.5, colors=GRAY)
    show_frame(axes, "left", "bottom")


def label_bars(rows: Mapping[str, Mapping[str, Any]], title: str) -> Image:
    """The metrics of each label as bars: a row per label, a column per metric.

    The thin line is what guessing has: WA 50 %, and as AP the share of utterances that have the label. On the
    left are the label's name, and how many of how many utterances have it.

    Args:
        rows: the metrics of each label, by its name, in order.
    """
    names = list(rows)[:MOST_LABELS]
    counts = [f"{rows[name]['positives']:,} of {rows[name]['utterances']:,}" for name in names]
    left = 0.3 + names_width([*names, *counts])
    column, gap, row, bottom = 2.1, 0.35, 0.42, 0.2
    high = row * max(len(names), 3)
    figure = new_figure(
        left + len(LABEL_METRICS) * (column + gap),
        bottom + high + 0.25 + TOP,
        title + _left_out(len(rows) - len(names), "label"),
    )
    for m, metric in enumerate(LABEL_METRICS):
        axes = add_axes(figure, left + m * (column + gap), bottom, column, high)
        for i, name in enumerate(names):
            value = rows[name][metric]
            axes.barh(i, value or 0.0, height=0.6, color=BLUE)
            # 0.02: beside the bar's end.
            words = format_metric(metric, value)
            axes.text(
                (value or 0.0) + 0.02,
                i,
                words,
                va="center",
                fontsize=8,
                color=GRAY if value is None else DARK,
            )
            if value is not None and (line := _of_guessing(metric, rows[name])) is not None:
                axes.plot([line, line], [i - 0.4, i + 0.4], color=DARK, lw=0.8)
        axes.set_xlim(0, 1.2)  # with room for the number beside a whole bar
        axes.set_ylim(high / row - 0.5, -0.5)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{shown(metric)}, %", fontsize=8.5, loc="left")
        show_frame(axes, "left")
    beside = add_axes(figure, 0, bottom, left, high)
    beside.set_xlim(0, left)
    beside.set_ylim(high / row - 0.5, -0.5)
    beside.axis("off")
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        beside.text(0.15, i - 0.16, shorten(name), fontsize=8.5, color=DARK, va="center", weight="bold")
        beside.text(0.15, i + 0.24, count, fontsize=7, color=GRAY, va="center")
    return to_image(figure)


def _of_guessing(metric: str, row: Mapping[str, Any]) -> float | None:
    """What guessing has of a metric that is defined; None if that depends on how it guesses."""
    if metric == "WA":
        return 0.5
    return row["positives"] / row["utterances"] if metric == "AP" else None


def _left_out(count: int, what: str) -> str:
    return f" (without {plural(count, what)})" if count else ""
