"""Plot one prediction: words, frames and waveform, the reliability weight of each step, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.inference.plot_outcome import INK, LINE, PAPER, QUIET, draw_outcome, outcome_title
from awtpn.inference.prediction import Prediction
from awtpn.inference.recording import FRAMES, TEXT, Recording
from awtpn.inference.word_labels import WordLabels, fonts_of_all_scripts, most_labels, word_labels
from awtpn.model.modality_colors import modality_colors
from shards.safe_io.printable import plural, printable

# Lengths without another unit are inches.
WIDTH, HEAD, FOOT = 13, 0.92, 0.56
LEFT, RIGHT = 0.065, 0.975  # of the figure's width
COLUMNS, GAP = (3.6, 1.0), 0.22  # widths of the plots and the answer; the gap, of their mean width
PLOT_WIDTH = WIDTH * (RIGHT - LEFT) * 2 / (2 + GAP) * COLUMNS[0] / sum(COLUMNS)
ROW = 1.38  # of a row of height 1 with the gap below it; a row alone has at least ROW_ALONE
ROW_ALONE = 1.2
LEADER = 0.16  # from the bars of words to the words
WAVE_COLUMNS = 1400  # the waveform is drawn as the minimum and maximum in each of these columns
LONGEST_NAME = 60  # characters of a file's name
ROUNDING = 1e-6  # of a step, so that 2.3 s / 0.1 s, which is 22.999... in floating point, is 23 steps


def draw(
    recording: Recording,
    prediction: Prediction,
    path: Path,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write the figure as a PNG.

    The words with their weights, at equal distances or, if their times are known, on the time axis. On the
    time axis: the frames and the weights of the video steps, the waveform and the weights of the audio steps.
    Weights are shown as multiples of the uniform weight, 1 / steps; of a baseline there are none. On the
    right the probabilities, or the values with their intervals.

    Args:
        recording: what is predicted for.
        prediction: for it.
        path: of the file to write.
        ranges: least and largest value of each predicted dimension; default: as far as the intervals reach.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from None
    rows = _rows(recording, prediction)
    heights = [height for height, _ in rows]
    # In inches, so that head and foot have the same size with any number of rows.
    total = HEAD + FOOT + ROW * sum(heights)
    with fonts_of_all_scripts(str(path)):
        figure = Figure(figsize=(WIDTH, total), dpi=140, facecolor=PAPER)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            len(rows),
            2,
            width_ratios=COLUMNS,
            height_ratios=heights,
            left=LEFT,
            right=RIGHT,
            top=1 - HEAD / total,
            bottom=FOOT / total,
            wspace=GAP,
            hspace=0.16,
        )
        for row, (_, paint) in enumerate(rows):
            axes = figure.add_subplot(grid[row, 0])
            _plain(axes, recording)
            paint(axes, recording, prediction)
            axes.tick_params(labelbottom=row == len(rows) - 1)
        draw_outcome(figure.add_subplot(grid[:, 1]), prediction, ranges or {})
        _title(figure, recording, prediction, 1 - 0.43 / total)
        foot: dict[str, Any] = {"color": QUIET, "fontsize": 9.5}
        figure.text(LEFT, 0.15 / total, "seconds" if recording.has_media else "words in order", **foot)
        key = "weight: a step's reliability weight, as a multiple of the uniform weight (×1)"
        key = key if prediction.weights else "this model, a baseline, has no reliability weights"
        figure.text(grid[0, 0].get_position(figure).x1, 0.15 / total, key, ha="right", **foot)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format="png", facecolor=PAPER)
    temporary.replace(path)


def _rows(recording: Recording, prediction: Prediction) -> list[tuple[float, Any]]:
    """The height and the function of each row, from the top."""
    rows: list[tuple[float, Any]] = []
    weighted = bool(prediction.weights)  # not of a baseline
    words = recording.transcript.words if recording.transcript is not None else ()
    none = np.zeros(0, np.float32)
    of_words = prediction.weights.get(TEXT, none) if weighted else np.ones(len(words), np.float32)
    if len(words) and len(of_words):
        spans = _word_spans(recording)
        centers = spans.mean(1) / _end_of_words(recording) * PLOT_WIDTH
        labels = word_labels(words, centers, of_words, PLOT_WIDTH)
        rows += [(0.8, partial(_word_weights, spans=spans))] if weighted else []
        rows += [((labels.height + LEADER) / ROW_ALONE, partial(_words, labels=labels, centers=centers))]
    if recording.pictures is not None:
        rows += [(1.15, _pictures), *([(0.8, partial(_weights, modality="video"))] if weighted else [])]
    if recording.sound is not None:
        rows += [(1.0, _wave), *([(0.8, partial(_weights, modality="audio"))] if weighted else [])]
    return rows


def _title(figure: Any, recording: Recording, prediction: Prediction, height: float) -> None:
    name = printable(recording.name)
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 16]}…{name[-15:]}"
    facts = [name]
    if recording.has_media:
        facts.append(f"{recording.duration:.1f} s")
        facts += ["no picture"] if recording.pictures is None else []
        facts += ["no sound"] if recording.sound is None else []
    if recording.transcript is not None:
        count, most = len(recording.transcript.words), most_labels(PLOT_WIDTH)
        shown = f"the {most} heaviest" if prediction.weights else f"{most} of them"
        facts.append(plural(count, "word") + (f" ({shown} are shown)" if count > most else ""))
    elif TEXT in prediction.weights:
        facts.append("no text")
    if prediction.label is not None:
        facts.append(f"{prediction.probabilities[prediction.label]:.0%} sure")
    # parse_math=False: names of files and classes may contain $, which is not a formula.
    look: dict[str, Any] = {"va": "center", "parse_math": False}
    figure.text(LEFT, height, outcome_title(prediction), fontsize=21, fontweight="bold", color=INK, **look)
    figure.text(RIGHT, height, "   ·   ".join(facts), fontsize=11, color=QUIET, ha="right", **look)


def _color(prediction: Prediction, modality: str) -> str:
    return modality_colors([*prediction.weights, modality])[modality]


def _plain(axes: Any, recording: Recording) -> None:
    """Set the style that all rows share."""
    axes.set_xlim(0, recording.duration or 1)
    axes.set_facecolor(PAPER)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=QUIET, labelsize=9, length=0)


def _message(axes: Any, text: str) -> None:
    """Show `text` in place of a plot."""
    axes.set_yticks([])
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        color=QUIET,
        fontsize=11,
        style="italic",
    )


def _pictures(axes: Any, recording: Recording, prediction: Prediction) -> None:
    """A row of frames, each the middle of its time span; opacity shows the mean weight of its steps."""
    assert recording.pictures is not None
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_ylim(0, 1)
    box, (height, width) = axes.get_window_extent(), recording.pictures.shape[1:3]
    slot = recording.duration / FRAMES
    gap = 0.03 * slot
    # Crop frames that are wider than their slot at both sides; center those that are narrower.
    slot_ratio = (box.width / FRAMES * 0.97) / box.height
    cut = max(0, round((width - slot_ratio * height) / 2))
    shown = min(1.0, width / height / slot_ratio)
    edges = slot * np.arange(len(recording.pictures) + 1)
    clear = strength(recording, prediction, "video", edges, np.mean)
    for i, picture in enumerate(recording.pictures):
        left = i * slot + gap / 2 + (1 - shown) * (slot - gap) / 2
        extent = (left, left + shown * (slot - gap), 0, 1)
        alpha = 0.25 + 0.75 * float(clear[i])
        image = picture[:, cut : width - cut]
        axes.imshow(image, extent=extent, aspect="auto", interpolation="antialiased", alpha=alpha)
    axes.set_xlim(0, recording.duration)


def strength(
    recording: Recording,
    prediction: Prediction,
    modality: str,
    edges: NDArray[Any],
    statistic: Callable[[NDArray[Any]], Any],
) -> NDArray[np.float64]:
    """The weights of n time spans [n], divided by the largest of them; all 1 without weights.

    Args:
        recording, prediction, modality: whose weights.
        edges: of the time spans [n + 1], in seconds.
        statistic: reduces the weights of the steps that overlap a span to one value.
    """
    weights = prediction.weights.get(modality)
    if weights is None or not len(weights):
        return np.ones(len(edges) - 1)
    steps = edges / recording.step_seconds[modality]
    # Steps may end before the recording does; spans after the last step take its weight.
    first = np.minimum(np.floor(steps[:-1] + ROUNDING).astype(int), len(weights) - 1)
    last = np.maximum(np.ceil(steps[1:] - ROUNDING).astype(int), first + 1)
    found = np.array([statistic(weights[a:b]) for a, b in zip(first, last, strict=True)])
    return found / max(float(found.max()), 1e-12)


def _wave(axes: Any, recording: Recording, prediction: Prediction) -> None:
    """The waveform; opacity shows the weight of the step."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    axes.spines["bottom"].set_visible(False)
    sound = recording.sound
    assert sound is not None
    edges, low, high = wave_columns(sound, WAVE_COLUMNS)
    columns = len(low)
    time = (edges[:-1] + edges[1:]) / 2 / recording.rate
    axes.fill_between(time, low, high, color=LINE, linewidth=0.6, edgecolor=LINE)
    colors = np.tile(to_rgba(_color(prediction, "audio")), (columns, 1))
    colors[:, 3] = strength(recording, prediction, "audio", edges / recording.rate, np.max)
    lines = np.stack([np.stack([time, low], 1), np.stack([time, high], 1)], 1)
    axes.add_collection(LineCollection(list(lines), colors=colors, linewidths=0.9))
    most = max(1e-6, float(np.abs(sound).max()))
    axes.set_ylim(-1.1 * most, 1.1 * most)
    axes.set_yticks([])


def wave_columns(
    sound: NDArray[np.float32], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """A waveform as the minimum and maximum [n] in each of n <= `most` columns.

    Args:
        sound: [samples].
        most: columns.

    Returns:
        The columns' edges [n + 1], in samples; minima and maxima.
    """
    columns = min(most, len(sound))
    edges = np.linspace(0, len(sound), columns + 1).astype(int)
    low = np.minimum.reduceat(sound, edges[:-1])
    high = np.maximum.reduceat(sound, edges[:-1])
    # Extend each column to the next one's first sample, so that there are no gaps if samples are few.
    low[:-1] = np.minimum(low[:-1], sound[edges[1:-1]])
    high[:-1] = np.maximum(high[:-1], sound[edges[1:-1]])
    return edges, low, high


def _weights(axes: Any, recording: Recording, prediction: Prediction, modality: str) -> None:
    """Reliability weights as multiples of the uniform weight, as steps over time."""
    weights = prediction.weights.get(modality)
    if weights is None:
        _message(axes, f"the model does not use {modality}")
        return
    if not len(weights):
        _message(axes, f"no features of {modality}")
        return
    share, color = weights * len(weights), _color(prediction, modality)
    edges = np.arange(len(share) + 1) * recording.step_seconds[modality]
    edges[-1] = max(edges[-2] + 1e-6, min(edges[-1], recording.duration))
    axes.stairs(share, edges, fill=True, color=color, alpha=0.22)
    axes.stairs(share, edges, color=color, linewidth=1.4, baseline=None)
    _scale(axes, share, modality, color)


def _scale(axes: Any, share: NDArray[np.float32], modality: str, color: str) -> None:
    """The axis of weights as multiples of the uniform weight, and a line at that."""
    axes.axhline(1, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_ylim(0, max(2.0, 1.15 * float(share.max())))
    most = int(axes.get_ylim()[1])
    axes.set_yticks(sorted({1, most} if most < 6 else {1, most // 2, most}))
    axes.set_ylabel(f"{modality}\nweight", color=color, fontsize=10, labelpad=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"×{value:g}")


def _word_spans(recording: Recording) -> NDArray[np.float64]:
    """Begin and end of each word [n, 2]: in seconds, or in words if they are not on the time axis."""
    assert recording.transcript is not None
    if recording.has_times:
        return np.clip(recording.transcript.spans, 0, recording.duration)
    begins = np.arange(len(recording.transcript.words))
    return np.stack([begins, begins + 1.0], 1)


def _end_of_words(recording: Recording) -> float:
    assert recording.transcript is not None
    return recording.duration if recording.has_times else len(recording.transcript.words)


def _word_weights(
    axes: Any, recording: Recording, prediction: Prediction, spans: NDArray[np.float64]
) -> None:
    """The weight of each word as a bar."""
    weights, color, end = prediction.weights[TEXT], _color(prediction, TEXT), _end_of_words(recording)
    share = weights * len(weights)
    width = np.maximum(0.86 * (spans[:, 1] - spans[:, 0]), 0.002 * end)
    axes.bar(spans.mean(1), share, width, color=color, alpha=0.3)
    axes.hlines(share, spans.mean(1) - width / 2, spans.mean(1) + width / 2, color=color, linewidth=1.4)
    _scale(axes, share, TEXT, color)
    axes.set_xlim(0, end)
    axes.set_xticks([])


def _words(
    axes: Any, _: Recording, prediction: Prediction, labels: WordLabels, centers: NDArray[np.float64]
) -> None:
    """The words under their bars; a line leads to each one that is not just below its bar."""
    axes.axis("off")
    axes.set_xlim(0, PLOT_WIDTH)
    axes.set_ylim(-LEADER - labels.height, 0)
    look: dict[str, Any] = {"fontsize": labels.size, "color": INK, "va": "top", "parse_math": False}
    heaviest = int(np.argmax(prediction.weights[TEXT])) if prediction.weights else None
    for number, text, x in zip(labels.shown, labels.texts, labels.centers, strict=True):
        if abs(x - centers[number]) > 0.03:
            axes.plot([centers[number], x], [0, -0.85 * LEADER], color=QUIET, linewidth=0.6)
        weight = "bold" if number == heaviest else "normal"
        axes.text(x, -LEADER, text, ha="center", rotation=90 * labels.is_vertical, fontweight=weight, **look)
