"""Figures of a validation, drawn with matplotlib into arrays [H, W, 3] uint8: pure functions.

Of classes: the confusion matrix. Of every task: the prototypes, and reliability weights over time. Those of
values and of several labels are in `target_figures`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.model.modality_colors import modality_colors
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
from awtpn.tracking.snapshot import Example

MOST_NUMBERS = 20  # a matrix with more rows has no numbers in its cells
NAME_IN = 0.12  # height of a name beside a matrix, inches
HEADING_LETTERS = 34
# Before an answer that is right, wrong, or neither, and its color.
MARKS = {True: ("✓ ", BLUE), False: ("✗ ", VERMILION), None: ("", DARK)}


def confusion_matrix(confusion: NDArray[np.int64], classes: Sequence[str], title: str) -> Image:
    """A confusion matrix [C, C], true classes as rows; each cell has its count and per cent of the row."""
    count = np.asarray(confusion)
    share = count / np.maximum(count.sum(1, keepdims=True), 1)
    side = max(3.4, 0.62 * len(classes)) if len(classes) <= MOST_NUMBERS else 9.0
    left, bottom = 0.5 + names_width(classes), 0.5 + 0.72 * names_width(classes)
    figure = new_figure(left + side + 0.15, bottom + side + TOP, title)
    axes = add_axes(figure, left, bottom, side, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= MOST_NUMBERS:
        for i, j in np.argwhere(count):
            text = f"{count[i, j]}\n{100 * share[i, j]:.0f} %"
            color = "white" if share[i, j] > 0.55 else DARK
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
    _name_cells(axes, classes)
    axes.set_xlabel("predicted", color=GRAY)
    axes.set_ylabel("true", color=GRAY)
    return to_image(figure)


def prototype_map(
    prototypes: NDArray[np.float32],
    states: Sequence[str],
    before: NDArray[np.float32] | None,
    title: str,
    groups: Sequence[int] = (),
) -> Image:
    """Euclidean distances between the prototypes [S*K, D], and beside them how far each moved since `before`.

    With K > 1 the prototypes of a state are neighbors. White lines separate the states, wide ones the groups.

    Args:
        states: names of the S states: the classes, or `Task.states`.
        groups: states of each group, if there are several: of a label, or of a dimension.
    """
    count = len(prototypes)
    per_state = count // len(states)
    prototypes = np.nan_to_num(prototypes)
    distance = distances_between(prototypes)
    apart = ~np.eye(count, dtype=bool)
    low, high = (distance[apart].min(), distance[apart].max()) if apart.any() else (0.0, 0.0)
    side = max(3.4, 0.5 * count) if count <= MOST_NUMBERS else 7.5
    left, bottom, bar = 0.25 + names_width(states), 0.25 + 0.72 * names_width(states), 1.7
    figure = new_figure(left + side + 0.25 + bar + 0.15, bottom + side + TOP, title)
    axes = add_axes(figure, left, bottom, side, side)
    # The color scale leaves out the diagonal: with its zeros all other cells would look alike.
    axes.imshow(np.where(apart, distance, np.nan), cmap="cividis", vmin=low, vmax=max(high, low + 1e-9))
    if count <= MOST_NUMBERS:
        for i, j in np.argwhere(apart):
            color = DARK if distance[i, j] > (low + high) / 2 else "white"
            axes.text(j, i, _short(distance[i, j]), ha="center", va="center", color=color, fontsize=7.5)
    # Levels may be a thousand: then some have a name.
    every = math.ceil(len(states) * NAME_IN / side) if groups else 1
    _name_cells(axes, states, per_state, every)
    borders = np.cumsum(groups)[:-1] * per_state - 0.5
    for border in borders:
        axes.axhline(border, color="white", lw=3)
        axes.axvline(border, color="white", lw=3)

    beside = add_axes(figure, left + side + 0.25, bottom, bar, side)
    moved = np.zeros(count) if before is None else np.linalg.norm(prototypes - before, axis=1)
    beside.barh(np.arange(count), moved, height=0.7, color=BLUE)
    beside.set_ylim(axes.get_ylim())
    beside.set_xlim(0, max(1.5 * float(moved.max(initial=0)), 1e-6))
    beside.set_yticks([])
    beside.set_xticks([])
    if count <= MOST_NUMBERS:
        for i, value in enumerate(moved):
            beside.text(value, i, f" {_short(value)}", va="center", fontsize=7.5, color=DARK)
    beside.set_title(
        "moved since the last" if before is not None else "no earlier one", fontsize=8.5, loc="left"
    )
    for border in borders:
        beside.axhline(border, color=GRAY, lw=0.6)
    show_frame(beside, "left")
    return to_image(figure)


def weights_over_time(examples: Sequence[Example], title: str, heading: str = "") -> Image:
    """Reliability weights of some utterances over their time steps: a row each, a column per modality.

    Weights are shown as multiples of the uniform weight, which is the thin line. All rows of a column have
    the same scale. On the left are the truth and the prediction: see `captions.caption`.

    Args:
        heading: of these words: what their values are of.
    """
    colors = modality_colors(examples[0].weights if examples else ())
    left, column, gap, row = 2.35, 3.6, 0.35, 0.72
    height = row * max(len(examples), 1)
    width = left + max(len(colors), 1) * (column + gap)
    figure = new_figure(width, 0.45 + height + 0.25 + TOP, title)
    for m, (modality, color) in enumerate(colors.items()):
        axes = add_axes(figure, left + m * (column + gap), 0.45, column, height)
        _draw_weights(axes, [e.weights[modality] for e in examples], modality, color)
    names = add_axes(figure, 0, 0.45, left, height)
    names.set_xlim(0, left)
    names.set_ylim(len(examples), 0)
    names.axis("off")
    if heading:
        names.set_title(shorten(heading, HEADING_LETTERS), fontsize=8.5, loc="left", x=0.15 / left)
    for i, example in enumerate(examples):
        words = example.caption
        names.text(0.15, i + 0.3, words.truth, fontsize=9, color=DARK, va="center", weight="bold")
        mark, color = MARKS[words.right]
        names.text(0.15, i + 0.56, mark + words.answer, fontsize=8.5, color=color, va="center")
        names.text(0.15, i + 0.8, shorten(example.key), fontsize=7, color=GRAY, va="center")
    return to_image(figure)


def _draw_weights(axes: Any, rows: Sequence[NDArray[np.float32]], modality: str, color: str) -> None:
    multiples = [np.nan_to_num(weights * len(weights)) for weights in rows]
    largest = max([1.0, *(float(m.max()) for m in multiples if len(m))])
    top = 1.15 * max(largest, 2.0)
    for i, of in enumerate(multiples):
        base = i + 0.97  # the bottom of this row
        if len(of) == 0:
            axes.text(0.5, i + 0.6, f"no {modality}", fontsize=8, color=GRAY, va="center")
            continue
        axes.stairs(base - 0.94 * of / top, np.arange(len(of) + 1), baseline=base, fill=True, lw=0)
        axes.patches[-1].set_facecolor(color)
        axes.plot([0, len(of)], [base - 0.94 / top] * 2, color=DARK, lw=0.6, alpha=0.6)
        axes.plot([0, len(of)], [base] * 2, color=GRAY, lw=0.6)
    axes.set_xlim(0, max([1, *(len(m) for m in multiples)]))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([])
    axes.set_xlabel("step", fontsize=8, color=GRAY, labelpad=1)
    axes.tick_params(labelsize=7.5, colors=GRAY)
    axes.set_title(f"{modality}: up to {largest:.1f} times the uniform weight", fontsize=8.5, loc="left")
    show_frame(axes, "bottom")


def distances_between(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distances [N, N] between `vectors` [N, D]."""
    wide = vectors.astype(np.float64)
    squares = (wide**2).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * wide @ wide.T, 0) * (1 - np.eye(len(wide))))


def _name_cells(axes: Any, names: Sequence[str], per_name: int = 1, every: int = 1) -> None:
    """Label both axes of a matrix; each name has `per_name` rows and columns. `every`-th names are shown."""
    centers = (np.arange(len(names)) * per_name + (per_name - 1) / 2)[::every]
    shown = [shorten(name) for name in names[::every]]
    axes.set_xticks(centers, shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.set_yticks(centers, shown, fontsize=8.5)
    if per_name > 1:
        for edge in np.arange(1, len(names)) * per_name - 0.5:
            axes.axhline(edge, color="white", lw=1.5)
            axes.axvline(edge, color="white", lw=1.5)
    axes.tick_params(length=0)
    show_frame(axes)


def _short(value: float) -> str:
    """A number with three digits, which is what fits into a matrix's cells."""
    return f"{value:.0f}" if 99.5 <= abs(value) < 9999.5 else f"{value:.3g}"
