"""A report as one HTML file with its styles and charts; it loads nothing and has no scripts.

The page is the jinja2 template beside this file, which escapes every value. Only `Markup`, which the charts
and the small elements below are made of, is not escaped. In addition, the page's Content-Security-Policy
allows no scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from awtpn.metrics.calibration import calibration, surest_mistakes
from awtpn.metrics.summary import HEADLINES, METRICS, format_metric, mean_of_all, shown
from awtpn.report import charts, text
from awtpn.report.labels import label_sections
from awtpn.report.repetitions import Report
from awtpn.report.sections import Section, Table
from awtpn.report.values import value_sections
from shards.safe_io.printable import printable, printable_lines

FOLDER = Path(__file__).parent
TEMPLATE, STYLE = "report.html", "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render_html(report: Report) -> str:
    """The whole page."""
    of_classes = report.task_type == "classification"
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            policy=POLICY,
            style=Markup((FOLDER / STYLE).read_text()),
            title=text.title(report),
            lead=text.sentence(report),
            cards=[card(report, name) for name in HEADLINES[report.task_type]],
            reading=text.reading(report),
            folds=folds(report) if len(report.runs) > 1 else None,
            classes=classes(report) if of_classes else None,
            sections=[_shown(section) for section in sections(report)],
            curves=curves(report),
            confidence=confidence(report) if of_classes else None,
            cost=text.cost_rows(report),
            command=report.command,
            versions=text.version_rows(report),
            fingerprints=[[_code(word) for word in (run.dir.name, *run.fingerprints)] for run in report.runs],
            of_which=" of the first run" if len(report.runs) > 1 else "",
            configuration=text.config_text(report),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # In every text, control characters are shown as escapes.
        finalize=lambda value: value if hasattr(value, "__html__") else printable(value),
    )
    environment.filters |= {"prose": prose, "lines": lines}
    return environment


# --- Sections ------------------------------------------------------------------------------------


def card(report: Report, name: str) -> dict[str, Any]:
    """One metric: its mean, its intervals, and the paper's and the baseline's values."""
    mean = report.means[name]
    intervals = (report.over_trainings, f"over {report.draws}"), (report.over_utterances, "over utterances")
    # Draw the interval over trainings where it is known, since that is the wider question.
    drawn = next((found[name] for found, _ in intervals if found and name in found), None)
    picture: Markup | str = ""
    if drawn is not None and mean is not None:
        ends = line_ends(report, name, drawn.low, drawn.high)
        picture = charts.interval_svg(mean, drawn.low, drawn.high, ends, METRICS[name].percent)
    return {
        "name": shown(name),
        "meaning": text.meaning(report, name),
        "value": format_metric(name, mean),
        "unit": "" if mean is None else text.unit(name),
        "picture": picture,
        "spans": [(text.span(found, name), what) for found, what in intervals if found and name in found],
        "others": [
            (what, format_metric(name, metrics[name]))
            for metrics, what in ((report.paper, "paper"), (report.baseline, report.baseline_name))
            if metrics and name in metrics
        ],
    }


def line_ends(report: Report, name: str, low: float, high: float) -> tuple[float, float]:
    """The ends of the line that an interval is drawn on: what the metric can be.

    An error has no upper end: the line goes to the standard deviation of the true values, or further.
    """
    if METRICS[name].percent:
        return 0.0, 1.0
    if METRICS[name].higher_is_better:  # a correlation
        return (-1.0 if low < 0 else 0.0), 1.0
    deviation = mean_of_all(row.get("truth_deviation") for row in report.part_means.values())
    return 0.0, max(deviation or 0.0, high) or 1.0


def sections(report: Report) -> list[Section]:
    """What a report on values or labels has in place of the classes."""
    if report.task_type == "classification":
        return []
    return value_sections(report) if report.task_type == "regression" else label_sections(report)


def _shown(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "table": _cells(section.table),
        "charts": section.charts,
        "data": _cells(section.data),
        "note": section.note,
        "legend": section.legend if section.charts else "",
    }


def _cells(table: Table | None) -> tuple[Sequence[str], list[list[str]], Sequence[int]] | None:
    """Arguments of the template's table; None if there is none."""
    if table is None:
        return None
    rows = [[_code(cell) if i in table.code else cell for i, cell in enumerate(row)] for row in table.rows]
    return table.head, rows, table.numbers


def folds(report: Report) -> tuple[list[str], list[list[str]], Sequence[int]]:
    """A table of every run's main metric, a row per fold: head, rows, and the columns that are numbers."""
    seeds, main = report.seeds, report.main
    rows: list[list[str]] = []
    for fold, runs in report.folds.items():
        by_seed = {run.seed: run.metrics[main] for run in runs}
        mean = mean_of_all(by_seed.values())
        cells = [format_metric(main, by_seed[s]) if s in by_seed else "not run" for s in seeds]
        drawn = bar(mean) if mean is not None and METRICS[main].percent else ""
        rows.append([fold or "the split's own", *cells, format_metric(main, mean), drawn])
    where = "left out" if len(report.folds) > 1 else ""
    head = [where, *(f"seed {seed}" for seed in seeds), f"mean {shown(main)}", ""]
    return head, rows, range(1, len(seeds) + 2)


def classes(report: Report) -> dict[str, Any]:
    """Confusion matrix and per-class metrics, side by side."""
    rows: list[list[str]] = []
    for name, of in report.pooled["per_class"].items():
        metrics = [text.percent(of[key]) for key in ("precision", "recall", "f1")]
        rows.append([name, *metrics, bar(of["f1"]), f"{of['support']:,}"])
    return {
        "matrix": charts.confusion_svg(np.array(report.pooled["confusion_matrix"]), report.names),
        "head": ["", "precision", "recall", "F1", "", "utterances"],
        "rows": rows,
        "numbers": (1, 2, 3, 5),
        "together": f"Over all {len(report.runs)} runs together. " if len(report.runs) > 1 else "",
    }


def curves(report: Report) -> dict[str, Any]:
    """Losses and, if there were validations, their main metric, over optimizer steps."""
    drawn = [
        charts.curve_svg([run.curve(name) for run in report.runs], title)
        for name, title in (("loss", "loss, weighted sum"), *((term, term) for term in report.loss_weights))
    ]
    main = report.main
    validations = [run.validations(main) for run in report.runs]
    missing = ""
    if all(validations):
        scores = [(np.array([s for s, _ in v], float), np.array([x for _, x in v])) for v in validations]
        percent = METRICS[main].percent
        title = f"validation {shown(main)}{', %' if percent else ''}"
        drawn.insert(0, charts.curve_svg(scores, title, percent=percent))
    else:
        missing = "There was no validation while training, so the last weights were tested. "
    band = (
        "Mean over the runs, and the band from the smallest to the largest value."
        if len(report.runs) > 1
        else ""
    )
    return {"drawn": drawn, "note": f"{missing}{band}"}


def confidence(report: Report) -> dict[str, Any]:
    """Calibration, and the wrong predictions of highest probability."""
    note = text.calibration_words(report)
    if report.predictions is None:
        return {"note": note, "picture": None}
    mistakes = [
        [_code(m.key), m.label, m.predicted, text.percent(m.probability), f"{m.wrong} of {m.models}"]
        for m in surest_mistakes(report.predictions)
    ]
    return {
        "note": note,
        "picture": charts.calibration_svg(calibration(report.predictions)),
        "head": ["most confident mistakes", "true", "predicted", "%", "models wrong"],
        "mistakes": mistakes,
    }


# --- Pieces --------------------------------------------------------------------------------------


def bar(fraction: float) -> Markup:
    return Markup('<span class="bar"><i style="width:{:.1f}%"></i></span>').format(100 * fraction)


def _code(word: str) -> Markup:
    return Markup("<code>{}</code>").format(printable(word))


def lines(text: object) -> Markup:
    """A text that keeps its line ends, for <pre>."""
    return escape(printable_lines(text))


def prose(markdown: str) -> Markup:
    """Turn Markdown's *emphasis* and `code` into HTML, and escape the rest."""
    shown = str(escape(printable(markdown)))
    for mark, tag in (("*", "em"), ("`", "code")):
        parts = shown.split(mark)
        shown = "".join(part if i % 2 == 0 else f"<{tag}>{part}</{tag}>" for i, part in enumerate(parts))
    return Markup(shown)
