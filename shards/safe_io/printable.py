"""Escape control characters in text from data, before it is printed to a terminal or written to a log.

Keys, class names, metadata and file names are written by whoever made a dataset. A control sequence in one of
them could change what the terminal shows, a line end could forge a line of a log, and a bidirectional
override could make one name look like another.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest


def printable(text: object, keep: str = "") -> str:
    """`text` in one line, with control and format characters escaped as in Python: ESC is `\\x1b`.

    Lone surrogates (file names that are not UTF-8) are escaped too, since a terminal cannot encode them.

    Args:
        text: anything; its `str` is shown.
        keep: control characters that are not escaped.
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c in keep or _is_shown(c) else _escape(c) for c in words)


def printable_lines(text: object) -> str:
    """As `printable`, for text of several lines: line ends and tabs are not escaped."""
    return printable(text, keep="\n\t")


def join_lines(lines: Iterable[object]) -> str:
    """Join lines that contain text from data; line ends within a line are escaped."""
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


def plural(count: int, word: str) -> str:
    """ "1 shard", "2,000 shards"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def listed(words: Iterable[object], joint: str = "and") -> str:
    """ "a", "a and b", "a, b and c"; `joint` "or" for "a or b"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} {joint} {last}" if first else last


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; each message is logged as one line, with control characters escaped."""
    logger = logging.getLogger(name)
    if not any(isinstance(known, _OneLine) for known in logger.filters):
        logger.addFilter(_OneLine())
    return logger


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(record.getMessage()), ()
        return True


def _is_shown(character: str) -> bool:
    # "Zs": spaces of other widths, as in "20\N{NO-BREAK SPACE}%", which Python does not count as printable.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
