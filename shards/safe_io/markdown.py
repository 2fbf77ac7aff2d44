"""Write Markdown with text from data, such as names of classes, which is shown and never interpreted.

A value of the type `Markdown` is Markdown already. Any other text is escaped when it is put into a table, a
code span or a code block, control characters included. Reports, model cards and TensorBoard texts use this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from shards.safe_io.printable import column_sides, printable, printable_lines

# "<", and "&" before an entity, become entities: not every dialect of Markdown allows a backslash before
# them.
ENTITIES = re.compile(r"<|&(?=[\w#])")
# Characters that begin markup anywhere in a line; "_" does not begin any within a word.
MARKS = re.compile(r"[\\`*\[\]|~$#]|(?<![^\W_])_|_(?![^\W_])")


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""

    __slots__ = ()


def inline(text: object) -> Markdown:
    """Any text as Markdown that shows it unchanged, within a line; `Markdown` is returned as it is."""
    if isinstance(text, Markdown):
        return text
    marked = MARKS.sub(r"\\\g<0>", printable(text))
    return Markdown(ENTITIES.sub(lambda found: "&lt;" if found[0] == "<" else "&amp;", marked))


def bold(text: object) -> Markdown:
    """Any text in bold."""
    return Markdown(f"**{inline(text)}**")


def code(text: object) -> Markdown:
    """Any text as a code span in a table, in which "|" needs a backslash."""
    shown = printable(text).replace("|", r"\|")
    fence = "`" * (_longest_run(shown) + 1)
    # Markdown removes one space beside each fence: needed if the text itself begins or ends with "`" or a
    # space.
    margin = " " if shown[:1] in ("`", " ", "") or shown[-1:] in ("`", " ") else ""
    return Markdown(f"{fence}{margin}{shown}{margin}{fence}")


def block(text: object, language: str = "") -> Markdown:
    """Lines of text as a code block."""
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
    """Length of the longest run of backticks."""
    return max(map(len, re.findall("`+", text)), default=0)
