"""The chart of a curve: the metric of several models over the values of one parameter, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from awtpn.report.charts import LETTER, LINE, draw_svg, draw_text, nice_ticks

WIDTH, HEIGHT = 460, 250  # without the legend
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 24, 30
ROW = 16  # height of a row of the legend
# The palette of Okabe and Ito, which color-blind readers can tell apart; dashes do the same in print.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "12 4")
WIDE = 8.0  # values whose largest is this many times the smallest are spaced by their logarithms

Point = tuple[float | None, Sequence[float] | None]  # mean and interval


def lines_svg(
    values: Sequence[Any], series: Mapping[str, Sequence[Point]], title: str, percent: bool
) -> Markup:
    """A line for each model, with its intervals as vertical bars; a point that is undefined is left out.

    Args:
        values: of the parameter, in order; if they are not numbers they are spaced evenly.
        series: by model its mean and interval at each value.
        title: above the chart.
        percent: whether the metric is shown in per cent.
    """
    known = [x for points in series.values() for mean, interval in points for x in (mean, *(interval or ()))]
    ends = [x for x in known if x is not None and math.isfinite(x)]
    if not ends:
        return draw_svg(WIDTH, HEIGHT, f"{title}: undefined", [draw_text(LEFT, 16, f"{title}: undefined")])
    ticks = nice_ticks(min(ends), max(ends))
    floor, ceiling = ticks[0], ticks[-1]
    names = legend(list(series))
    top, height = TOP + ROW * names.rows, HEIGHT + ROW * names.rows
    places = [LEFT + 12 + (WIDTH - LEFT - RIGHT - 24) * x for x in spaced(values)]

    def y(value: float) -> float:
        return top + (HEIGHT - TOP - BOTTOM) * (ceiling - value) / (ceiling - floor)

    parts = [draw_text(LEFT, 14, title, css="title")]
    for tick in ticks:
        parts.append(LINE.format("grid", LEFT, WIDTH - RIGHT, y(tick), y(tick)))
        parts.append(
            draw_text(LEFT - 6, y(tick) + 4, f"{100 * tick:.0f}" if percent else f"{tick:g}", "end", "tick")
        )
    for value, x in zip(values, places, strict=True):
        shown = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        parts.append(draw_text(x, height - 8, shown, "middle", css="tick"))
    for number, (name, points) in enumerate(series.items()):
        color, dash = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
        shift = 3.0 * (number - (len(series) - 1) / 2)  # so that bars don't hide each other
        drawn = [
            (x + shift, mean, interval)
            for x, (mean, interval) in zip(places, points, strict=True)
            if mean is not None
        ]
        line = " ".join(f"{x:.1f},{y(mean):.1f}" for x, mean, _ in drawn)
        parts.append(
            Markup(
                '<polyline fill="none" stroke="{}" stroke-width="1.8" stroke-dasharray="{}" points="{}"/>'
            ).format(color, dash, line)
        )
        for x, mean, interval in drawn:
            low, high = interval or (mean, mean)
            parts.append(
                Markup(
                    '<g stroke="{c}" fill="{c}"><line x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                    '<circle cx="{x:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle></g>'
                ).format(y(high), y(low), y(mean), name, c=color, x=x)
            )
    return draw_svg(WIDTH, height, title, [*parts, *names.parts])


@dataclass(frozen=True)
class Legend:
    """The names of the lines in their colors, below the title, and the number of rows that they take."""

    parts: list[Markup]
    rows: int


def legend(names: Sequence[str]) -> Legend:
    """The legend of these lines; a name that does not fit into a row begins the next one."""
    parts, x, row = [], float(LEFT), 0
    for number, name in enumerate(names):
        color, dash = COLORS[number % len(COLORS)], DASHES[number % len(DASHES)]
        wide = 36 + LETTER * len(name)
        if x > LEFT and x + wide > WIDTH:
            x, row = float(LEFT), row + 1
        y = TOP + 2 + ROW * row
        sample = Markup(
            '<line x1="{:.1f}" x2="{:.1f}" y1="{y}" y2="{y}" stroke-width="2" stroke="{}" '
            'stroke-dasharray="{}"/>'
        )
        parts += [sample.format(x, x + 20, color, dash, y=y), draw_text(x + 24, y + 4, name, css="tick")]
        x += wide
    return Legend(parts, row + 1)


def spaced(values: Sequence[Any]) -> list[float]:
    """Where each value is on the axis, from 0 to 1: by its number or logarithm, else evenly."""
    if len(values) == 1:
        return [0.5]
    even = [i / (len(values) - 1) for i in range(len(values))]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values) or len({*values}) < len(
        values
    ):
        return even
    numbers = [float(v) for v in values]
    if min(numbers) > 0 and max(numbers) >= WIDE * min(numbers):
        numbers = [math.log(v) for v in numbers]
    low, high = min(numbers), max(numbers)
    return [(v - low) / (high - low) for v in numbers]
