"""Markdown that holds words of data: names of classes, datasets and files are shown, never interpreted.

`Markdown` is text that is Markdown already; every other text is escaped where it enters a table, a code span
or a block. So are control characters, which no page needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from shards.safe_io.printable import column_sides, printable, printable_lines

# "<", and "&" where an entity may follow: not every dialect of Markdown takes a backslash before them.
ENTITIES = re.compile(r"<|&(?=[\w#])")
# What begins markup anywhere in a line; "_" does not within a word.
MARKS = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")


class Markdown(str):
    """Text that is Markdown already, and is not to be escaped again."""

    __slots__ = ()


def inline(text: object) -> Markdown:
    """Any text as Markdown that shows it as it is, for within a line; `Markdown` is left alone."""
    if isinstance(text, Markdown):
        return text
    marked = MARKS.sub(r"\\\g<0>", printable(text))
    return Markdown(ENTITIES.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", marked))


def bold(text: object) -> Markdown:
    """Any text, emphasised."""
    return Markdown(f"**{inline(text)}**")


def code(text: object) -> Markdown:
    """Any text as a code span in a table, where a bar needs its backslash."""
    shown = printable(text).replace("|", r"\|")
    fence = "`" * (_longest_run(shown) + 1)
    # A space beside the fence is part of the fence: needed where the text itself begins or ends with one.
    margin = " " if shown[:1] in ("`", " ", "") or shown[-1:] in ("`", " ") else ""
    return Markdown(f"{fence}{margin}{shown}{margin}{fence}")


def block(text: object, language: str = "") -> Markdown:
    """Any lines as a code block."""
    shown = printable_lines(text)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return Markdown(f"{fence}{language}\n{shown.rstrip()}\n{fence}")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], align: str = "l") -> Markdown:
    """A table; cells that are not `Markdown` are escaped.

    Args:
        align: "l" or "r" for each column; the last letter holds for all further columns.
    """
    rules = {"l": Markdown("---"), "r": Markdown("---:")}
    lines = [head, [rules[side] for side in column_sides(align, len(head))], *rows]
    return Markdown("\n".join(f"| {' | '.join(map(inline, line))} |" for line in lines))


def _longest_run(text: str) -> int:
    """Backticks of the longest run of them."""
    return max(map(len, re.findall("`+", text)), default=0)
