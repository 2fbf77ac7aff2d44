"""Compare two runs: whether they saw the same data and computed the same model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from awtpn.model.files import WEIGHTS_FILE, read_weights, step_folders
from awtpn.run.checkpoint import find_latest
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

    @property
    def same_data(self) -> bool:
        return self.steps > 0 and self.first_other_data is None


def compare_runs(a: Path, b: Path) -> Comparison:
    """Compare metrics line by line, and the latest checkpoints of both tensor by tensor.

    Raises:
        ValueError: a folder is not a run, a line of its metrics cannot be read, or the runs have no step in
            common.
    """
    lines = [_lines(run) for run in (a, b)]
    common = sorted(lines[0].keys() & lines[1].keys())
    if not common:
        raise ValueError(f"{a} and {b} have no step in common")
    other = [s for s in common if lines[0][s]["fingerprint"] != lines[1][s]["fingerprint"]]
    gaps = {s: _relative(lines[0][s]["loss"], lines[1][s]["loss"]) for s in common}
    worst = max(gaps, key=lambda s: gaps[s])
    weights_step, weight_gap, tensor = _compare_weights(a, b)
    return Comparison(
        len(common), other[0] if other else None, gaps[worst], worst, weights_step, weight_gap, tensor
    )


def format_comparison(c: Comparison) -> str:
    data = "the same data at every step" if c.same_data else f"other data from step {c.first_other_data} on"
    weights = "no checkpoints to compare"
    if c.weights_step:
        first, second = c.weights_step
        at = f"step {first}" if first == second else f"steps {first} and {second}"
        weights = f"at most {c.largest_weight_gap:.3g} apart ({printable(c.in_tensor)}; {at})"
    return (
        f"{c.steps} steps in common\n"
        f"fingerprints  {data}\n"
        f"losses        at most {c.largest_loss_gap:.3g} apart, relatively (step {c.at_step})\n"
        f"weights       {weights}"
    )


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
