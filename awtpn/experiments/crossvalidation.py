"""Leave-one-group-out cross-validation: one packing, one configuration, a run per group and seed.

Every run is a process of `launch/train.py` with its own run folder, so it has all features of a single
training, and an interrupted cross-validation resumes where it stopped (see `awtpn.experiments.runner`). A
logistic regression on pooled features of the same groups is the baseline. Without a column to fold by, every
seed is trained on the data's own splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from awtpn.config.command_line import parse_command_line
from awtpn.experiments.baseline import check_installed, logistic_regressions
from awtpn.experiments.folds import Score, Splits, Trial, check_arguments, fold_means, make_splits
from awtpn.experiments.runner import PYTHON, read_metrics, train_all
from awtpn.experiments.sweep import choose, grid
from awtpn.metrics.classification import SUMMARY
from awtpn.metrics.confidence_intervals import t_interval
from awtpn.run.atomic_write import write_json
from shards.safe_io.printable import join_lines, table_lines
from shards.storage.credentials import redact

RESULTS_FILE = "cross_validation.json"
METRICS = ("w-F1", "w-ACC")  # of the printed table


def cross_validate(
    training: Sequence[str],
    by: str | None,
    seeds: Sequence[int],
    folder: Path,
    *,
    sweep: Sequence[str] = (),
    parallel: int = 1,
    launcher: Sequence[str] = PYTHON,
    baseline: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Train and test every fold with every seed; print the table, write it and the report into `folder`.

    Args:
        training: arguments of `awtpn train`, for every run.
        by: metadata column whose values are left out in turn; None: the data's own splits.
        seeds: `run.seed` of each repetition.
        folder: for the runs and the table; several processes may use the same one at once.
        sweep: "KEY=V1,V2" each; each fold chooses the best point of the grid on its training data alone.
        parallel: runs at a time on this machine.
        launcher: the command that starts launch/train.py; Python by default.
        baseline: also fit the logistic regression (it needs folds).
        command: the command line, for the record.

    Raises:
        ValueError: invalid settings, no such column, `folder` holds runs of other settings, or the baseline
            needs scikit-learn, which is not installed.
        RuntimeError: a run failed; the message ends with its output.
    """
    from awtpn.report.write import write_report

    check_arguments(training, seeds, by)
    if by and baseline:
        check_installed()  # before hours of training, not after them
    splits = make_splits(training, by)
    train = partial(train_all, parallel=parallel, launcher=launcher)
    chosen = choose(splits, training, seeds, folder / "sweep", grid(sweep), train) if sweep else None
    trials = plan(splits, training, seeds, folder, chosen)
    train([trial.job for trial in trials], what="cross-validation" if by else "seeds")
    scores = collect_scores(trials)
    config = parse_command_line([*training])[0]
    if splits.url:
        config.data.train = splits.url
    used = config.model.modalities
    regressions = logistic_regressions(config.data, used, by, splits.folds) if by and baseline else []
    results = {"by": by, "seeds": list(seeds), "command": redact(command), **collect(scores, regressions)}
    if chosen is not None:
        results["chosen"] = [{"fold": fold, **point} for fold, point in chosen]
    write_json(folder / RESULTS_FILE, results)
    print(format_scores(results))
    written = write_report([folder], folder / "report.html", folder / "report.md")
    print(f"\nalso in {folder / RESULTS_FILE}; the report: {', '.join(map(str, written))}")
    return results


def plan(
    splits: Splits,
    training: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    chosen: Sequence[tuple[Any, Mapping[str, Any]]] | None,
) -> list[Trial]:
    """Every fold with every seed, with the settings that a sweep chose for the fold."""
    if chosen is None:
        return splits.trials(training, seeds, folder)
    points = {fold: point["arguments"] for fold, point in chosen}
    return [
        trial
        for fold in splits.each
        for trial in splits.of_fold(fold, [*training, *points[fold.test if fold else None]], seeds, folder)
    ]


def collect_scores(trials: Sequence[Trial]) -> list[Score]:
    """Test metrics of finished runs."""
    scores = []
    for trial in trials:
        found = read_metrics(trial.job.run_dir)
        fold = trial.fold.test if trial.fold else None
        scores.append(Score(fold, trial.seed, {name: found[name] for name in SUMMARY}))
    return scores


# --- Summary -------------------------------------------------------------------------------------


def collect(scores: Sequence[Score], baseline: Sequence[Score]) -> dict[str, Any]:
    """Everything the table shows, as plain JSON."""
    results: dict[str, Any] = {
        "runs": _rows(scores),
        "mean": _means(scores),
        "interval_over_runs": {name: t_interval([s.metrics[name] for s in scores]) for name in SUMMARY},
        "interval_over_folds": {name: t_interval(fold_means(scores, name)) for name in SUMMARY},
        "logistic_regression": None,
    }
    if baseline:
        results["logistic_regression"] = {
            "runs": _rows(baseline),
            "mean": _means(baseline),
        }
    return results


def _rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [{"fold": s.fold, "seed": s.seed, "figures": s.metrics} for s in scores]


def _means(scores: Sequence[Score]) -> dict[str, float]:
    return {name: float(np.mean([s.metrics[name] for s in scores])) for name in SUMMARY}


def format_scores(results: dict[str, Any]) -> str:
    """The table to print, in per cent."""
    regression = results["logistic_regression"]
    baseline = {row["fold"]: row["figures"] for row in regression["runs"]} if regression else {}
    names = [*METRICS, *(f"LR {name}" for name in METRICS if regression)]
    rows = [[results["by"] or "", "seed", *names]]
    for row in results["runs"]:
        fold = "own splits" if row["fold"] is None else str(row["fold"])
        rows.append([fold, str(row["seed"]), *_cells(row["figures"], baseline.get(row["fold"]))])
    rows.append(["mean", "", *_cells(results["mean"], regression["mean"] if regression else None)])
    lines = ["", *table_lines(rows, "lr")]
    folds = len({row["fold"] for row in results["runs"]})
    for key, what in (
        ("interval_over_runs", f"{len(results['runs'])} runs"),
        ("interval_over_folds", f"{folds} fold means"),
    ):
        if results[key]["w-F1"]:
            low, high = results[key]["w-F1"]
            lines.append(f"w-F1, 95 % t-interval over the {what}: {100 * low:.2f} to {100 * high:.2f}")
    if regression:
        lines.append("LR: logistic regression on each utterance's mean and standard deviation, standardized")
    return join_lines(lines)


def _cells(ours: dict[str, float], baseline: dict[str, float] | None) -> list[str]:
    shown = (ours, baseline) if baseline else (ours,)
    return [f"{100 * metrics[name]:.2f}" for metrics in shown for name in METRICS]
