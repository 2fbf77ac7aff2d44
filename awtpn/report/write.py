"""Writes the files of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from awtpn.report.data import gather
from awtpn.report.html import render_html
from awtpn.report.markdown import render_markdown
from awtpn.run.atomic_write import write_atomically


def write_report(paths: Sequence[Path], html: Path | None, markdown: Path | None) -> list[Path]:
    """Read runs and write the requested pages; returns the files.

    Raises:
        ValueError: see `awtpn.report.data.gather`.
    """
    report = gather(paths)
    written = []
    for file, render in ((html, render_html), (markdown, render_markdown)):
        if file is not None:
            write_atomically(file, render(report))
            written.append(file)
    return written
