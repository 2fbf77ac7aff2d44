"""Sentences and table rows of a report, for HTML and Markdown alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from awtpn.config.schema import flatten
from awtpn.metrics.calibration import calibration, calibration_error
from awtpn.metrics.confidence_intervals import Interval
from awtpn.metrics.summary import METRICS, format_range, higher_is_better
from awtpn.report.answers import threshold_of
from awtpn.report.repetitions import Report
from shards.safe_io.printable import plural

MEANINGS = {
    "classification": {
        "w-ACC": "utterances that are right",
        "w-F1": "F1 averaged by class size",
        "UA": "mean recall",
        "macro-F1": "mean F1",
    },
    "regression": {
        "MAE": "mean absolute error",
        "Corr": "Pearson's correlation",
        "CCC": "Lin's concordance",
    },
    "multilabel": {
        "WA": "weighted accuracy of CMU-MOSEI",
        "F1": "F1 of presence",
        "w-F1": "F1 of presence and absence, by size",
        "UA": "recall",
        "mAP": "mean average precision",
        "subset accuracy": "utterances all of whose labels are right",
    },
}
# How to read the metrics of each task.
READING = {
    "classification": "*accuracy (w-ACC)* is plain accuracy, under the name that the method's published code "
    "gives it; elsewhere w-ACC is the mean recall (here UA), or CMU-MOSEI's weighted accuracy (WA).",
    "regression": "MAE is in the unit of the values. Corr and CCC are undefined where the true or the "
    "predicted values are all the same.",
    "multilabel": "",
}


def title(report: Report) -> str:
    """The heading of the page: the model and the dataset."""
    return f"{'AWTPN' if report.network == 'awtpn' else report.network} on {report.dataset}"


def sentence(report: Report) -> str:
    """What was tested, in one sentence."""
    finished = max(str(run.status["time"]) for run in report.runs)[:10]
    split = "test" if report.role == "test" else "validation (there were no test utterances)"
    return (
        f"{report.what[0].upper()}{report.what[1:]}; {report.utterances:,} {split} utterances, "
        f"{described(report)}; finished {finished}.{about_baseline(report)}"
    )


def about_baseline(report: Report) -> str:
    """Says that the model is a baseline, and what it lacks; empty for AWTPN."""
    if report.network == "awtpn":
        return ""
    return (
        f" The model is {report.network}, a baseline for AWTPN: it is trained by the cross-entropy alone, "
        "and has no prototypes and no reliability weights."
    )


def described(report: Report) -> str:
    """What was recognized: "4 classes", "1 dimension", "6 labels"."""
    count = len(report.names)
    if report.task_type == "classification":
        return f"{count} classes"
    return plural(count, "dimension" if report.task_type == "regression" else "label")


def meaning(report: Report, name: str) -> str:
    """What a metric is, and whether less of it is better."""
    words = MEANINGS[report.task_type][name]
    if report.task_type == "regression" and len(report.names) > 1:
        words += ", mean over dimensions"
    if report.task_type == "multilabel" and name in ("WA", "F1", "w-F1", "UA"):
        words += ", mean over labels"
    return words if higher_is_better(name) else f"{words}; lower is better"


def reading(report: Report) -> str:
    """How to read the metrics and their intervals, and how these were computed."""
    sentences = [READING[report.task_type]] if READING[report.task_type] else []
    if report.task_type == "multilabel":
        threshold = threshold_of(report.runs[0].metrics)
        sentences.append(f"A label is predicted where its probability is above {threshold:g}.")
    if over := report.over_utterances:
        sentences.append(
            f"*Over utterances*: {_how(report, over)}, without strata. Utterances of one speaker are "
            "similar, so the true interval is somewhat wider."
        )
    elif over is not None:
        sentences.append("*Over utterances*: not known: no metric is defined.")
    elif report.task_type != "classification" and any(run.answers is None for run in report.runs):
        sentences.append("*Over utterances*: not known: the runs kept no predictions.")
    else:
        sentences.append("*Over utterances*: not known: the runs kept no predictions of the same utterances.")
    if over := report.over_trainings:
        sentences.append(f"*Over {report.draws}*: {_how(report, over)}.")
        if len(report.folds) > 1 and len(report.seeds) > 1:
            sentences.append(
                f"The {len(report.runs)} runs are not {len(report.runs)} independent samples, since runs of "
                "a fold share its utterances: seeds are averaged within a fold first."
            )
    elif over is not None:
        sentences.append(f"*Over {report.draws}*: not known: no metric is defined in every run.")
    else:
        sentences.append("*Over seeds*: not known from one run; train more seeds or folds.")
    return " ".join(sentences)


def _how(report: Report, intervals: dict[str, Interval]) -> str:
    """How intervals were computed, by the words of the main metric's, or of another one that has one."""
    return (intervals.get(report.main) or next(iter(intervals.values()))).how


def calibration_words(report: Report) -> str:
    if report.predictions is None:
        return "Not known: the runs kept no predictions."
    error = calibration_error(calibration(report.predictions))
    return f"Expected calibration error {100 * error:.1f} % (ten bins of the highest probability)."


def cost_rows(report: Report) -> list[tuple[str, str]]:
    """Ranks, time and speed of the runs, in words."""
    statuses = [run.status for run in report.runs]
    devices = ", ".join(sorted({str(s.get("device", "a device not recorded")) for s in statuses}))
    ranks = ", ".join(sorted({f"{s['ranks']} ({s['engine']})" for s in statuses}))
    rates = [line["utterances_per_s"] for run in report.runs for line in run.lines]
    rows = [("ranks", f"{ranks}, {devices}")]
    if all("rank_seconds" in s for s in statuses):
        wall, spent = (sum(s[key] for s in statuses) for key in ("seconds", "rank_seconds"))
        on_cpu = devices == "cpu"
        threads = ", ".join(sorted({str(s["threads"]) for s in statuses}))
        unit = f"process-hours of {threads} thread{'s' if threads != '1' else ''}" if on_cpu else "GPU-hours"
        of = f" ({len(statuses)} runs, one after another)" if len(statuses) > 1 else ""
        rows += [("cost", f"{spent / 3600:.2g} {unit}"), ("wall time", f"{duration(wall)}{of}")]
    else:
        rows.append(("cost", "not recorded by these runs"))
    rates.sort()
    rows.append(("training speed", f"{rates[len(rates) // 2]:,.0f} utterances/s (median over steps)"))
    rows.append(("steps", ", ".join(sorted({f"{s['step']:,}" for s in statuses}))))
    rows += [("steps left out", report.skipped_steps)] if report.skipped_steps else []
    return rows


def loss_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """Each loss term that was used: its name, its weight, and its means over the first and last epoch."""
    terms = [("loss (weighted sum)", "loss", ""), *((t, t, f"{w:g}") for t, w in report.loss_weights.items())]
    rows = []
    for title, name, weight in terms:
        first, last = (np.mean([run.epoch_mean(name, epoch) for run in report.runs]) for epoch in (0, -1))
        rows.append((title, weight, f"{first:.4g}", f"{last:.4g}"))
    return rows


def version_rows(report: Report) -> list[tuple[str, str]]:
    """Versions of software and data; if versions differ between runs, all are named."""
    names = dict.fromkeys(name for run in report.runs for name in run.status.get("versions", {}))
    rows = [
        (name, ", ".join(sorted({str(run.status.get("versions", {}).get(name)) for run in report.runs})))
        for name in names
    ] or [("versions", "not recorded by these runs")]
    commits = sorted({str(run.status["commit"]) for run in report.runs if run.status.get("commit")})
    rows += [("commit", ", ".join(commits))] if commits else []
    return rows + [(f"data: {key}", str(value)) for key, value in provenance(report).items()]


def provenance(report: Report) -> dict[str, Any]:
    """How the features were made, as their manifest records it."""
    found = report.runs[0].model.get("provenance") or {}
    return flatten({"name": report.dataset, **found})


def config_text(report: Report) -> str:
    return yaml.safe_dump(report.runs[0].config, sort_keys=False)


# --- Numbers in words ----------------------------------------------------------------------------


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def span(intervals: dict[str, Interval] | None, name: str) -> str:
    """A metric's interval; "undefined" if it has none among others, "not known" without any."""
    if intervals is None:
        return "not known"
    if name not in intervals:
        return "undefined"
    return format_range(name, (intervals[name].low, intervals[name].high))


def unit(name: str) -> str:
    """ " %" of a metric that is shown in per cent, else nothing."""
    return " %" if METRICS[name].percent else ""


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
