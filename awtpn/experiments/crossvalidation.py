"""Leave-one-group-out cross-validation: one packing, one configuration, a run per group and seed.

Every run is a process of `launch/train.py` with its own run folder, so it has all features of a single
training, and an interrupted cross-validation resumes where it stopped (see `awtpn.experiments.runner`). A
linear model on pooled features of the same groups is the baseline (see `awtpn.experiments.baseline`). Without
a column to fold by, every seed is trained on the data's own splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from awtpn.config.command_line import parse_command_line
from awtpn.experiments.baseline import (
    NAMES,
    SHORT_NAMES,
    baseline_of_runs,
    baseline_of_split,
    check_installed,
)
from awtpn.experiments.folds import Splits, Trial, check_arguments, make_splits
from awtpn.experiments.home import find_home
from awtpn.experiments.runner import PYTHON, read_metrics, train_all
from awtpn.experiments.scores import (
    Score,
    fold_means,
    mean_of,
    metrics_of_all,
    score_of,
    table_metrics,
    task_of_scores,
    task_record,
    undefined_counts,
    undefined_note,
    values_of,
)
from awtpn.experiments.sweep import choose, grid
from awtpn.metrics.confidence_intervals import t_interval
from awtpn.metrics.summary import (
    DEFAULT_BEST,
    check_best_by,
    format_metric,
    format_range,
    shown,
    task_type_of,
)
from awtpn.metrics.tables import format_table
from awtpn.run.atomic_write import write_json
from shards.safe_io.printable import join_lines, table_lines
from shards.storage.credentials import redact

RESULTS_FILE = "cross_validation.json"


def cross_validate(
    training: Sequence[str],
    by: str | None,
    seeds: Sequence[int],
    given: Path | str,
    *,
    sweep: Sequence[str] = (),
    parallel: int = 1,
    launcher: Sequence[str] = PYTHON,
    baseline: bool | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train and test every fold with every seed; print the table, write it and the report into a folder.

    Args:
        training: arguments of `awtpn train`, for every run.
        by: metadata column whose values are left out in turn; None: the data's own splits.
        seeds: `run.seed` of each repetition.
        given: folder for the runs and the table, as a path, or the URL of one. Several processes on machines
            that share a disk may use the same path at once; a URL is for one machine at a time.
        sweep: "KEY=V1,V2" each; each fold chooses the best point of the grid on its training data alone.
        parallel: runs at a time on this machine.
        launcher: the command that starts launch/train.py; Python by default.
        baseline: also fit the baseline; None: if there are folds, and features of all modalities.
        command: the command line, for the record.

    Raises:
        ValueError: invalid settings, no such column, the folder holds runs of other settings, or the baseline
            needs scikit-learn, which is not installed.
        RuntimeError: a run failed; the message ends with its output.
    """
    from awtpn.report.write import write_report

    check_arguments(training, seeds, by)
    config = parse_command_line([*training])[0]
    baseline = bool(by) and not config.encoder if baseline is None else baseline
    if baseline:
        check_installed()  # before hours of training, not after them
    splits = make_splits(training, by)
    home = find_home(given, config.run.storage_options)
    folder = home.folder
    train = partial(train_all, parallel=parallel, launcher=launcher, place=home.place)
    chosen = choose(splits, training, seeds, folder / "sweep", grid(sweep), train) if sweep else None
    trials = plan(splits, training, seeds, folder, chosen)
    train([trial.job for trial in trials], what="cross-validation" if by else "seeds")
    scores = collect_scores(trials)
    of_baseline = baseline_of_runs(config, splits) if baseline else []
    figures = collect(scores, of_baseline, config.train.best_by)
    results = {"by": by, "seeds": list(seeds), "command": redact(command), **figures}
    if chosen is not None:
        results["chosen"] = [{"fold": fold, **point} for fold, point in chosen]
    write_json(folder / RESULTS_FILE, results)
    print(format_scores(results))
    written = write_report([folder], folder / "report.html", folder / "report.md")
    table, *report = home.send([folder / RESULTS_FILE, *written])
    print(f"\nalso in {table}; the report: {', '.join(report)}")
    return results


def print_baseline(training: Sequence[str], by: str | None) -> str:
    """Fit and evaluate the baseline alone, and print its figures; nothing is trained or written.

    Args:
        training: arguments of `awtpn train`.
        by: metadata column whose values are left out in turn; None: the data's own splits.

    Returns:
        What it printed: for own splits the table of `awtpn evaluate`, else a row per fold.

    Raises:
        ValueError: invalid settings, no such column, no test utterances, or scikit-learn is not installed.
    """
    check_arguments(training, [], by)
    check_installed()
    splits = make_splits(training, by)
    config = parse_command_line([*training])[0]
    if by is None:
        figures = baseline_of_split(config)
        task = task_type_of(figures)
        text = f"{NAMES[task]}, test: {figures['utterances']} utterances\n\n{format_table(figures)}"
    else:
        text = format_baseline(by, baseline_of_runs(config, splits))
    print(text)
    return text


def format_baseline(by: str, scores: Sequence[Score]) -> str:
    """A table of the baseline's metrics, a row per fold."""
    task, names = task_of_scores(scores), metrics_of_all(scores)
    rows = [[by, *map(shown, names)]]
    rows += [[str(s.fold), *(format_metric(name, s.metrics[name]) for name in names)] for s in scores]
    rows.append(["mean", *(format_metric(name, mean_of(scores, name)) for name in names)])
    lines = [NAMES[task], "", *table_lines(rows, "lr")]
    if note := undefined_note(undefined_counts(scores, names), len(scores)):
        lines.append(note)
    return join_lines(lines)


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
        scores.append(score_of(fold, trial.seed, found))
    return scores


# --- Summary -------------------------------------------------------------------------------------


def collect(scores: Sequence[Score], baseline: Sequence[Score], best_by: str | None = None) -> dict[str, Any]:
    """Everything the table shows, as plain JSON.

    Args:
        scores: of the runs.
        baseline: of its models, one per fold; none if it was not fitted.
        best_by: `train.best_by`.

    Returns:
        For classes the baseline is under "logistic_regression", for other tasks under "baseline", which also
        names it; these also have "task" and "metric". None where it was not fitted.

    Raises:
        ValueError: the runs are of different tasks.
    """
    task = task_of_scores(scores)
    names = metrics_of_all(scores)
    undefined = undefined_counts(scores, names)
    fitted = {"runs": _rows(baseline), "mean": _means(baseline)} if baseline else None
    by_task = {"logistic_regression": fitted}
    if task != "classification":
        by_task = {"baseline": {"name": NAMES[task], **fitted} if fitted else None}
    return {
        **task_record(task, check_best_by(best_by, task)),
        "runs": _rows(scores),
        "mean": _means(scores),
        "interval_over_runs": {name: t_interval(values_of(scores, name)) for name in names},
        "interval_over_folds": {name: t_interval(fold_means(scores, name)) for name in names},
        **({"undefined": undefined} if undefined else {}),
        **by_task,
    }


def _rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [{"fold": s.fold, "seed": s.seed, "figures": s.metrics} for s in scores]


def _means(scores: Sequence[Score]) -> dict[str, float | None]:
    return {name: mean_of(scores, name) for name in metrics_of_all(scores)}


def format_scores(results: Mapping[str, Any]) -> str:
    """The table to print; metrics in per cent, errors and correlations in their own unit."""
    task = results.get("task", "classification")
    metric = results.get("metric", DEFAULT_BEST[task])
    fitted = results.get("logistic_regression") or results.get("baseline")
    baseline = {row["fold"]: row["figures"] for row in fitted["runs"]} if fitted else {}
    columns = table_metrics(task, metric, results["mean"])
    short = SHORT_NAMES[task]
    names = [*map(shown, columns), *(f"{short} {shown(name)}" for name in columns if fitted)]
    rows = [[results["by"] or "", "seed", *names]]
    for row in results["runs"]:
        fold = "own splits" if row["fold"] is None else str(row["fold"])
        cells = _cells(columns, row["figures"], baseline.get(row["fold"]))
        rows.append([fold, str(row["seed"]), *cells])
    rows.append(["mean", "", *_cells(columns, results["mean"], fitted["mean"] if fitted else None)])
    lines = ["", *table_lines(rows, "lr")]
    folds = len({row["fold"] for row in results["runs"]})
    for key, what in (
        ("interval_over_runs", f"{len(results['runs'])} runs"),
        ("interval_over_folds", f"{folds} fold means"),
    ):
        if interval := results[key].get(metric):
            lines.append(f"{metric}, 95 % t-interval over the {what}: {format_range(metric, interval)}")
    if note := undefined_note(results.get("undefined", {}), len(results["runs"])):
        lines.append(note)
    if fitted:
        lines.append(f"{short}: {NAMES[task]} on each utterance's mean and standard deviation, standardized")
    return join_lines(lines)


def _cells(
    columns: Sequence[str], ours: Mapping[str, float | None], baseline: Mapping[str, float | None] | None
) -> list[str]:
    shown_metrics = (ours, baseline) if baseline else (ours,)
    return [format_metric(name, metrics.get(name)) for metrics in shown_metrics for name in columns]
