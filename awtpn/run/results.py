"""results.json: the metrics of a finished run, and the checkpoint they were measured on.

A finished run can be continued, and then its best weights may change. So the old results are moved aside when
the run continues, and a reader checks that results belong to the weights they are shown with.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awtpn.model import files
from awtpn.run import checkpoint
from awtpn.run.atomic_write import write_json
from awtpn.run.predictions import predictions_file
from shards.safe_io.bounded_json import read_json

RESULTS_FILE = "results.json"
REPORTS = ("report.html", "report.md")
RESULTS_EVENTS = ".results"  # how the name of a TensorBoard file ends that holds results and nothing else


@dataclass(frozen=True)
class StoredResults:
    """The content of a run's results.json, if it belongs to the given weights."""

    results: dict[str, Any] | None
    """None if there are none, or if they are of other weights."""
    note: str | None
    """One line: why they are left out, or that their weights are not recorded."""


def write_results(run_dir: Path, results: Mapping[str, Any]) -> None:
    """Write results.json. `results["checkpoint"]` identifies the weights (`model.files.identity`)."""
    write_json(run_dir / RESULTS_FILE, results)


def read_results(run_dir: Path, model: Path | None) -> StoredResults:
    """The results of a run, if they were measured on the weights in `model`.

    Args:
        run_dir: the run folder.
        model: the checkpoint folder that the results must belong to; None if the run has none, so that
            nothing can be compared.

    Raises:
        ValueError: results.json is not JSON.
    """
    file = run_dir / RESULTS_FILE
    if not file.is_file():
        return StoredResults(None, None)
    try:
        results = read_json(file)
        if not isinstance(results, dict):
            raise ValueError("it is not a JSON object")
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}; the training command writes it again") from None
    if model is None:
        return StoredResults(results, None)
    belongs = _belong_to(results, model)
    if belongs is False:
        return StoredResults(None, f"{file} was measured on {_measured_on(results)}, not on {model.name}")
    if belongs is None:
        note = f"{file} does not record which weights it was measured on; they are taken to be {model.name}'s"
        return StoredResults(results, note)
    return StoredResults(results, None)


def _belong_to(results: Mapping[str, Any], model: Path) -> bool | None:
    """Whether results were measured on the weights in `model`; None if that is not known."""
    record = results.get("checkpoint")
    if isinstance(record, dict) and (own := files.identity(model)) is not None:
        return bool(record.get("sha256") == own["sha256"])
    step = results.get("best_step")  # older results record the step alone
    if (
        isinstance(step, int)
        and model.name.startswith("step-")
        and model.name != checkpoint.folder_name(step)
    ):
        return False
    return None


def _measured_on(results: Mapping[str, Any]) -> str:
    record = results.get("checkpoint")
    step = record.get("step") if isinstance(record, dict) else results.get("best_step")
    return f"other weights (of step {step})"


def archive_results(run_dir: Path) -> Path | None:
    """Move the results of a run that continues, and all files that show them, into a folder of their own.

    Only the main rank calls it.

    Returns:
        The folder, or None if there were no results.
    """
    files = [
        run_dir / RESULTS_FILE,
        *(predictions_file(run_dir, role) for role in ("val", "test")),
        *(run_dir / name for name in REPORTS),
        # Else TensorBoard would still show them as the run's, and HParams would compare by them.
        *run_dir.glob(f"tensorboard/*{RESULTS_EVENTS}"),
    ]
    found = [file for file in files if file.is_file()]
    if not found:
        return None
    aside = run_dir / time.strftime("earlier-results-%Y%m%d-%H%M%S")
    aside.mkdir(exist_ok=True)
    for file in found:
        os.replace(file, aside / file.name)
    return aside
