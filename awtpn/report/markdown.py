"""A report as Markdown: for a README, a model card or an appendix."""

from __future__ import annotations

from awtpn.metrics.summary import HEADLINES, METRICS, format_metric, mean_of_all, shown
from awtpn.report.labels import label_sections
from awtpn.report.repetitions import Report
from awtpn.report.sections import Section, Table
from awtpn.report.text import (
    calibration_words,
    config_text,
    cost_rows,
    loss_rows,
    meaning,
    percent,
    reading,
    sentence,
    span,
    title,
    version_rows,
)
from awtpn.report.values import value_sections
from shards.safe_io.markdown import Markdown, block, bold, code, inline, table


def render_markdown(report: Report) -> str:
    """The whole report, without charts."""
    sections = [
        f"# {inline(title(report))}\n\n{inline(sentence(report))}",
        "## Figures\n\n" + headline(report) + "\n\n" + reading(report),
        *([fold_table(report)] if len(report.runs) > 1 else []),
        *task_sections(report),
        "## Losses\n\n" + loss_table(report),
        "## Cost\n\n" + cost_table(report),
        "## Reproduction\n\n" + reproduction(report),
    ]
    return "\n\n".join(sections) + "\n"


def task_sections(report: Report) -> list[str]:
    """Of classes, values or labels."""
    if report.task_type == "classification":
        return [
            "## Classes\n\n" + class_table(report),
            "## Confusion matrix\n\nTrue classes as rows, per cent of the row (count).\n\n"
            + confusion_table(report),
            "## Calibration\n\n" + calibration_words(report),
        ]
    sections = value_sections if report.task_type == "regression" else label_sections
    return [rendered(section) for section in sections(report)]


def rendered(section: Section) -> str:
    """A section without its charts."""
    parts = [f"## {section.title}"]
    parts += [_cells(found) for found in (section.table, section.data) if found is not None]
    parts += [section.note] if section.note else []
    return "\n\n".join(parts)


def _cells(found: Table) -> str:
    rows = [[code(cell) if i in found.code else cell for i, cell in enumerate(row)] for row in found.rows]
    return table(found.head, rows)


def headline(report: Report) -> str:
    """The metrics, their intervals, and the paper's and the baseline's values."""
    paper, baseline = report.paper, report.baseline
    head = ["", "ours", "95 % over utterances", f"95 % over {report.draws}"]
    head += ["paper"] * bool(paper) + [report.baseline_name] * bool(baseline)
    rows = []
    # Classes have per cent alone; other tasks say which metrics are.
    of_classes = report.task_type == "classification"
    for name in HEADLINES[report.task_type]:
        words = meaning(report, name) + (", %" if METRICS[name].percent and not of_classes else "")
        row: list[str] = [
            Markdown(f"**{shown(name)}** ({words})"),
            bold(format_metric(name, report.means[name])),
        ]
        row += [span(intervals, name) for intervals in (report.over_utterances, report.over_trainings)]
        for others in (paper, baseline):
            if others:
                row.append(format_metric(name, others[name]) if name in others else "not given")
        rows.append(row)
    return table(head, rows)


def fold_table(report: Report) -> str:
    """Each fold's main metric of every seed."""
    seeds, main = report.seeds, report.main
    head = ["left out" if len(report.folds) > 1 else "", *(f"seed {seed}" for seed in seeds), "mean"]
    rows = []
    for fold, runs in report.folds.items():
        by_seed = {run.seed: run.metrics[main] for run in runs}
        cells = [format_metric(main, by_seed[s]) if s in by_seed else "not run" for s in seeds]
        mean = format_metric(main, mean_of_all(by_seed.values()))
        rows.append([fold or "(the split's own)", *cells, bold(mean)])
    return f"{shown(main)} of each run:\n\n{table(head, rows)}"


def class_table(report: Report) -> str:
    rows = [
        [name, *(percent(of[key]) for key in ("precision", "recall", "f1")), f"{of['support']:,}"]
        for name, of in report.pooled["per_class"].items()
    ]
    note = f"\n\nOver all {len(report.runs)} runs together." if len(report.runs) > 1 else ""
    return table(["class", "precision", "recall", "F1", "utterances"], rows) + note


def confusion_table(report: Report) -> str:
    rows = []
    for name, counts in zip(report.names, report.pooled["confusion_matrix"], strict=True):
        total = max(sum(counts), 1)
        rows.append([bold(name), *(f"{100 * n / total:.0f} ({n})" if n else "" for n in counts)])
    return table(["", *report.names], rows)


def loss_table(report: Report) -> str:
    return table(["term", "weight", "mean over the first epoch", "over the last"], loss_rows(report))


def cost_table(report: Report) -> str:
    return table(["", ""], cost_rows(report))


def reproduction(report: Report) -> str:
    parts: list[str] = [block(report.command), table(["", ""], version_rows(report))]
    head = ["run", "fingerprint of the last step's utterances", "digest of all steps'"]
    rows = [[code(word) for word in (run.dir.name, *run.fingerprints)] for run in report.runs]
    parts.append(table(head, rows))
    parts.append(
        "Equal fingerprints: the same utterances in the same places, whatever the number of ranks. The "
        "configuration"
        + (" of the first run" if len(report.runs) > 1 else "")
        + f":\n\n{block(config_text(report), 'yaml')}"
    )
    return "\n\n".join(parts)
