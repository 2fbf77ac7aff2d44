"""Charts of predicted values and of labels as inline SVG; see `charts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from awtpn.report.charts import LINE, dot, draw_svg, draw_text, nice_ticks, shorten
from shards.safe_io.printable import plural, printable

Floats = NDArray[np.float64]

MOST_POINTS = 2_000  # of a scatter; of more, evenly spaced ones are drawn
HISTOGRAM_BINS = 31
WIDTH, HEIGHT = 320, 292
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 36, 40


@dataclass(frozen=True)
class Frame:
    """The area of a chart between its axes.

    Attributes:
        x_ticks, y_ticks: ascending; the first and the last are the area's edges.
    """

    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return LEFT + (WIDTH - LEFT - RIGHT) * _clipped((value - low) / (high - low))

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - _clipped((value - low) / (high - low)))

    def drawn(self, title: str, x_name: str, y_name: str, percent: bool = False) -> list[Markup]:
        """Title, grid, ticks and the names of the axes; with `percent` 1 is shown as 100."""
        left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [draw_text(left - 44, 16, shorten(title), css="title")]
        for tick in self.y_ticks:
            parts.append(LINE.format("grid", left, right, self.y(tick), self.y(tick)))
            parts.append(draw_text(left - 6, self.y(tick) + 4, _tick(tick, percent), "end", css="tick"))
        for tick in self.x_ticks:
            parts.append(draw_text(self.x(tick), bottom + 16, _tick(tick, percent), "middle", css="tick"))
        parts.append(draw_text((left + right) / 2, HEIGHT - 6, x_name, "middle", css="tick"))
        parts.append(draw_text(11, (TOP + bottom) / 2, y_name, "middle", css="tick", turned=-90))
        return parts

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Points as the attribute `points` of a line."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def scatter_svg(truth: Floats, predicted: Floats, name: str) -> Markup:
    """Predicted over true values of one dimension [U], equal on the diagonal; NaN are left out."""
    truth, predicted = _both(truth, predicted)
    if not len(truth):
        return _nothing(name, "predicted over true values")
    ticks = axis_ticks(np.concatenate([truth, predicted]))
    frame = Frame(ticks, ticks)
    parts = frame.drawn(name, "true", "predicted")
    parts.append(_diagonal(frame))
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(MOST_POINTS, len(truth))).round().astype(int))
    # One path of lines without length, which round caps make points: small, and fast to draw.
    steps = "".join(f"M{frame.x(truth[i]):.1f} {frame.y(predicted[i]):.1f}h0" for i in chosen)
    parts.append(Markup('<path class="points" d="{}"/>').format(steps))
    label = f"{printable(name)}: predicted over true values of {plural(len(truth), 'prediction')}"
    return draw_svg(WIDTH, HEIGHT, label, parts)


def value_calibration_svg(table: Sequence[dict[str, float]], name: str) -> Markup:
    """Mean truth over mean prediction of each bin, equal on the diagonal.

    Args:
        table: as `awtpn.metrics.calibration.value_calibration` returns it. A circle's area is its share of
            predictions; its line has the deviation of the truth to both sides.
        name: of the dimension.
    """
    what = "mean true value over mean prediction"
    if not table:
        return _nothing(name, what)
    edges = [[r["predicted"], r["truth"] - r["deviation"], r["truth"] + r["deviation"]] for r in table]
    ticks = axis_ticks(np.array(edges).ravel())
    frame = Frame(ticks, ticks)
    parts = frame.drawn(name, "mean prediction", "mean true value")
    parts.append(_diagonal(frame))
    total = sum(row["count"] for row in table)
    for row, (place, low, high) in zip(table, edges, strict=True):
        x = frame.x(place)
        parts.append(LINE.format("range thin", x, x, frame.y(low), frame.y(high)))
        words = (
            f"{row['count']:.0f} predictions, mean {row['predicted']:.4g}, true {row['truth']:.4g}, "
            f"deviation {row['deviation']:.4g}"
        )
        parts.append(dot(x, frame.y(row["truth"]), 2 + 10 * math.sqrt(row["count"] / total), words))
    return draw_svg(WIDTH, HEIGHT, f"{printable(name)}: {what}, {plural(len(table), 'bin')}", parts)


def residuals_svg(residual: Floats, half_width: float | None, name: str) -> Markup:
    """Histogram of the residuals [U] of one dimension, and its interval as a band; NaN are left out."""
    what = "residuals, truth - prediction"
    residual = residual[np.isfinite(residual)]
    if not len(residual):
        return _nothing(name, what)
    widths = [] if half_width is None else [-half_width, half_width]
    x_ticks = axis_ticks(np.concatenate([residual, widths, [0.0]]))
    counts, edges = np.histogram(residual, HISTOGRAM_BINS, (x_ticks[0], x_ticks[-1]))
    share = counts / len(residual)
    frame = Frame(x_ticks, nice_ticks(0.0, float(share.max())))
    parts = frame.drawn(name, "truth - prediction", "share of predictions")
    box = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>')
    floor = frame.y(0.0)
    if half_width is not None:
        x = frame.x(-half_width)
        shown = Markup("<title>{}</title>").format(f"90 % interval: -{half_width:.4g} to {half_width:.4g}")
        parts.append(box.format("band", x, TOP, frame.x(half_width) - x, floor - TOP, shown))
    for i in np.flatnonzero(counts):
        x, y = frame.x(edges[i]), frame.y(share[i])
        words = f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {counts[i]} of {len(residual)}"
        shown = Markup("<title>{}</title>").format(words)
        parts.append(box.format("hit", x, y, frame.x(edges[i + 1]) - x - 0.6, floor - y, shown))
    parts.append(LINE.format("diagonal", frame.x(0), frame.x(0), TOP, floor))
    label = f"{printable(name)}: histogram of the {what}, {plural(len(residual), 'prediction')}"
    if half_width is not None:
        label += f", and the 90 % interval of -{half_width:.4g} to {half_width:.4g}"
    return draw_svg(WIDTH, HEIGHT, label, parts)


def precision_recall_svg(
    curve: Sequence[dict[str, float]],
    chosen: tuple[float, float, float] | None,
    share: float,
    name: str,
) -> Markup:
    """Precision over recall of one label.

    Args:
        curve: as `awtpn.metrics.calibration.precision_recall_curve` returns it.
        chosen: recall and precision at the threshold of the metrics, and this threshold.
        share: of the utterances that have the label: the precision of chance.
        name: of the label.
    """
    what = "precision over recall"
    if not curve:
        return _nothing(name, what, "no utterances have the label")
    ticks = [0, 0.25, 0.5, 0.75, 1.0]
    frame = Frame(ticks, ticks)
    parts = frame.drawn(name, "recall, %", "precision, %", percent=True)
    parts.append(LINE.format("diagonal", frame.x(0), frame.x(1), frame.y(share), frame.y(share)))
    points = [(0.0, curve[0]["precision"]), *((row["recall"], row["precision"]) for row in curve)]
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(frame.path(points)))
    if chosen is not None:
        recall, precision, threshold = chosen
        words = f"above {threshold:g}: recall {100 * recall:.1f} %, precision {100 * precision:.1f} %"
        parts.append(dot(frame.x(recall), frame.y(precision), 5, words))
    return draw_svg(WIDTH, HEIGHT, f"{printable(name)}: {what}", parts)


def axis_ticks(values: Floats) -> list[float]:
    """Round numbers from below the smallest to above the largest value; wider if these are the same."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        margin = 0.05 * abs(low) or 0.5
        low, high = low - margin, high + margin
    return nice_ticks(low, high)


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.0f}" if percent else f"{value:.4g}"


def _clipped(share: float) -> float:
    return min(max(share, 0.0), 1.0)


def _diagonal(frame: Frame) -> Markup:
    ticks = frame.x_ticks
    return LINE.format(
        "diagonal", frame.x(ticks[0]), frame.x(ticks[-1]), frame.y(ticks[0]), frame.y(ticks[-1])
    )


def _both(truth: Floats, other: Floats) -> tuple[Floats, Floats]:
    known = np.isfinite(truth) & np.isfinite(other)
    return truth[known], other[known]


def _nothing(name: str, what: str, why: str = "no utterances") -> Markup:
    parts = [
        draw_text(LEFT - 44, 16, shorten(name), css="title"),
        draw_text(LEFT - 44, 40, why, css="tick"),
    ]
    return draw_svg(WIDTH, 56, f"{printable(name)}: {what}: {why}", parts)
