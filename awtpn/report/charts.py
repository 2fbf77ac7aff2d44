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

from awtpn.report.data import Curve
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
    names = [_shorten(name) for name in classes]
    longest = LETTER * max(map(len, names))
    left, top = longest + 26, 0.72 * longest + 22
    parts = []
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    for i, true in enumerate(classes):
        y = top + i * cell
        parts.append(_text(left - 8, y + cell / 2 + 4, names[i], anchor="end"))
        parts.append(_text(left + i * cell + cell / 2 + 4, top - 8, names[i], turned=-45))
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
                    _text(middle, y + 23, f"{100 * part:.0f}", "middle", css=f"cell{strong}")
                    + _text(middle, y + 38, str(confusion[i, j]), "middle", css=f"count{strong}")
                )
    width, height = left + count * cell + 0.72 * longest, top + count * cell + 4
    label = "confusion matrix: rows are true classes, columns predictions, in per cent of the row"
    return _svg(width, height, label, parts)


def curve_svg(curves: Sequence[Curve], title: str, percent: bool = False) -> Markup:
    """The mean of curves (steps, values) over steps, and the band from the smallest to the largest."""
    width, height, left, right, top, bottom = 270, 180, 42, 10, 30, 26
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:  # no step had a finite value
        return _svg(width, height, f"{title}: no finite values", [_text(left, 16, f"{title}: none finite")])
    steps, values = common_grid(curves)
    mean, low, high = values.mean(0), values.min(0), values.max(0)
    ticks = nice_ticks(float(low.min()), float(high.max()))
    floor, ceiling = ticks[0], ticks[-1]
    end = float(steps[-1])

    def x(step: float) -> float:
        return left + (width - left - right) * step / max(end, 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (ceiling - value) / (ceiling - floor)

    parts = [_text(left, 16, title, css="title")]
    for tick in ticks:
        shown = f"{100 * tick:.0f}" if percent else f"{tick:g}"
        parts.append(LINE.format("grid", left, width - right, y(tick), y(tick)))
        parts.append(_text(left - 6, y(tick) + 4, shown, "end", css="tick"))
    for step in [t for t in nice_ticks(0, end, 4) if t <= end]:
        parts.append(_text(x(step), height - 8, f"{step:g}", "middle", css="tick"))
    if len(curves) > 1:
        outline = [*zip(steps, high, strict=True), *zip(steps[::-1], low[::-1], strict=True)]
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in outline)
        parts.append(Markup('<polygon class="band" points="{}"/>').format(points))
    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(steps, mean, strict=True))
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(points))
    return _svg(width, height, f"{title} over steps", parts)


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


def calibration_svg(table: Sequence[dict[str, float]]) -> Markup:
    """Accuracy over confidence, equal on the diagonal. A circle's area is its share of utterances."""
    size, left, bottom, margin = 264, 52, 40, 20  # the margin leaves room for a circle at 100 %
    side, top = size - left - margin, margin

    def x(value: float) -> float:
        return left + side * value

    def y(value: float) -> float:
        return top + side * (1 - value)

    parts = [LINE.format("diagonal", x(0), x(1), y(0), y(1))]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            LINE.format("grid", x(0), x(1), y(tick), y(tick))
            + _text(left - 6, y(tick) + 4, f"{100 * tick:.0f}", "end", css="tick")
            + _text(x(tick), y(0) + 16, f"{100 * tick:.0f}", "middle", css="tick")
        )
    total = sum(row["count"] for row in table)
    for row in table:
        radius = 3 + 16 * math.sqrt(row["count"] / total)
        confidence, accuracy = row["confidence"], row["accuracy"]
        title = f"{row['count']:.0f} predictions, confidence {confidence:.2f}, accuracy {accuracy:.2f}"
        dot = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>')
        parts.append(dot.format(x(confidence), y(accuracy), radius, title))
    parts.append(_text(x(0.5), y(0) + 32, "confidence, %", "middle", css="tick"))
    parts.append(_text(12, y(0.5), "accuracy, %", "middle", css="tick", turned=-90))
    return _svg(size, top + side + bottom, "accuracy over confidence", parts)


def interval_svg(mean: float, low: float, high: float) -> Markup:
    """A metric and its interval on a line from 0 to 1. Intervals of few folds can be wider, and are cut."""
    width, height, y, radius = 200, 16, 8, 4
    label = f"{100 * mean:.1f}, interval {100 * low:.1f} to {100 * high:.1f}"

    def x(value: float) -> float:
        return radius + (width - 2 * radius) * min(max(value, 0.0), 1.0)

    return _svg(
        width,
        height,
        label,
        [
            LINE.format("axis", x(0), x(1), y, y),
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


def _text(
    x: float, y: float, text: str, anchor: str = "start", css: str = "label", turned: float | None = None
) -> Markup:
    """A text, `turned` by so many degrees about its position."""
    turn = "" if turned is None else Markup(' transform="rotate({:g} {:.0f} {:.0f})"').format(turned, x, y)
    element = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}"{}>{}</text>')
    return element.format(x, y, anchor, css, turn, printable(text))


def _shorten(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    element = Markup('<svg viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" role="img" aria-label="{}">{}</svg>')
    return element.format(label, Markup("").join(parts), w=width, h=height)
