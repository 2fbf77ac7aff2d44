"""`awtpn compare-models`: several datasets with several models, folds and seeds, in one report.

All runs are one list for `runner.train_all`, so they resume, are shared between processes and keep all jobs
busy to the end. Only the runs of the nested choice's last stage wait for its first stage.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from awtpn.config.command_line import parse_command_line
from awtpn.experiments.ablation import arguments_of
from awtpn.experiments.baseline import check_installed
from awtpn.experiments.comparison import curves as curve
from awtpn.experiments.comparison.datasets import check_format, missing_sources, url_of
from awtpn.experiments.comparison.page import render_html, render_markdown
from awtpn.experiments.comparison.runs import Cell, Found, make_cell, read_cell, read_run
from awtpn.experiments.comparison.suite import (
    CURVES_FOLDER,
    LINEAR,
    NESTED_FOLDER,
    Dataset,
    Model,
    Suite,
    folder_of,
)
from awtpn.experiments.comparison.summary import over_datasets, summarize_dataset
from awtpn.experiments.comparison.tables import left_out_lines
from awtpn.experiments.crossvalidation import plan
from awtpn.experiments.folds import check_arguments, make_splits
from awtpn.experiments.home import Home, find_home
from awtpn.experiments.runner import PYTHON, Job, train_all
from awtpn.experiments.sweep import Point, choose, inner_trials
from awtpn.experiments.sweep import arguments_of as words_of
from awtpn.run.atomic_write import write_atomically, write_json
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import join_lines
from shards.storage.credentials import redact

RESULTS_FILE, MARKDOWN_FILE, HTML_FILE = "comparison.json", "comparison.md", "comparison.html"
ANY_DATA = "--data.train=any"  # to check arguments before the data is there

Cells = dict[str, dict[str, Cell]]  # by dataset and model


@dataclass(frozen=True)
class Choice:
    """A nested choice of settings: a cell, the settings to choose from, and the seeds of all its runs."""

    cell: Cell
    points: Sequence[Point]
    seeds: Sequence[int]
    folder: Path

    @property
    def sweep(self) -> Path:
        return self.folder / "sweep"

    @property
    def inner_jobs(self) -> list[Job]:
        """The runs that choose."""
        cell = self.cell
        return [
            trial.job
            for fold in cell.splits.each
            for point in self.points
            for trial in inner_trials(cell.splits, fold, cell.training, point, self.seeds, self.sweep)
        ]


def compare_models(
    suite: Suite,
    training: Sequence[str],
    seeds: Sequence[int],
    given: Path | str,
    *,
    sources: Path | None = None,
    nested: bool = False,
    curves: bool = False,
    parallel: int = 1,
    launcher: Sequence[str] = PYTHON,
    command: str = "",
) -> dict[str, Any]:
    """Train every model on every dataset with every fold and seed; print the report, write it into a folder.

    Args:
        suite: datasets and models.
        training: arguments of `awtpn train`, for every run.
        seeds: `run.seed` of each repetition.
        given: folder for the data, the runs and the report, as a path, or the URL of one. Several processes
            may use the same path at once; a URL is for one machine at a time.
        sources: folder of the sources that datasets are packed from.
        nested: also choose settings from the grid, on the suite's datasets for it.
        curves: also the curves.
        parallel, launcher: as of `train_all`.
        command: the command line, for the record.

    Raises:
        ValueError: invalid settings, the folder holds data or runs of other settings, or the linear baseline
            needs scikit-learn, which is not installed.
        RuntimeError: a run failed; the message ends with its output.
    """
    left_out = missing_sources(suite.datasets, sources)
    if left_out:
        print(join_lines(left_out_lines(left_out)))
    datasets = {name: of for name, of in suite.datasets.items() if name not in left_out}
    if not datasets:
        raise ValueError("there is no dataset to compare on: give --sources, the folder of the sources")
    if curves and suite.curves is None:
        raise ValueError("--curves: the suite has none, or not with these models")
    of_curves = suite.curves if curves else None
    made = curve.datasets_of(of_curves) if of_curves else {}
    check_settings(suite, training, seeds, {**datasets, **made}, nested)
    home = find_home(given, parse_command_line([*training])[0].run.storage_options)
    folder = home.folder
    cells = make_cells(datasets, suite.models, training, seeds, folder, sources, home)
    curve_cells: Cells = {}
    if of_curves:
        models = {name: suite.models[name] for name in of_curves.models}
        of_curve = folder / CURVES_FOLDER
        curve_cells = make_cells(made, models, training, of_curves.seeds, of_curve, sources, home)
    choices = make_choices(suite, cells, folder / NESTED_FOLDER) if nested else []
    train = partial(train_all, parallel=parallel, launcher=launcher, place=home.place)
    jobs = [
        trial.job
        for group in (cells, curve_cells)
        for of in group.values()
        for c in of.values()
        for trial in c.trials
    ]
    train([*jobs, *(job for choice in choices for job in choice.inner_jobs)], what="comparison")
    found = {name: {model: read_cell(cell, home) for model, cell in of.items()} for name, of in cells.items()}
    results: dict[str, Any] = {
        "command": redact(command),
        "seeds": list(seeds),
        "headline": suite.headline,
        "reference": suite.reference,
        "models": {n: LINEAR if m.overrides is None else dict(m.overrides) for n, m in suite.models.items()},
        "left_out": left_out,
        "datasets": {name: summarize(cells[name], of) for name, of in found.items()},
    }
    results["mean"] = over_datasets(results["datasets"], suite.headline)
    if choices:
        results["nested"] = nested_results(suite, choices, found, train)
    if of_curves:
        points = {
            name: summarize(of, {model: read_cell(cell, home) for model, cell in of.items()})
            for name, of in curve_cells.items()
        }
        results["curves"] = curve.summarize_curves(of_curves, points, suite.headline, suite.reference)
    write_report(results, home)
    return results


def check_settings(
    suite: Suite, training: Sequence[str], seeds: Sequence[int], datasets: Mapping[str, Dataset], nested: bool
) -> None:
    """Refuse, before anything is packed or trained, what no run could take.

    Raises:
        ValueError: names the argument, the dataset or the key.
    """
    check_arguments(training, seeds, next((of.by for of in datasets.values() if of.by is not None), None))
    if any(model.is_linear for model in suite.models.values()):
        check_installed("--models and the names of others")
    for dataset in datasets.values():
        if dataset.format is not None:
            check_format(dataset)
    settings = {tuple(arguments_of(of.arguments)): of.is_named_here for of in datasets.values()}
    for own, named in settings.items():
        common = [*training, *[ANY_DATA] * named, *own]
        for model in suite.models.values():
            check_words([*common, *model.arguments], model.name)
    for name, points in suite.points.items() if nested else ():
        for point in points:
            check_words([*training, ANY_DATA, *suite.models[name].arguments, *words_of(point)], name)


def check_words(words: Sequence[str], model: str) -> None:
    """Refuse arguments that no run takes, with the name of the model.

    Raises:
        ValueError: settings that contradict each other.
        SystemExit: an unknown key or a wrong type; both are on standard error.
    """
    try:
        parse_command_line([*words])
    except ValueError as error:
        raise ValueError(f"model {model}: {error}") from None
    except SystemExit:
        print(f"in the runs of the model {model}", file=sys.stderr)
        raise


def make_cells(
    datasets: Mapping[str, Dataset],
    models: Mapping[str, Model],
    training: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    sources: Path | None,
    home: Home,
) -> Cells:
    """Every model on every dataset; data that is not packed yet is packed into `folder`, within `home`."""
    cells: Cells = {}
    data = parse_command_line([*training])[0].data
    for name, dataset in datasets.items():
        url = url_of(dataset, sources, folder, home)
        place = [] if url is None else [f"--data.train={url}"]
        if dataset.format is not None and home.storage_options and not data.storage_options:
            # It was packed there with the options of the runs, so it is read with them.
            place.append(f"--data.storage_options={json_text(home.storage_options)}")
        common = [*training, *place, *arguments_of(dataset.arguments)]
        splits = make_splits(common, dataset.by)
        cells[name] = {
            model.name: make_cell(dataset, model, splits, common, seeds, folder) for model in models.values()
        }
    return cells


def summarize(cells: Mapping[str, Cell], found: Mapping[str, Sequence[Found]]) -> dict[str, Any]:
    """The summary of one dataset."""
    first = next(cell for cell in cells.values() if not cell.model.is_linear)
    best_by = parse_command_line([*first.training])[0].train.best_by
    return summarize_dataset(found, first.splits.by, best_by)


# --- Nested choice -------------------------------------------------------------------------------


def make_choices(suite: Suite, cells: Cells, folder: Path) -> list[Choice]:
    """The nested choices of the suite's models for it, on its datasets for it."""
    names = [name for name in suite.nested if name in cells]
    if not names:
        raise ValueError("--nested: the suite names no dataset for it that is here; list some under nested")
    if suite.headline not in suite.nested_models:
        raise ValueError(
            f"--nested: the tables show the differences of {suite.headline}, which is not among the suite's "
            "nested_models; add it there"
        )
    if without := [name for name in suite.nested_models if len(suite.points[name]) < 2]:
        raise ValueError(f"--nested: the suite has no grid for {', '.join(without)} to choose from")
    return [
        Choice(
            cells[name][model],
            suite.points[model],
            suite.nested_seeds,
            folder / folder_of(name) / folder_of(model),
        )
        for name in names
        for model in suite.nested_models
    ]


def nested_results(
    suite: Suite, choices: Sequence[Choice], plain: Mapping[str, Mapping[str, Sequence[Found]]], train: Any
) -> dict[str, Any]:
    """Choose for each fold, train with what was chosen, and summarize.

    Args:
        choices: their inner runs are done.
        plain: what all runs with the models' own settings have found; the linear baseline is that of there.
        train: `train_all` with its `parallel` and `launcher` set.
    """
    trials, chosen = {}, {}
    for choice in choices:
        cell, place = choice.cell, (choice.cell.dataset.name, choice.cell.model.name)
        print(f"\n{place[1]} on {place[0]}:")
        chosen[place] = choose(
            cell.splits, cell.training, choice.seeds, choice.sweep, choice.points, lambda jobs, what: None
        )
        trials[place] = plan(cell.splits, cell.training, choice.seeds, choice.folder, chosen[place])
    train([trial.job for some in trials.values() for trial in some], what="nested")
    datasets: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in trials):
        found = {
            model.name: plain[name][model.name]
            if model.is_linear
            else [read_run(trial) for trial in trials[name, model.name]]
            for model in suite.models.values()
            if model.is_linear or model.name in suite.nested_models
        }
        cells = {
            choice.cell.model.name: choice.cell for choice in choices if choice.cell.dataset.name == name
        }
        counts = {
            model: dict(Counter(point_words(of["point"]) for _, of in chosen[name, model]).most_common())
            for model in cells
        }
        datasets[name] = {**summarize(cells, found), "chosen": counts}
    return {
        "seeds": list(suite.nested_seeds),
        "settings": {
            name: [point_words(point) for point in suite.points[name]] for name in suite.nested_models
        },
        "datasets": datasets,
        "mean": over_datasets(datasets, suite.headline),
    }


def point_words(point: Point) -> str:
    """Settings of a grid in words."""
    return " ".join(f"{key}={value}" for key, value in point.items()) or "its own settings"


# --- Report --------------------------------------------------------------------------------------


def write_report(results: Mapping[str, Any], home: Home) -> None:
    """Print the report and write it, as JSON, Markdown and HTML, into the folder."""
    record, page, html = (home.folder / name for name in (RESULTS_FILE, MARKDOWN_FILE, HTML_FILE))
    write_json(record, results)
    markdown = render_markdown(results)
    write_atomically(page, markdown)
    write_atomically(html, render_html(results))
    print(f"\n{markdown}\nalso in {', '.join(home.send([record, page, html]))}")
