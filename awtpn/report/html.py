"""A report as one HTML file: styles and charts inside, nothing fetched, no scripts; light, dark, on paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.losses import TERMS
from awtpn.metrics import SUMMARY
from awtpn.report import charts
from awtpn.report import markdown as words
from awtpn.report.confidence import calibration, surest_mistakes
from awtpn.report.report import Report, RunRecord

STYLE = Path(__file__).with_name("report.css")
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values


def render_html(report: Report) -> str:
    """The whole page."""
    title = escape(f"AWTPN on {report.dataset}")
    sections = [
        f"<h1>{title}</h1><p class=lead>{escape(words.sentence(report))}</p>",
        f"<div class=cards>{''.join(card(report, name) for name in SUMMARY)}</div>",
        f"<p class=note>{prose(words.reading(report))}</p>",
        section("Runs", folds(report)) if len(report.runs) > 1 else "",
        section("Classes", classes(report)),
        section("Curves", curves(report)),
        section("Confidence", confidence(report)),
        section("Cost", table(["", ""], words.cost_rows(report))),
        section("Reproduction", reproduction(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>\n<style>\n{STYLE.read_text()}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


# --- Sections ------------------------------------------------------------------------------------


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def card(report: Report, name: str) -> str:
    """One figure: its mean, its intervals, and others' beside it."""
    mean = report.means[name]
    spans = []
    for intervals, what in (
        (report.over_trainings, f"over {report.draws}"),
        (report.over_utterances, "over utterances"),
    ):
        if intervals:
            spans.append(f"<b>{words.span(intervals, name)}</b> {what}")
    # The wider question is the one to draw: what would another training have given?
    drawn = report.over_trainings or report.over_utterances
    picture = charts.interval_svg(mean, drawn[name].low, drawn[name].high) if drawn else ""
    others = [
        f"{what} <b>{words.percent(figures[name])}</b>"
        for figures, what in ((report.paper, "paper"), (report.baseline, "logistic regression"))
        if figures and name in figures
    ]
    return (
        f"<div class=card><span class=name>{name}</span> "
        f"<div class=means>{words.MEANINGS[name]}</div>"
        f"<div class=value>{words.percent(mean)}<small> %</small></div>{picture}"
        f"<div class=spans>{'<br>'.join(spans) or 'interval not known'}</div>"
        + (f"<div class=others>{'<br>'.join(others)}</div>" if others else "")
        + "</div>"
    )


def folds(report: Report) -> str:
    """w-F1 of every run, a row per fold."""
    seeds = report.seeds
    rows = []
    for fold, runs in report.folds.items():
        by_seed = {run.seed: float(run.figures["w-F1"]) for run in runs}
        mean = sum(by_seed.values()) / len(by_seed)
        cells = [words.percent(by_seed[s]) if s in by_seed else "not run" for s in seeds]
        rows.append([fold or "the split's own", *cells, words.percent(mean), bar(mean)])
    head = ["left out" if len(report.folds) > 1 else "", *(f"seed {seed}" for seed in seeds), "mean w-F1", ""]
    return raw_table(head, rows, numbers=range(1, len(seeds) + 2))


def classes(report: Report) -> str:
    """Confusion matrix and per-class figures, side by side."""
    matrix = charts.confusion_svg(np.array(report.pooled["confusion_matrix"]), report.classes)
    rows = []
    for name, of in report.pooled["per_class"].items():
        figures = [words.percent(of[key]) for key in ("precision", "recall", "f1")]
        rows.append([name, *figures, bar(of["f1"]), f"{of['support']:,}"])
    of_classes = raw_table(["", "precision", "recall", "F1", "", "utterances"], rows, numbers=(1, 2, 3, 5))
    together = f"Over all {len(report.runs)} runs together. " if len(report.runs) > 1 else ""
    note = (
        f"<p class=note>{together}Rows of the matrix are true classes, columns predictions: per cent of the "
        "row, and below it the count. Right answers are blue, mistakes vermilion.</p>"
    )
    return f"<div class=columns><div class=scroll>{matrix}</div><div>{of_classes}{note}</div></div>"


def curves(report: Report) -> str:
    """Losses and, where there were validations, their w-F1, over optimizer steps."""
    weights = report.runs[0].config["loss"]
    used = [term for term, key in zip(TERMS, weight_keys(), strict=True) if weights[key]]
    drawn = [
        charts.curve_svg([of_lines(run, name) for run in report.runs], title)
        for name, title in (("loss", "loss, weighted sum"), *((term, term) for term in used))
    ]
    validations = [run.validations for run in report.runs]
    if all(validations):
        scores = [(np.array([s for s, _ in v], float), np.array([x for _, x in v])) for v in validations]
        drawn.insert(0, charts.curve_svg(scores, "validation w-F1, %", percent=True))
        missing = ""
    else:
        missing = "There was no validation while training: the last weights are the ones tested. "
    band = "Mean over the runs, and from the least to the greatest of them." if len(report.runs) > 1 else ""
    note = f"<p class=note>Over optimizer steps. {missing}{band}</p>"
    return f"<div class=curves>{''.join(drawn)}</div>{note}"


def weight_keys() -> tuple[str, ...]:
    """The configuration's names of the terms' weights, in the order of TERMS."""
    return ("lambda_align", "lambda_intra", "lambda_inter", "lambda_contrast", "eta_ce", "eta_mse")


def of_lines(run: RunRecord, name: str) -> Curve:
    """A figure of metrics.jsonl; steps left out because it was not finite are not there."""
    points = [(line["step"], line[name]) for line in run.lines if line[name] is not None]
    return np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)


def confidence(report: Report) -> str:
    """Calibration, and the mistakes that the model was surest of."""
    text = f"<p class=note>{prose(words.calibration_words(report))}"
    if report.predictions is None:
        return text + "</p>"
    picture = charts.calibration_svg(calibration(report.predictions))
    rows = [
        [
            f"<code>{escape(m.key)}</code>",
            escape(m.label),
            escape(m.predicted),
            words.percent(m.probability),
            f"{m.wrong} of {m.models}",
        ]
        for m in surest_mistakes(report.predictions)
    ]
    head = ["surest mistakes", "truth", "answer", "%", "models wrong"]
    mistakes = raw_table(head, rows, numbers=(3, 4)) if rows else "<p>There is no mistake to show.</p>"
    circle = " A circle is a tenth of the scale, its area the share of answers in it.</p>"
    return f"<div class=columns><div>{picture}{text}{circle}</div><div>{mistakes}</div></div>"


def reproduction(report: Report) -> str:
    """Command, software, data, fingerprints and configuration."""
    marks = [[run.dir.name, *run.fingerprints] for run in report.runs]
    fingerprints = raw_table(
        ["run", "last step's utterances", "digest of all steps"],
        [[f"<code>{escape(word)}</code>" for word in row] for row in marks],
    )
    which = " of the first run" if len(report.runs) > 1 else ""
    note = "Equal fingerprints: the same utterances in the same places of every step, on any number of ranks."
    return (
        f"<pre>{escape(report.command)}</pre>{table(['', ''], words.version_rows(report))}"
        f"<h2>Fingerprints</h2>{fingerprints}<p class=note>{note}</p><details><summary>Configuration{which}"
        f"</summary><pre>{escape(words.config_text(report))}</pre></details>"
    )


# --- Pieces --------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return raw_table(head, [[escape(cell) for cell in row] for row in rows])


def raw_table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns in `numbers` stand to the right."""

    def css(column: int) -> str:
        return "number" if column in numbers else "first" if column == 0 else "wide"

    top = "".join(f'<th class="{css(i)}">{cell}</th>' for i, cell in enumerate(head)) if any(head) else ""
    body = "".join(
        "<tr>" + "".join(f'<td class="{css(i)}">{cell}</td>' for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><tr>{top}</tr>{body}</table></div>"


def bar(fraction: float) -> str:
    return f'<span class=bar><i style="width:{100 * fraction:.1f}%"></i></span>'


def prose(markdown: str) -> str:
    """Markdown's *emphasis* and `code` as HTML, the rest escaped."""
    text = escape(markdown)
    for mark, tag in (("*", "em"), ("`", "code")):
        parts = text.split(mark)
        text = "".join(part if i % 2 == 0 else f"<{tag}>{part}</{tag}>" for i, part in enumerate(parts))
    return text
