"""Words from data on their way to a terminal or a log: what would steer a terminal is shown as an escape.

Keys, class names, metadata and file names come from whoever made a dataset. A control sequence in one of them
could rewrite what the terminal shows, a line end could forge a line of a log, and a bidirectional override
makes one name look like another.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest


def printable(text: object, keep: str = "") -> str:
    """`text` in one line, its control and format characters as Python writes them: ESC as `\\x1b`.

    So are lone surrogates (file names in another encoding), which no terminal could encode.

    Args:
        text: anything; its `str` is shown.
        keep: control characters that stay as they are.
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c in keep or _harmless(c) else _escape(c) for c in words)


def printable_lines(text: object) -> str:
    """As `printable`, for a text of several lines: line ends and tabs stay."""
    return printable(text, keep="\n\t")


def join_lines(lines: Iterable[object]) -> str:
    """Lines that hold words of data as one text; a line end within such a word makes no line of its own."""
    return "\n".join(map(printable, lines))


def table_lines(rows: Iterable[Sequence[object]], align: str = "l") -> list[str]:
    """A table for a terminal: a line per row, columns two spaces apart. In Markdown: `markdown.table`.

    Args:
        rows: cells, of a first row of headings too; `printable` shows them.
        align: "l" or "r" for each column; the last letter holds for all further columns.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]
    marks = ["<" if side == "l" else ">" for side in column_sides(align, len(widths))]
    return [
        "  ".join(f"{cell:{m}{w}}" for cell, m, w in zip(row, marks, widths, strict=False)).rstrip()
        for row in cells
    ]


def column_sides(align: str, columns: int) -> str:
    """The letters of `align` for so many columns; its last one is repeated."""
    return align[:columns].ljust(columns, align[-1])


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; each of its messages stays one line that steers no terminal."""
    logger = logging.getLogger(name)
    if not any(isinstance(known, _OneLine) for known in logger.filters):
        logger.addFilter(_OneLine())
    return logger


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


def _harmless(character: str) -> bool:
    # "Zs": spaces of other widths, as in "20\N{NO-BREAK SPACE}%"; only the usual one counts as printable.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
