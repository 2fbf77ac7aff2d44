"""Figures of a validation, drawn with matplotlib into arrays [H, W, 3] uint8: pure functions.

Colors can be told apart by color-blind readers and in print: one hue by lightness, or blue and vermilion.
Layouts are fixed in inches. Letting matplotlib fit them would draw everything twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.model.modality_colors import PALETTE, modality_colors
from awtpn.tracking.snapshot import Example
from shards.safe_io.printable import printable

Image = NDArray[np.uint8]  # [H, W, 3]

DPI = 110
TOP = 0.45  # height of the title, inches
BLUE, VERMILION = PALETTE[:2]
GRAY, DARK = "#767676", "#222222"
LETTER_IN = 0.075  # width of a letter of the labels, inches
MOST_NUMBERS = 20  # a matrix with more rows has no numbers in its cells


def confusion_matrix(confusion: NDArray[np.int64], classes: Sequence[str], title: str) -> Image:
    """A confusion matrix [C, C], true classes as rows; each cell has its count and per cent of the row."""
    count = np.asarray(confusion)
    share = count / np.maximum(count.sum(1, keepdims=True), 1)
    side = max(3.4, 0.62 * len(classes)) if len(classes) <= MOST_NUMBERS else 9.0
    left, bottom = 0.5 + _width(classes), 0.5 + 0.72 * _width(classes)
    figure = _figure(left + side + 0.15, bottom + side + TOP, title)
    axes = _axes(figure, left, bottom, side, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= MOST_NUMBERS:
        for i, j in np.argwhere(count):
            text = f"{count[i, j]}\n{100 * share[i, j]:.0f} %"
            color = "white" if share[i, j] > 0.55 else DARK
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
    _name_cells(axes, classes)
    axes.set_xlabel("predicted", color=GRAY)
    axes.set_ylabel("true", color=GRAY)
    return _array(figure)


def prototype_map(
    prototypes: NDArray[np.float32], classes: Sequence[str], before: NDArray[np.float32] | None, title: str
) -> Image:
    """Euclidean distances between the prototypes [C*K, D], and beside them how far each moved since `before`.

    With K > 1 the prototypes of a class are neighbors; white lines separate the classes.
    """
    count = len(prototypes)
    per_class = count // len(classes)
    prototypes = np.nan_to_num(prototypes)
    distance = distances_between(prototypes)
    apart = ~np.eye(count, dtype=bool)
    low, high = (distance[apart].min(), distance[apart].max()) if apart.any() else (0.0, 0.0)
    side = max(3.4, 0.5 * count) if count <= MOST_NUMBERS else 7.5
    left, bottom, bar = 0.25 + _width(classes), 0.25 + 0.72 * _width(classes), 1.7
    figure = _figure(left + side + 0.25 + bar + 0.15, bottom + side + TOP, title)
    axes = _axes(figure, left, bottom, side, side)
    # The color scale leaves out the diagonal: with its zeros all other cells would look alike.
    axes.imshow(np.where(apart, distance, np.nan), cmap="cividis", vmin=low, vmax=max(high, low + 1e-9))
    if count <= MOST_NUMBERS:
        for i, j in np.argwhere(apart):
            color = DARK if distance[i, j] > (low + high) / 2 else "white"
            axes.text(j, i, _short(distance[i, j]), ha="center", va="center", color=color, fontsize=7.5)
    _name_cells(axes, classes, per_class)

    beside = _axes(figure, left + side + 0.25, bottom, bar, side)
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
    _frame(beside, "left")
    return _array(figure)


def weights_over_time(examples: Sequence[Example], classes: Sequence[str], title: str) -> Image:
    """Reliability weights of some utterances over their time steps: a row each, a column per modality.

    Weights are shown as multiples of the uniform weight, which is the thin line. All rows of a column have
    the same scale. On the left are the true class, and the predicted one with its probability.
    """
    colors = modality_colors(examples[0].weights if examples else ())
    left, column, gap, row = 2.35, 3.6, 0.35, 0.72
    height = row * max(len(examples), 1)
    width = left + max(len(colors), 1) * (column + gap)
    figure = _figure(width, 0.45 + height + 0.25 + TOP, title)
    for m, (modality, color) in enumerate(colors.items()):
        axes = _axes(figure, left + m * (column + gap), 0.45, column, height)
        _draw_weights(axes, [e.weights[modality] for e in examples], modality, color)
    names = _axes(figure, 0, 0.45, left, height)
    names.set_xlim(0, left)
    names.set_ylim(len(examples), 0)
    names.axis("off")
    for i, example in enumerate(examples):
        right = example.label == example.predicted
        label, predicted = (_shorten(classes[i]) for i in (example.label, example.predicted))
        verdict = f"{'✓' if right else '✗'} {predicted} {100 * example.probability:.0f} %"
        names.text(0.15, i + 0.3, label, fontsize=9, color=DARK, va="center", weight="bold")
        color = BLUE if right else VERMILION
        names.text(0.15, i + 0.56, verdict, fontsize=8.5, color=color, va="center")
        names.text(0.15, i + 0.8, _shorten(example.key), fontsize=7, color=GRAY, va="center")
    return _array(figure)


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
    _frame(axes, "bottom")


def distances_between(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distances [N, N] between `vectors` [N, D]."""
    wide = vectors.astype(np.float64)
    squares = (wide**2).sum(1)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * wide @ wide.T, 0) * (1 - np.eye(len(wide))))


# --- Shared by all figures -------------------------------------------------------------------------


def _figure(width: float, height: float, title: str) -> Any:
    """An empty figure of so many inches with a title at its top left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot, which keeps every figure in memory and may need a display.
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.12 / width, 1 - 0.2 / height, title, fontsize=10, color=DARK, va="center")
    return figure


def _axes(figure: Any, left: float, bottom: float, wide: float, high: float) -> Any:
    """Axes in a box of a figure, in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def _array(figure: Any) -> Image:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a $ in a class name starts no formula
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def _name_cells(axes: Any, classes: Sequence[str], per_class: int = 1) -> None:
    """Label both axes of a matrix with the classes; each class has `per_class` rows and columns."""
    centers = np.arange(len(classes)) * per_class + (per_class - 1) / 2
    names = [_shorten(name) for name in classes]
    axes.set_xticks(centers, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.set_yticks(centers, names, fontsize=8.5)
    if per_class > 1:
        for edge in np.arange(1, len(classes)) * per_class - 0.5:
            axes.axhline(edge, color="white", lw=1.5)
            axes.axvline(edge, color="white", lw=1.5)
    axes.tick_params(length=0)
    _frame(axes)


def _frame(axes: Any, *kept: str) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in kept)
        spine.set_color(GRAY)


def _width(names: Sequence[str]) -> float:
    """Width of the longest name, inches."""
    return LETTER_IN * max(len(_shorten(name)) for name in names)


def _shorten(name: str, letters: int = 26) -> str:
    name = printable(name)
    return name if len(name) <= letters else f"{name[: letters // 2]}…{name[-(letters // 2 - 1) :]}"


def _short(value: float) -> str:
    """A number with three digits, which is what fits into a matrix's cells."""
    return f"{value:.0f}" if 99.5 <= abs(value) < 9999.5 else f"{value:.3g}"
