"""Charts of a report as inline SVG: pure functions from numbers to `Markup`.

Colors are CSS variables of the page (`--accent`, `--ink`, ...), so that a chart fits light and dark mode and
print. Every element is formatted by `Markup.format`, which escapes its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from awtpn.report.run_record import Curve
from shards.safe_io.printable import printable

MOST_NUMBERS = 16  # a matrix with more classes has no numbers in its cells
POINTS = 120  # largest number of points of a curve
LETTER = 6.6  # width of a letter, px
LONGEST = 32  # letters of a class's name that are shown; the cells' titles have all of it

LINE = Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')


def confusion_svg(confusion: NDArray[np.int64], classes: Sequence[str]) -> Markup:
    """Confusion matrix [C, C], true classes as rows. Cells show per cent of the row as shade and number, and
    the count below it.
    """
    count = len(classes)
    numbers = count <= MOST_NUMBERS
    cell = 52 if numbers else max(8, 640 // count)
    names = [shorten(name) for name in classes]
    longest = LETTER * max(map(len, names))
    left, top = longest + 26, 0.72 * longest + 22
    parts = []
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    for i, true in enumerate(classes):
        y = top + i * cell
        parts.append(draw_text(left - 8, y + cell / 2 + 4, names[i], anchor="end"))
        parts.append(draw_text(left + i * cell + cell / 2 + 4, top - 8, names[i], turned=-45))
        for j, predicted in enumerate(classes):
            x, part = left + j * cell, float(share[i, j])
            title = f"{true} predicted as {predicted}: {confusion[i, j]} of {confusion[i].sum()}"
            square = Markup(
                '<rect x="{:.0f}" y="{:.0f}" width="{side}" height="{side}" rx="3" class="{}" '
                'fill-opacity="{:.2f}"><title>{}</title></rect>'
            )
            css = "hit" if i == j else "miss"
            parts.append(square.format(x, y, css, 0.04 + 0.96 * part, printable(title), side=cell - 2))
            if numbers and confusion[i, j]:
                strong = " strong" if part > 0.5 else ""
                middle = x + cell / 2 - 1
                parts.append(
                    draw_text(middle, y + 23, f"{100 * part:.0f}", "middle", css=f"cell{strong}")
                    + draw_text(middle, y + 38, str(confusion[i, j]), "middle", css=f"count{strong}")
                )
    width, height = left + count * cell + 0.72 * longest, top + count * cell + 4
    label = "confusion matrix: rows are true classes, columns predictions, in per cent of the row"
    return draw_svg(width, height, label, parts)


def curve_svg(curves: Sequence[Curve], title: str, percent: bool = False) -> Markup:
    """The mean of curves (steps, values) over steps, and the band from the smallest to the largest."""
    width, height, left, right, top, bottom = 270, 180, 42, 10, 30, 26
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:  # no step had a finite value
        return draw_svg(
            width, height, f"{title}: no finite values", [draw_text(left, 16, f"{title}: none finite")]
        )
    steps, values = common_grid(curves)
    mean, low, high = values.mean(0), values.min(0), values.max(0)
    ticks = nice_ticks(float(low.min()), float(high.max()))
    floor, ceiling = ticks[0], ticks[-1]
    end = float(steps[-1])

    def x(step: float) -> float:
        return left + (width - left - right) * step / max(end, 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (ceiling - value) / (ceiling - floor)

    parts = [draw_text(left, 16, title, css="title")]
    for tick in ticks:
        shown = f"{100 * tick:.0f}" if percent else f"{tick:g}"
        parts.append(LINE.format("grid", left, width - right, y(tick), y(tick)))
        parts.append(draw_text(left - 6, y(tick) + 4, shown, "end", css="tick"))
    for step in [t for t in nice_ticks(0, end, 4) if t <= end]:
        parts.append(draw_text(x(step), height - 8, f"{step:g}", "middle", css="tick"))
    if len(curves) > 1:
        outline = [*zip(steps, high, strict=True), *zip(steps[::-1], low[::-1], strict=True)]
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in outline)
        parts.append(Markup('<polygon class="band" points="{}"/>').format(points))
    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, mean, strict=True))
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(points))
    return draw_svg(width, height, f"{title} over steps", parts)


def common_grid(curves: Sequence[Curve]) -> Curve:
    """Resample curves of different lengths to common steps [P]: returns the steps and values [curves, P].

    A point is the mean over the steps around it; a curve with few points is interpolated. All end where the
    shortest curve ends, so that every mean is over all curves.
    """
    end = min(float(steps[-1]) for steps, _ in curves)
    longest = max(int((steps <= end).sum()) for steps, _ in curves)
    edges = np.linspace(min(float(steps[0]) for steps, _ in curves), end, min(POINTS, longest))
    rows = []
    for steps, values in curves:
        if len(steps) > 2 * len(edges):
            place = np.searchsorted((edges[1:] + edges[:-1]) / 2, steps[steps <= end])
            kept = values[: len(place)]
            counts = np.maximum(np.bincount(place, minlength=len(edges)), 1)
            rows.append(np.bincount(place, weights=kept, minlength=len(edges)) / counts)
        else:
            rows.append(np.interp(edges, steps, values))
    return edges, np.stack(rows)


def calibration_svg(
    table: Sequence[dict[str, float]],
    title: str = "",
    confidence: str = "confidence",
    accuracy: str = "accuracy",
) -> Markup:
    """Accuracy over confidence, equal on the diagonal. A circle's area is its share of utterances.

    Args:
        table: rows with "confidence", "accuracy" and "count".
        title: above the chart.
        confidence: name of the horizontal axis.
        accuracy: name of the vertical axis.
    """
    size, left, bottom, margin = 264, 52, 40, 20  # the margin leaves room for a circle at 100 %
    side, top = size - left - margin, margin + (16 if title else 0)

    def x(value: float) -> float:
        return left + side * value

    def y(value: float) -> float:
        return top + side * (1 - value)

    parts = [draw_text(left - 40, 14, shorten(title), css="title")] if title else []
    parts.append(LINE.format("diagonal", x(0), x(1), y(0), y(1)))
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            LINE.format("grid", x(0), x(1), y(tick), y(tick))
            + draw_text(left - 6, y(tick) + 4, f"{100 * tick:.0f}", "end", css="tick")
            + draw_text(x(tick), y(0) + 16, f"{100 * tick:.0f}", "middle", css="tick")
        )
    total = sum(row["count"] for row in table)
    for row in table:
        radius = 3 + 16 * math.sqrt(row["count"] / total)
        place = row["confidence"], row["accuracy"]
        words = f"{row['count']:.0f} predictions, {confidence} {place[0]:.2f}, {accuracy} {place[1]:.2f}"
        parts.append(dot(x(place[0]), y(place[1]), radius, words))
    parts.append(draw_text(x(0.5), y(0) + 32, f"{confidence}, %", "middle", css="tick"))
    parts.append(draw_text(12, y(0.5), f"{accuracy}, %", "middle", css="tick", turned=-90))
    label = f"{accuracy} over {confidence}"
    return draw_svg(size, top + side + bottom, f"{printable(title)}: {label}" if title else label, parts)


def interval_svg(
    mean: float, low: float, high: float, ends: tuple[float, float] = (0.0, 1.0), percent: bool = True
) -> Markup:
    """A metric and its interval on a line. Intervals of few folds can be wider than it, and are cut.

    Args:
        ends: of the line.
        percent: the label gives the figures in per cent.
    """
    width, height, y, radius = 200, 16, 8, 4
    mean_, low_, high_, *of_line = (
        f"{100 * v:.1f}" if percent else f"{v:.4g}" for v in (mean, low, high, *ends)
    )
    label = f"{mean_}, interval {low_} to {high_}"
    if not percent:
        label += f", on a line from {of_line[0]} to {of_line[1]}"

    def x(value: float) -> float:
        place = (value - ends[0]) / (ends[1] - ends[0])
        return radius + (width - 2 * radius) * min(max(place, 0.0), 1.0)

    return draw_svg(
        width,
        height,
        label,
        [
            LINE.format("axis", x(ends[0]), x(ends[1]), y, y),
            LINE.format("range", x(low), x(high), y, y),
            Markup('<circle class="mark" cx="{:.1f}" cy="{}" r="{}"/>').format(x(mean), y, radius),
        ],
    )


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers, the first at most `low`, the last at least `high`."""
    span = max(high - low, 1e-9)
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def dot(x: float, y: float, radius: float, title: str) -> Markup:
    """A circle that shows a text when it is pointed at."""
    circle = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>')
    return circle.format(x, y, radius, title)


def draw_text(
    x: float, y: float, text: str, anchor: str = "start", css: str = "label", turned: float | None = None
) -> Markup:
    """A text, `turned` by so many degrees about its position."""
    turn = "" if turned is None else Markup(' transform="rotate({:g} {:.0f} {:.0f})"').format(turned, x, y)
    element = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}"{}>{}</text>')
    return element.format(x, y, anchor, css, turn, printable(text))


def shorten(name: str) -> str:
    """A name with its control characters escaped, and cut after LONGEST letters."""
    shown = printable(name)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def draw_svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    """An image of this size, px; `label` says to screen readers what it shows."""
    element = Markup('<svg viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" role="img" aria-label="{}">{}</svg>')
    return element.format(label, Markup("").join(parts), w=width, h=height)
