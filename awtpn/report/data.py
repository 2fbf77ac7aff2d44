"""Reads the run folders of a report, and checks that they repeat one experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from awtpn.config.schema import flatten
from awtpn.metrics.summary import HEADLINES, task_type_of
from awtpn.model.files import CARD_FILE, model_folder
from awtpn.model.settings import NEW_KEYS
from awtpn.report.repetitions import Report
from awtpn.report.run_record import RunRecord
from awtpn.run.record import CONFIG_FILE, STATUS_FILE, read_settings, read_status
from awtpn.run.results import RESULTS_FILE, read_results
from shards.safe_io.bounded_json import read_json

# What may differ between repetitions of one experiment: seeds, and which utterances train and test.
REPETITION_KEYS = ("run.", "data.cache", "data.streams", "data.select.")
# What each task tells apart.
WHAT = {"classification": "classes", "regression": "dimensions", "multilabel": "labels"}


def gather(paths: Sequence[Path]) -> Report:
    """Read runs, or folders of runs (as `awtpn cross-validate` makes them).

    Raises:
        ValueError: a folder is no run, a run is not done, or the runs are not of one experiment.
    """
    runs = [read_run(folder) for path in paths for folder in run_folders(path)]
    summary: dict[str, Any] = {}
    if len(paths) == 1 and (file := paths[0] / "cross_validation.json").is_file():
        summary = read_json(file)
    check_one_experiment(runs, {key for choice in summary.get("chosen", []) for key in choice["point"]})
    return Report(runs, summary)


def run_folders(path: Path) -> Iterator[Path]:
    """The folder itself if it is a run, otherwise the runs directly within it, in order of their names.

    Raises:
        ValueError: it is not a run and contains none.
    """
    if (path / CONFIG_FILE).is_file():
        yield path
        return
    found = sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
    if not found:
        raise ValueError(
            f"{path} is not a run and contains none: there is no {CONFIG_FILE} in it or in a folder within it"
        )
    yield from found


def read_run(folder: Path) -> RunRecord:
    """Read a finished run.

    Raises:
        ValueError: it is not done, or a file is missing or damaged; says which and what to do.
    """
    _check_files(folder, STATUS_FILE)
    status = read_status(folder)
    if status["status"] != "done":
        raise ValueError(
            f"{folder} is not done but {status['status']!r}: to continue it, repeat the command that began it"
        )
    _check_files(folder, RESULTS_FILE, CONFIG_FILE)
    stored = read_results(folder, model_folder(folder))
    if stored.results is None:
        raise ValueError(f"{stored.note}: to evaluate the run again, repeat the command that began it")
    results = stored.results
    if not {"test", "val"} & results.keys():
        raise ValueError(f"{folder} had neither validation nor test utterances: there is nothing to report")
    settings = read_settings(folder) or {}
    if missing := [section for section in ("run", "data", "loss") if section not in settings]:
        raise ValueError(
            f"{folder / CONFIG_FILE} is not the record of a run: it has no settings of {missing[0]}"
        )
    for role in {"test", "val"} & results.keys():
        if task_type_of(results[role]) not in HEADLINES:
            raise ValueError(
                f"{folder / RESULTS_FILE}: its task is none of {', '.join(HEADLINES)}; a newer version may "
                "have written it"
            )
    card = folder / "checkpoints" / "best" / CARD_FILE
    return RunRecord(
        dir=folder,
        config=settings,
        status=status,
        results=results,
        model=read_json(card) if card.is_file() else {},
    )


def _check_files(folder: Path, *names: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a finished run: it has no {name}")


def check_one_experiment(runs: Sequence[RunRecord], swept: set[str]) -> None:
    """Refuse to average runs that differ in more than their seed and utterances.

    Raises:
        ValueError: names the settings that differ, or a run that is given twice.
    """
    varied = {NEW_KEYS.get(key, key) for key in swept}
    within = (*REPETITION_KEYS, *(f"{key}." for key in varied))
    first = _settings(runs[0])
    for run in runs[1:]:
        if run.task_type != runs[0].task_type:
            raise ValueError(
                f"{run.dir} is a {run.task_type} and {runs[0].dir} a {runs[0].task_type}: "
                "a report is of one task; write a report of each"
            )
        own = _settings(run)
        keys = [k for k in {**first, **own} if own.get(k) != first.get(k)]
        if differing := [k for k in keys if not k.startswith(within) and k not in varied]:
            raise ValueError(
                f"{run.dir} and {runs[0].dir} are not repetitions of one experiment: they differ in "
                f"{', '.join(differing)}; write a report of each"
            )
        if (run.role, run.names) != (runs[0].role, runs[0].names):
            raise ValueError(
                f"{run.dir} and {runs[0].dir} were not tested on the same split and {WHAT[run.task_type]}; "
                "write a report of each"
            )
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        if other := seen.get((run.fold, run.seed)):
            raise ValueError(f"{run.dir} repeats {other}: the same seed and utterances; leave one out")
        seen[run.fold, run.seed] = run.dir


def _settings(run: RunRecord) -> dict[str, Any]:
    """A run's settings by dotted key; the order of its modalities is one of them."""
    return {"model.modalities": list(run.config.get("model", {}).get("modalities", ()))} | flatten(run.config)
