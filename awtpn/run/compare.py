"""Compare two runs of one task: their data, the models that they computed, and their test metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from awtpn.metrics.summary import format_metric, headlines_of, shown
from awtpn.model.base import config_of_card
from awtpn.model.files import (
    WEIGHTS_FILE,
    model_folder,
    read_card,
    read_weights,
    step_folders,
)
from awtpn.model.task import Task, task_of_card
from awtpn.run.checkpoint import find_latest
from awtpn.run.results import read_results
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.printable import printable


@dataclass(frozen=True)
class Comparison:
    """The differences between two runs."""

    steps: int
    """The number of steps that both have."""
    first_other_data: int | None
    """The first step whose fingerprints differ; None where all agree."""
    largest_loss_gap: float
    """Largest relative difference between the losses of a step."""
    at_step: int
    weights_step: tuple[int, int] | None
    """Steps of the checkpoints compared; None where a run has none."""
    largest_weight_gap: float
    """Largest absolute difference of a weight."""
    in_tensor: str
    test_metrics: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    """The task's metrics of the test utterances of both runs; empty where a run has none."""

    @property
    def same_data(self) -> bool:
        return self.steps > 0 and self.first_other_data is None


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare metrics line by line, and the latest checkpoints of both tensor by tensor.

    Raises:
        ValueError: a folder is not a run, a line of its metrics cannot be read, or the runs have no step in
            common, learn different targets, or are of different networks.
    """
    lines = [_lines(run) for run in (a, b)]
    check_same_task(a, b)
    check_same_network(a, b)
    common = sorted(lines[0].keys() & lines[1].keys())
    if not common:
        raise ValueError(f"{a} and {b} have no step in common")
    other = [s for s in common if lines[0][s]["fingerprint"] != lines[1][s]["fingerprint"]]
    gaps = {s: _relative(lines[0][s]["loss"], lines[1][s]["loss"]) for s in common}
    worst = max(gaps, key=lambda s: gaps[s])
    weights_step, weight_gap, tensor = _compare_weights(a, b)
    return Comparison(
        len(common),
        other[0] if other else None,
        gaps[worst],
        worst,
        weights_step,
        weight_gap,
        tensor,
        _test_metrics(a, b),
    )


def format_comparison(c: Comparison) -> str:
    data = "the same data at every step" if c.same_data else f"other data from step {c.first_other_data} on"
    weights = "no checkpoints to compare"
    if c.weights_step:
        first, second = c.weights_step
        at = f"step {first}" if first == second else f"steps {first} and {second}"
        weights = f"at most {c.largest_weight_gap:.3g} apart ({printable(c.in_tensor)}; {at})"
    lines = [
        f"{c.steps} steps in common",
        f"fingerprints  {data}",
        f"losses        at most {c.largest_loss_gap:.3g} apart, relatively (step {c.at_step})",
        f"weights       {weights}",
    ]
    head = "test"
    for name, both in c.test_metrics.items():
        of_a, of_b = (format_metric(name, value) for value in both)
        lines.append(f"{head:<14}{shown(name)} {of_a} and {of_b}")
        head = ""
    return "\n".join(lines)


def check_same_task(a: Path, b: Path) -> None:
    """Refuse two runs that learn different targets: neither losses nor metrics of these can be compared.

    Raises:
        ValueError: names both targets.
    """
    first, second = _task(a), _task(b)
    if first is None or second is None:
        return
    if (first.type, first.names) != (second.type, second.names):
        raise ValueError(
            f"{a} learns {printable(_told(first))}, and {b} {printable(_told(second))}: only runs with the "
            "same task.type and data.target can be compared"
        )


def check_same_network(a: Path, b: Path) -> None:
    """Refuse runs of two networks: they have neither the same weights nor the same loss.

    Raises:
        ValueError: names both.
    """
    first, second = (model_folder(run) for run in (a, b))
    if first is None or second is None:
        return
    names = [config_of_card(read_card(folder)).name for folder in (first, second)]
    if names[0] != names[1]:
        raise ValueError(
            f"{a} is a run of model.name {names[0]}, and {b} of {names[1]}: only runs of one network can be "
            "compared step by step; awtpn compare-models compares the metrics of several"
        )


def _told(task: Task) -> str:
    names = "" if task.type == "regression" else f" {', '.join(task.names)}"
    return f"{task.described()}{names} ({task.type})"


def _task(run: Path) -> Task | None:
    """The task of a run's model; None where it has no checkpoint."""
    folder = model_folder(run)
    return None if folder is None else task_of_card(read_card(folder))


def _test_metrics(a: Path, b: Path) -> dict[str, tuple[float | None, float | None]]:
    """The metrics of a whole split that the test results of both runs have; none where one has no results."""
    stored = [read_results(run, model_folder(run)).results or {} for run in (a, b)]
    first, second = (results.get("test") or {} for results in stored)
    names = [name for name in headlines_of(first) if name in first and name in second]
    return {name: (first[name], second[name]) for name in names}


def _lines(run: Path) -> dict[int, dict]:
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{run} is no run: it has no metrics.jsonl")
    texts, lines = path.read_text().splitlines(), {}
    for number, text in enumerate(texts, start=1):
        try:
            line = parse_json(text, f"{path}, line {number}")
        except ValueError:
            if number == len(texts):  # the run was killed, or is writing this line now
                break
            raise
        lines[line["step"]] = line
    return lines


def _relative(x: float | None, y: float | None) -> float:
    if x is None or y is None:  # a skipped step: both must have skipped it
        return 0.0 if x is y else math.inf
    return abs(x - y) / max(abs(x), abs(y), 1e-12)


def _compare_weights(a: Path, b: Path) -> tuple[tuple[int, int] | None, float, str]:
    folders = _checkpoints_to_compare(a / "checkpoints", b / "checkpoints")
    if folders[0] is None or folders[1] is None:
        return None, 0.0, ""
    first, second = (read_weights(folder / WEIGHTS_FILE) for folder in folders if folder)
    if {name: t.shape for name, t in first.items()} != {name: t.shape for name, t in second.items()}:
        raise ValueError(f"{a} and {b} are models of different shapes")
    gaps = {name: _largest_gap(first[name], second[name]) for name in first}
    worst = max(gaps, key=lambda name: gaps[name])
    steps = tuple(int(folder.name.removeprefix("step-")) for folder in folders if folder)
    return (steps[0], steps[1]), gaps[worst], worst


def _checkpoints_to_compare(a: Path, b: Path) -> list[Path | None]:
    """The latest checkpoints; if one run went further, the newest of a step that both still have."""
    latest = [find_latest(root) for root in (a, b)]
    kept = [[folder.name for folder in step_folders(root)] for root in (a, b)]
    names = {folder.name for folder in latest if folder}
    if len(names) == 2 and (common := [name for name in kept[0] if name in kept[1]]):
        return [root / common[-1] for root in (a, b)]
    return latest


def _largest_gap(x: Tensor, y: Tensor) -> float:
    gap = float((x - y).abs().max())
    return math.inf if math.isnan(gap) else gap  # a maximum would ignore NaN
