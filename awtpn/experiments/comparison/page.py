"""The report of a comparison: Markdown, and one HTML page that loads nothing and has no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from awtpn.experiments.comparison.tables import (
    Strong,
    lead_of,
    left_out_lines,
    sections_of,
)
from awtpn.report.html import FOLDER, POLICY, STYLE, lines, prose
from awtpn.report.sections import Section, Table
from shards.safe_io.markdown import Markdown, block, bold, inline, table
from shards.safe_io.printable import printable

TITLE = "Comparison of models"


def render_markdown(results: Mapping[str, Any]) -> str:
    """The report in Markdown, from the content of `comparison.json`."""
    parts = [f"# {TITLE}", str(inline(f"{lead_of(results)}."))]
    parts += [f"- {inline(line)}" for line in left_out_lines(results["left_out"])]
    for section in sections_of(results):
        parts.append(f"## {inline(section.title)}")
        parts += [_markdown_table(found) for found in (section.table, section.data) if found is not None]
        if section.note:
            parts.append(section.note)
    return "\n\n".join([*parts, "## Reproduction", block(results["command"]), _models_table(results)]) + "\n"


def _markdown_table(found: Table) -> str:
    rows = [[bold(cell) if isinstance(cell, Strong) else cell for cell in row] for row in found.rows]
    return str(table(found.head, rows))


def _models_table(results: Mapping[str, Any]) -> Markdown:
    return table(["model", "overrides"], _models(results))


def _models(results: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            overrides if isinstance(overrides, str) else ", ".join(f"{k}={v}" for k, v in overrides.items()),
        ]
        for name, overrides in results["models"].items()
    ]


def render_html(results: Mapping[str, Any]) -> str:
    """The report as a page, from the content of `comparison.json`."""
    body = [
        Markup('<h1>{}</h1><p class="lead">{}</p>').format(TITLE, printable(f"{lead_of(results)}.")),
        *(_paragraph(line) for line in left_out_lines(results["left_out"])),
        *(_html_section(section) for section in sections_of(results)),
        Markup("<section><h2>Reproduction</h2><pre>{}</pre>{}</section>").format(
            lines(results["command"]), _html_table(Table(["model", "overrides"], _models(results)))
        ),
    ]
    head = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="{}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>{}</title>\n<style>\n{}</style></head>\n<body>\n"
    ).format(POLICY, TITLE, Markup((FOLDER / STYLE).read_text()))
    return str(head + Markup("\n").join(body) + Markup("\n</body></html>\n"))


def _html_section(section: Section) -> Markup:
    parts = [Markup("<h2>{}</h2>").format(printable(section.title))]
    if section.table is not None:
        parts.append(_html_table(section.table))
    if section.charts:
        parts.append(Markup('<div class="scroll">{}</div>').format(Markup("").join(section.charts)))
    if section.data is not None:
        parts.append(_html_table(section.data))
    parts.append(_paragraph(section.note))
    return Markup("<section>{}</section>").format(Markup("").join(parts))


def _paragraph(text: str) -> Markup:
    return Markup('<p class="note">{}</p>').format(prose(text)) if text else Markup("")


def _html_table(found: Table) -> Markup:
    return Markup('<div class="scroll"><table>\n{}\n</table></div>').format(
        Markup("\n").join([_html_row("th", found.head), *(_html_row("td", row) for row in found.rows)])
    )


def _html_row(tag: str, cells: Sequence[str]) -> Markup:
    shown = []
    for number, cell in enumerate(cells):
        text = (
            Markup("<b>{}</b>").format(printable(cell))
            if isinstance(cell, Strong)
            else escape(printable(cell))
        )
        css = "wide" if number else "first"
        shown.append(Markup('<{t} class="{}">{}</{t}>').format(css, text, t=Markup(tag)))
    return Markup("<tr>{}</tr>").format(Markup("").join(shown))
