"""What all figures share: sizes and colors, and an empty figure that becomes an array of pixels.

Colors can be told apart by color-blind readers and in print: one hue by lightness, or blue and vermilion.
Layouts are fixed in inches. Letting matplotlib fit them would draw everything twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.model.modality_colors import PALETTE
from awtpn.tracking.captions import shorten

Image = NDArray[np.uint8]  # [H, W, 3]

DPI = 110
TOP = 0.45  # height of the title, inches
BLUE, VERMILION = PALETTE[:2]
GRAY, DARK = "#767676", "#222222"
LETTER_IN = 0.075  # width of a letter of the labels, inches


def new_figure(width: float, height: float, title: str) -> Any:
    """An empty figure of so many inches with a title at its top left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot, which keeps every figure in memory and may need a display.
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.12 / width, 1 - 0.2 / height, title, fontsize=10, color=DARK, va="center")
    return figure


def add_axes(figure: Any, left: float, bottom: float, wide: float, high: float) -> Any:
    """Axes in a box of a figure, in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def to_image(figure: Any) -> Image:
    """The pixels of a figure."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a $ in a class name starts no formula
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def show_frame(axes: Any, *kept: str) -> None:
    """Leave only these sides ("left", "bottom") of the frame around axes."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in kept)
        spine.set_color(GRAY)


def names_width(names: Sequence[str]) -> float:
    """Width of the longest name, inches."""
    return LETTER_IN * max(len(shorten(name)) for name in names)
