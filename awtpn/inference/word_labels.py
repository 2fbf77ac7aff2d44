"""Words under a plot: which are written, where, how large, and with which fonts.

Words of any number, length and script are readable: horizontal if they fit, else vertical; where they would
touch, they move apart; if there are too many, the heaviest are written.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.safe_io.printable import get_logger

logger = get_logger(__name__)

SIZES = (11.0, 9.5, 8.0)  # points
POINT = 1 / 72  # inches
LINE = 1.25  # height of a line, as a multiple of the size; SPACE, between two words, and LETTER too
SPACE, LETTER = 0.2, 0.62
LONGEST = 18  # letters of a word
JOINERS = "\u200c\u200d"  # format characters that decide how letters and emoji are drawn

# Families with the scripts that matplotlib's own font lacks; those that are installed are used.
FAMILIES = (
    *(
        "Noto Sans",
        "Noto Sans CJK SC",
        "Noto Sans CJK JP",
        "Noto Sans CJK KR",
        "Noto Sans SC",
        "Noto Sans JP",
    ),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC"),
    *("Hiragino Sans", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic"),
    *("Apple SD Gothic Neo", "Noto Sans Thai", "Leelawadee UI", "Noto Sans Arabic", "Noto Sans Hebrew"),
    *("Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Nirmala UI", "Noto Emoji", "Symbola"),
    *("Segoe UI Symbol", "Arial Unicode MS", "Unifont"),
)
# How matplotlib warns, for each character each time, of characters that no font has.
NO_GLYPH = re.compile(r"Glyph (\d+) |.*does not support \w+ natively")


@dataclass(frozen=True)
class WordLabels:
    """Words as they are written; lengths are in inches.

    Attributes:
        shown: numbers of the words that are written, in order.
        texts: what is written for each of them.
        centers: where each is written, from the left.
        size: of the letters, in points.
        is_vertical: they are written from bottom to top.
        height: of the tallest.
    """

    shown: NDArray[np.intp]
    texts: list[str]
    centers: NDArray[np.float64]
    size: float
    is_vertical: bool
    height: float


def word_labels(
    words: Sequence[str], centers: NDArray[np.float64], weights: NDArray[np.float32], width: float
) -> WordLabels:
    """Choose and place the labels of at least one word.

    Args:
        words: in order.
        centers: where each belongs, in inches from the left; they do not decrease.
        weights: of the words.
        width: that there is, in inches.
    """
    shown = np.sort(np.argsort(-weights, kind="stable")[: most_labels(width)])
    texts = [shorten(words[i]) for i in shown]
    ems = np.array([text_width(text) for text in texts])
    for size in SIZES:
        widths = (ems + SPACE) * size * POINT
        if widths.sum() <= width:
            line = size * LINE * POINT
            return WordLabels(shown, texts, spread(centers[shown], widths, width), size, False, line)
    size = next((s for s in SIZES if len(shown) * s * LINE * POINT <= width), SIZES[-1])
    lines = np.full(len(shown), size * LINE * POINT)
    height = float(ems.max()) * size * POINT
    return WordLabels(shown, texts, spread(centers[shown], lines, width), size, True, height)


def most_labels(width: float) -> int:
    """How many words can be written in so many inches."""
    return int(width / (SIZES[-1] * LINE * POINT))


def spread(centers: NDArray[np.float64], widths: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """The centers moved apart: boxes of these widths do not overlap, and lie between 0 and `width`."""
    placed = centers.astype(np.float64).copy()
    apart = (widths[:-1] + widths[1:]) / 2
    placed[0] = max(placed[0], widths[0] / 2)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + apart[i - 1])
    placed[-1] = min(placed[-1], width - widths[-1] / 2)
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - apart[i])
    return placed


def shorten(word: str) -> str:
    """A word as it is written: without control characters, and not too long."""
    word = "".join(mark for mark in word if mark.isprintable() or mark in JOINERS)
    return word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}…"


def text_width(text: str) -> float:
    """About how wide a text is drawn, as a multiple of the size of its letters."""
    width = 0.0
    for mark in text:
        if unicodedata.east_asian_width(mark) in "WF":
            width += 1
        elif unicodedata.category(mark) not in ("Mn", "Me", "Cf"):
            width += LETTER
    return width


@contextmanager
def fonts_of_all_scripts(name: str) -> Iterator[None]:
    """Draw with the fonts that are installed for any script; one line says if characters are in none of them.

    Matplotlib warns of each such character by its name, which would write the words to the log.

    Args:
        name: of what is drawn, for that line.
    """
    from matplotlib import rc_context, rcParams
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    families = [*rcParams["font.family"], *(family for family in FAMILIES if family in installed)]
    with rc_context({"font.family": families}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    missing = set()
    for warning in caught:
        if found := NO_GLYPH.match(str(warning.message)):
            missing |= {found[1]} - {None}
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        logger.warning(
            "%s: no font here has %d of its characters, which are drawn as boxes; install one that has them, "
            "such as Noto Sans CJK or Noto Emoji",
            name,
            len(missing),
        )
