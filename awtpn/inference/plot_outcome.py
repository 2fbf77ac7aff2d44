"""The answer beside the plots of a prediction: bars of probabilities, or values within their range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from awtpn.inference.prediction import Prediction
from shards.safe_io.printable import printable

INK, QUIET, LINE, PAPER = "#1f2933", "#7b8794", "#d5dbe1", "#ffffff"
BACK, BAR = "#eef1f4", "#a9b4bf"  # of a whole bar, and of those that are not the answer
INCHES_PER_BAR = 0.34
LONGEST_TITLE = 46  # characters


def outcome_title(prediction: Prediction) -> str:
    """What is predicted, short enough for the title."""
    title = printable(prediction.described())
    if prediction.label is not None or len(title) <= LONGEST_TITLE:
        return title
    if prediction.labels:
        return f"{len(prediction.labels)} labels"
    return f"{title[: LONGEST_TITLE - 1]}…"


def draw_outcome(axes: Any, prediction: Prediction, ranges: Mapping[str, Sequence[float]]) -> None:
    """Draw the answer; as many rows as fit.

    Args:
        axes: to draw in.
        prediction: of any task.
        ranges: least and largest value by dimension, where known.
    """
    room = int(axes.get_window_extent().height / axes.figure.dpi / INCHES_PER_BAR)
    axes.set_facecolor(PAPER)
    axes.axis("off")
    if prediction.values is not None:
        _values(axes, prediction, ranges, room)
    else:
        _probabilities(axes, prediction, room)


def _probabilities(axes: Any, prediction: Prediction, room: int) -> None:
    """Bars of the most probable classes or labels, the most probable on top."""
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:room]
    names, values = [name for name, _ in ranked], [value for _, value in ranked]
    chosen = {prediction.label} if prediction.labels is None else set(prediction.labels)
    rows = range(len(names))
    axes.barh(rows, [1] * len(names), height=0.16, color=BACK)
    axes.barh(rows, values, height=0.16, color=[INK if name in chosen else BAR for name in names])
    for row, name, value in zip(rows, names, values, strict=True):
        _write_row(axes, row, name, f"{value:.1%}", name in chosen)
    _frame(axes, len(names))


def _values(axes: Any, prediction: Prediction, ranges: Mapping[str, Sequence[float]], room: int) -> None:
    """Each value as a dot on a bar from the least to the largest value, its interval in a darker color."""
    values, intervals = prediction.values or {}, prediction.intervals or {}
    # A row needs the height of two bars, since the ends of the range are written below it.
    shown = list(values.items())[: max(1, room // 2)]
    for row, (name, value) in enumerate(shown):
        interval = intervals.get(name)
        low, high = ranges.get(name) or interval or (value, value)
        low, high = min(low, value), max(high, value)
        width = high - low or 1.0
        axes.barh(row, 1, height=0.16, color=BACK)
        if interval is not None:
            begin, end = ((edge - low) / width for edge in interval)
            axes.barh(row, end - begin, left=begin, height=0.16, color=BAR)
        axes.plot((value - low) / width, row, "o", color=INK, markersize=7)
        told = "" if interval is None else f"  ({interval[0]:.4g} to {interval[1]:.4g})"
        _write_row(axes, row, name, f"{value:.4g}{told}", False)
        look: dict[str, Any] = {"va": "top", "fontsize": 8.5, "color": QUIET}
        axes.text(0, row + 0.16, f"{low:.4g}", **look)
        axes.text(1, row + 0.16, f"{high:.4g}", ha="right", **look)
    _frame(axes, len(shown))
    if any(intervals.get(name) is not None for name, _ in shown):
        axes.text(0, len(shown) - 0.42, "dark: 90 % interval", va="top", fontsize=8.5, color=QUIET)


def _write_row(axes: Any, row: int, name: str, told: str, is_answer: bool) -> None:
    """The name and the figure above a bar."""
    look: dict[str, Any] = {"va": "bottom", "fontsize": 10.5}
    weight = "bold" if is_answer else "normal"
    # parse_math=False: names may contain $, which is not a formula.
    axes.text(0, row - 0.16, printable(name), color=INK, fontweight=weight, parse_math=False, **look)
    axes.text(1, row - 0.16, told, color=QUIET, ha="right", **look)


def _frame(axes: Any, rows: int) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(rows - 0.3, -0.75)
