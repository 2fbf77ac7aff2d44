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
from awtpn.metrics.classification import SUMMARY
from awtpn.report import charts, text
from awtpn.report.data import Report
from shards.safe_io.printable import printable, printable_lines

FOLDER = Path(__file__).parent
TEMPLATE, STYLE = "report.html", "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def render_html(report: Report) -> str:
    """The whole page."""
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            policy=POLICY,
            style=Markup((FOLDER / STYLE).read_text()),
            title=f"AWTPN on {report.dataset}",
            lead=text.sentence(report),
            cards=[card(report, name) for name in SUMMARY],
            reading=text.reading(report),
            folds=folds(report) if len(report.runs) > 1 else None,
            classes=classes(report),
            curves=curves(report),
            confidence=confidence(report),
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
    # Draw the interval over trainings where it is known, since that is the wider question.
    drawn = report.over_trainings or report.over_utterances
    return {
        "name": name,
        "meaning": text.MEANINGS[name],
        "value": text.percent(mean),
        "picture": charts.interval_svg(mean, drawn[name].low, drawn[name].high) if drawn else "",
        "spans": [
            (text.span(intervals, name), what)
            for intervals, what in (
                (report.over_trainings, f"over {report.draws}"),
                (report.over_utterances, "over utterances"),
            )
            if intervals
        ],
        "others": [
            (what, text.percent(metrics[name]))
            for metrics, what in ((report.paper, "paper"), (report.baseline, "logistic regression"))
            if metrics and name in metrics
        ],
    }


def folds(report: Report) -> tuple[list[str], list[list[str]], Sequence[int]]:
    """A table of every run's w-F1, a row per fold: head, rows, and the columns that are numbers."""
    seeds = report.seeds
    rows: list[list[str]] = []
    for fold, runs in report.folds.items():
        by_seed = {run.seed: float(run.metrics["w-F1"]) for run in runs}
        mean = sum(by_seed.values()) / len(by_seed)
        cells = [text.percent(by_seed[s]) if s in by_seed else "not run" for s in seeds]
        rows.append([fold or "the split's own", *cells, text.percent(mean), bar(mean)])
    head = ["left out" if len(report.folds) > 1 else "", *(f"seed {seed}" for seed in seeds), "mean w-F1", ""]
    return head, rows, range(1, len(seeds) + 2)


def classes(report: Report) -> dict[str, Any]:
    """Confusion matrix and per-class metrics, side by side."""
    rows: list[list[str]] = []
    for name, of in report.pooled["per_class"].items():
        metrics = [text.percent(of[key]) for key in ("precision", "recall", "f1")]
        rows.append([name, *metrics, bar(of["f1"]), f"{of['support']:,}"])
    return {
        "matrix": charts.confusion_svg(np.array(report.pooled["confusion_matrix"]), report.classes),
        "head": ["", "precision", "recall", "F1", "", "utterances"],
        "rows": rows,
        "numbers": (1, 2, 3, 5),
        "together": f"Over all {len(report.runs)} runs together. " if len(report.runs) > 1 else "",
    }


def curves(report: Report) -> dict[str, Any]:
    """Losses and, if there were validations, their w-F1, over optimizer steps."""
    drawn = [
        charts.curve_svg([run.curve(name) for run in report.runs], title)
        for name, title in (("loss", "loss, weighted sum"), *((term, term) for term in report.loss_weights))
    ]
    validations = [run.validations for run in report.runs]
    missing = ""
    if all(validations):
        scores = [(np.array([s for s, _ in v], float), np.array([x for _, x in v])) for v in validations]
        drawn.insert(0, charts.curve_svg(scores, "validation w-F1, %", percent=True))
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
