"""Parts of a report that HTML and Markdown both show: a title, tables, charts and a note."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from awtpn.report.repetitions import Report

MOST_DRAWN = 12  # dimensions or labels that have charts


@dataclass(frozen=True)
class Table:
    """A table of text; the pages escape its cells.

    Attributes:
        head: a cell for each column.
        rows: as many cells each.
        numbers: columns that hold numbers.
        code: columns that hold keys.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    code: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Attributes:
        title: the heading.
        table: stands first, or None.
        charts: only the HTML page shows them.
        data: what the charts show, as a table; the HTML page folds it away.
        note: Markdown in one line. It never holds text from data, such as names.
        legend: how to read the charts; only beside them.
    """

    title: str
    table: Table | None = None
    charts: Sequence[Markup] = field(default_factory=list)
    data: Table | None = None
    note: str = ""
    legend: str = ""


def drawn_names(report: Report) -> list[str]:
    """The dimensions or labels that have charts."""
    return report.names[:MOST_DRAWN]


def drawn_words(report: Report, what: str) -> str:
    """Says how many dimensions or labels have charts; empty if all have."""
    if len(report.names) <= MOST_DRAWN:
        return ""
    return f" The charts show the first {MOST_DRAWN} of {len(report.names)} {what}."


def over_runs(report: Report) -> str:
    """Says that figures are means over runs; empty for one run."""
    return f" Means over the {len(report.runs)} runs." if len(report.runs) > 1 else ""
