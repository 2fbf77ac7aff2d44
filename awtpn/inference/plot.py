"""Plot one prediction: video frames and waveform, the reliability weight of each step, the probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.inference.predictor import Prediction
from shards.extraction.media import MediaError, probe, read_audio, read_frames
from shards.safe_io.printable import printable

INK, QUIET, LINE, PAPER = "#1f2933", "#7b8794", "#d5dbe1", "#ffffff"
COLORS = {"audio": "#0072b2", "video": "#d55e00"}  # from the color-blind safe palette of Okabe and Ito
INCHES_PER_CLASS = 0.34
HEAD, FOOT = 0.92, 0.56  # inches
LEFT, RIGHT = 0.065, 0.975  # of the figure's width
FRAMES = 7  # shown side by side
LARGEST_SIDE = 480  # pixels of a shown frame
RATE = 16000  # Hz of the waveform
WAVE_COLUMNS = 1400  # the waveform is drawn as the minimum and maximum in each of these columns
LONGEST_NAME = 60  # characters of a file's name
ROUNDING = 1e-6  # of a step, so that 2.3 s / 0.1 s, which is 22.999... in floating point, is 23 steps


@dataclass(frozen=True)
class Recording:
    """The parts of a recording that are plotted.

    Attributes:
        name: for the title.
        duration: in seconds.
        sound: [samples] at `rate` Hz, or None.
        pictures: uint8 [N, H, W, 3], or None: the middle frames of the first N of `FRAMES` equal time spans;
            N is less than `FRAMES` if the video ends before the audio.
        step_seconds: length of a step, by modality.
    """

    name: str
    duration: float
    sound: NDArray[np.float32] | None
    rate: int
    pictures: NDArray[np.uint8] | None
    step_seconds: dict[str, float]


def load(path: Path, step_seconds: dict[str, float]) -> Recording:
    """Read the frames and the waveform of the recording at `path`; without those that cannot be decoded.

    Raises:
        MediaError: none can be decoded.
    """
    info = probe(path)
    pictures = sound = None
    causes = []
    if info.has_video and info.duration > 0:
        try:
            found = read_frames(path, FRAMES / info.duration, largest_side=LARGEST_SIDE)
            pictures = found[0][:FRAMES] if found else None
        except MediaError as error:
            causes.append(error)
    if info.has_audio:
        try:
            sound = read_audio(path, RATE)
        except MediaError as error:
            causes.append(error)
    if causes and pictures is None and sound is None:
        raise causes[0]
    return Recording(path.name, info.duration, sound, RATE, pictures, step_seconds)


def draw(recording: Recording, prediction: Prediction, path: Path) -> None:
    """Write the figure as a PNG.

    On one time axis: the frames and the weights of the video steps, the waveform and the weights of the audio
    steps. Weights are shown as multiples of the uniform weight, 1 / steps. On the right the probabilities.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("drawing needs matplotlib: pip install matplotlib") from None
    rows: list[tuple[float, Any]] = []
    if recording.pictures is not None:
        rows += [(1.15, _pictures), (0.8, partial(_weights, modality="video"))]
    if recording.sound is not None:
        rows += [(1.0, _wave), (0.8, partial(_weights, modality="audio"))]
    heights = [height for height, _ in rows]
    # In inches, so that head and foot have the same size with one or two modalities.
    total = HEAD + FOOT + 1.38 * sum(heights)
    figure = Figure(figsize=(13, total), dpi=140, facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(rows),
        2,
        width_ratios=[3.6, 1],
        height_ratios=heights,
        left=LEFT,
        right=RIGHT,
        top=1 - HEAD / total,
        bottom=FOOT / total,
        wspace=0.22,
        hspace=0.16,
    )
    for row, (_, paint) in enumerate(rows):
        axes = figure.add_subplot(grid[row, 0])
        _plain(axes, recording)
        paint(axes, recording, prediction)
        axes.tick_params(labelbottom=row == len(rows) - 1)
    _probabilities(figure.add_subplot(grid[:, 1]), prediction)
    _title(figure, recording, prediction, 1 - 0.43 / total)
    foot: dict[str, Any] = {"color": QUIET, "fontsize": 9.5}
    figure.text(LEFT, 0.15 / total, "seconds", **foot)
    key = "weight: a step's reliability weight, as a multiple of the uniform weight (×1)"
    figure.text(grid[0, 0].get_position(figure).x1, 0.15 / total, key, ha="right", **foot)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", facecolor=PAPER)
    temporary.replace(path)


def _title(figure: Any, recording: Recording, prediction: Prediction, height: float) -> None:
    name = printable(recording.name)
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 16]}…{name[-15:]}"
    facts = [name, f"{recording.duration:.1f} s"]
    facts += ["no picture"] if recording.pictures is None else []
    facts += ["no sound"] if recording.sound is None else []
    facts.append(f"{prediction.probabilities[prediction.label]:.0%} sure")
    # parse_math=False: names of files and classes may contain $, which is not a formula.
    look: dict[str, Any] = {"va": "center", "parse_math": False}
    figure.text(LEFT, height, printable(prediction.label), fontsize=21, fontweight="bold", color=INK, **look)
    figure.text(RIGHT, height, "   ·   ".join(facts), fontsize=11, color=QUIET, ha="right", **look)


def _plain(axes: Any, recording: Recording) -> None:
    """Set the style that all rows share."""
    axes.set_xlim(0, recording.duration)
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
    strength = _strength(recording, prediction, "video", edges, np.mean)
    for i, picture in enumerate(recording.pictures):
        left = i * slot + gap / 2 + (1 - shown) * (slot - gap) / 2
        extent = (left, left + shown * (slot - gap), 0, 1)
        alpha = 0.25 + 0.75 * float(strength[i])
        image = picture[:, cut : width - cut]
        axes.imshow(image, extent=extent, aspect="auto", interpolation="antialiased", alpha=alpha)
    axes.set_xlim(0, recording.duration)


def _strength(
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
    columns = min(WAVE_COLUMNS, len(sound))
    edges = np.linspace(0, len(sound), columns + 1).astype(int)
    low = np.minimum.reduceat(sound, edges[:-1])
    high = np.maximum.reduceat(sound, edges[:-1])
    # Extend each column to the next one's first sample, so that there are no gaps if samples are few.
    low[:-1] = np.minimum(low[:-1], sound[edges[1:-1]])
    high[:-1] = np.maximum(high[:-1], sound[edges[1:-1]])
    time = (edges[:-1] + edges[1:]) / 2 / recording.rate
    axes.fill_between(time, low, high, color=LINE, linewidth=0.6, edgecolor=LINE)
    colors = np.tile(to_rgba(COLORS["audio"]), (columns, 1))
    colors[:, 3] = _strength(recording, prediction, "audio", edges / recording.rate, np.max)
    lines = np.stack([np.stack([time, low], 1), np.stack([time, high], 1)], 1)
    axes.add_collection(LineCollection(list(lines), colors=colors, linewidths=0.9))
    most = max(1e-6, float(np.abs(sound).max()))
    axes.set_ylim(-1.1 * most, 1.1 * most)
    axes.set_yticks([])


def _weights(axes: Any, recording: Recording, prediction: Prediction, modality: str) -> None:
    """Reliability weights as multiples of the uniform weight, as steps over time."""
    weights = prediction.weights.get(modality)
    if weights is None:
        _message(axes, f"the model does not use {modality}")
        return
    if not len(weights):
        _message(axes, f"no features of {modality}")
        return
    share = weights * len(weights)
    edges = np.arange(len(share) + 1) * recording.step_seconds[modality]
    edges[-1] = max(edges[-2] + 1e-6, min(edges[-1], recording.duration))
    axes.stairs(share, edges, fill=True, color=COLORS[modality], alpha=0.22)
    axes.stairs(share, edges, color=COLORS[modality], linewidth=1.4, baseline=None)
    axes.axhline(1, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_ylim(0, max(2.0, 1.15 * float(share.max())))
    most = int(axes.get_ylim()[1])
    axes.set_yticks(sorted({1, most} if most < 6 else {1, most // 2, most}))
    axes.set_ylabel(f"{modality}\nweight", color=COLORS[modality], fontsize=10, labelpad=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"×{value:g}")


def _probabilities(axes: Any, prediction: Prediction) -> None:
    """Bars of the most probable classes, as many as fit, the most probable on top."""
    room = int(axes.get_window_extent().height / axes.figure.dpi / INCHES_PER_CLASS)
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:room]
    names, values = [name for name, _ in ranked], [value for _, value in ranked]
    rows = np.arange(len(names))
    axes.set_facecolor(PAPER)
    axes.barh(rows, np.ones(len(names)), height=0.16, color="#eef1f4")
    colors = [INK if name == prediction.label else "#a9b4bf" for name in names]
    axes.barh(rows, values, height=0.16, color=colors)
    for row, name, value in zip(rows, names, values, strict=True):
        weight = "bold" if name == prediction.label else "normal"
        look: dict[str, Any] = {"va": "bottom", "fontsize": 10.5}
        axes.text(0, row - 0.16, printable(name), color=INK, fontweight=weight, parse_math=False, **look)
        axes.text(1, row - 0.16, f"{value:.1%}", color=QUIET, ha="right", **look)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.3, -0.75)
    axes.axis("off")
