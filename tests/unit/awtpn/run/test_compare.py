"""Two runs side by side, on made-up run folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from awtpn import cli
from awtpn.model.files import CARD_FILE, WEIGHTS_FILE
from awtpn.run.compare import compare_runs, format_comparison

LOSSES = [4.0, 3.0, 2.0]
WEIGHTS = {"classifier.weight": torch.ones(2, 3), "classifier.bias": torch.zeros(2)}


def make_run(
    folder: Path,
    losses: list[float | None] | list[float] = LOSSES,
    other_data_from: int | None = None,
    first_step: int = 1,
    weights: dict[str, Tensor] | None = WEIGHTS,
) -> Path:
    """A run folder with what a comparison reads."""
    folder.mkdir()
    lines = []
    for step, loss in enumerate(losses, start=first_step):
        seen = "other" if other_data_from and step >= other_data_from else "same"
        lines.append({"step": step, "loss": loss, "fingerprint": f"{seen} {step}"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if weights is not None:
        checkpoint = folder / "checkpoints" / f"step-{lines[-1]['step']:08d}"
        checkpoint.mkdir(parents=True)
        save_file(weights, checkpoint / WEIGHTS_FILE)
        (folder / "checkpoints" / "latest").symlink_to(checkpoint.name)
    return folder


def compare_by_command(a: Path, b: Path, *options: str) -> int:
    """The exit code of `awtpn compare`."""
    try:
        cli.main(["compare", str(a), str(b), *options])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_equal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    comparison = compare_runs(a, b)
    assert comparison.steps == 3
    assert comparison.same_data
    assert comparison.largest_loss_gap == 0
    assert comparison.largest_weight_gap == 0
    assert comparison.weights_step == (3, 3)
    text = format_comparison(comparison)
    assert "3 steps in common" in text
    assert "the same data at every step" in text
    assert compare_by_command(a, b) == 0
    assert "\nequal within tolerance" in capsys.readouterr().out


def test_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", other_data_from=2)
    comparison = compare_runs(a, b)
    assert not comparison.same_data
    assert comparison.first_other_data == 2
    assert "other data from step 2 on" in format_comparison(comparison)
    assert compare_by_command(a, b) == 1
    assert "NOT equal within tolerance" in capsys.readouterr().out


def test_a_gap_between_losses(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", [4.0, 3.0003, 2.0001])
    comparison = compare_runs(a, b)
    assert comparison.same_data
    assert comparison.largest_loss_gap == pytest.approx(1e-4, rel=1e-3)
    assert comparison.at_step == 2
    assert "(step 2)" in format_comparison(comparison)
    assert compare_by_command(a, b) == 1
    assert compare_by_command(a, b, "--loss_tolerance", "1e-3") == 0


def test_a_gap_between_weights(tmp_path: Path) -> None:
    moved = WEIGHTS | {"classifier.bias": torch.tensor([0.0, 0.25])}
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", weights=moved)
    comparison = compare_runs(a, b)
    assert comparison.largest_weight_gap == 0.25
    assert comparison.in_tensor == "classifier.bias"
    assert "at most 0.25 apart (classifier.bias; step 3)" in format_comparison(comparison)
    assert compare_by_command(a, b) == 1
    assert compare_by_command(a, b, "--weight_tolerance", "0.5") == 0


@pytest.mark.parametrize(("theirs", "gap"), [(None, 0.0), (3.0, math.inf)])
def test_a_step_left_out(tmp_path: Path, theirs: float | None, gap: float) -> None:
    """Its loss is null: equal where both runs left it out, and as far apart as can be where one did."""
    a, b = make_run(tmp_path / "a", [4.0, None, 2.0]), make_run(tmp_path / "b", [4.0, theirs, 2.0])
    assert compare_runs(a, b).largest_loss_gap == gap
    assert compare_by_command(a, b) == (0 if gap == 0 else 1)


def test_weights_that_are_not_numbers_are_no_match(tmp_path: Path) -> None:
    broken = WEIGHTS | {"classifier.bias": torch.tensor([0.0, math.nan])}
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", weights=broken)
    assert compare_runs(a, b).largest_weight_gap == math.inf
    assert compare_by_command(a, b) == 1


def test_only_common_steps_count(tmp_path: Path) -> None:
    """A run stopped early has the steps that it has; weights of different steps are then told apart."""
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", LOSSES[:2])
    comparison = compare_runs(a, b)
    assert comparison.steps == 2
    assert comparison.largest_loss_gap == 0
    assert comparison.weights_step == (3, 2)


def test_no_checkpoint_is_no_reason(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", weights=None)
    comparison = compare_runs(a, b)
    assert comparison.weights_step is None
    assert "no checkpoints to compare" in format_comparison(comparison)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"first_step": 10}, "have no step in common"),
        ({"weights": {"classifier.bias": torch.zeros(2)}}, "models of different shapes"),
        ({"weights": WEIGHTS | {"classifier.bias": torch.zeros(5)}}, "models of different shapes"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path: Path, other: dict[str, Any], reason: str) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", **other)
    with pytest.raises(ValueError, match=reason):
        compare_runs(a, b)


def add_results(run: Path, task: dict[str, Any] | None, test: dict[str, Any]) -> Path:
    """Give a run a card of this task, and results of test utterances."""
    card = {
        "format": "awtpn",
        "format_version": 2,
        "model": {},
        "feature_dims": {"audio": 3},
        "classes": [] if task else ["calm", "sad"],
        "learnable_prototypes": True,
        **({"task": task} if task else {}),
    }
    (run / "checkpoints" / "latest" / CARD_FILE).write_text(json.dumps(card))
    (run / "results.json").write_text(json.dumps({"test": test}))
    return run


def test_the_metrics_of_the_task_are_printed(tmp_path: Path) -> None:
    task = {"type": "regression", "names": ["valence"], "ranges": [[-3, 3]], "levels": 7}
    a = add_results(make_run(tmp_path / "a"), task, {"task": "regression", "MAE": 0.5, "CCC": None})
    b = add_results(make_run(tmp_path / "b"), task, {"task": "regression", "MAE": 0.25, "CCC": 0.5})
    comparison = compare_runs(a, b)
    assert comparison.test_metrics == {"MAE": (0.5, 0.25), "CCC": (None, 0.5)}
    assert format_comparison(comparison).endswith(
        "\ntest          MAE 0.5000 and 0.2500\n              CCC undefined and 0.5000"
    )
    assert compare_by_command(a, b) == 0, "losses and weights decide"
    classes = add_results(make_run(tmp_path / "c"), None, {"w-ACC": 0.75, "w-F1": 0.5})
    assert compare_runs(classes, classes).test_metrics == {"w-ACC": (0.75, 0.75), "w-F1": (0.5, 0.5)}
    assert compare_runs(classes, make_run(tmp_path / "d")).test_metrics == {}


def test_runs_of_different_targets_are_refused(tmp_path: Path) -> None:
    task = {"type": "regression", "names": ["valence"], "ranges": [[-3, 3]], "levels": 7}
    a = add_results(make_run(tmp_path / "a"), task, {})
    b = add_results(make_run(tmp_path / "b"), None, {})
    c = add_results(make_run(tmp_path / "c"), {"type": "multilabel", "names": ["calm", "sad"]}, {})
    d = add_results(make_run(tmp_path / "d"), {**task, "names": ["arousal"]}, {})
    with pytest.raises(
        ValueError, match=r"values of valence \(regression\), and \S+ 2 classes calm, sad \(clas"
    ):
        compare_runs(a, b)
    with pytest.raises(
        ValueError, match=r"2 classes calm, sad .* 2 labels calm, sad \(multilabel\): only runs"
    ):
        compare_runs(b, c)
    with pytest.raises(
        ValueError, match=r"values of valence .* values of arousal .*: only runs with the same"
    ):
        compare_runs(a, d)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run: it has no metrics\.jsonl"):
        compare_runs(make_run(tmp_path / "a"), tmp_path)


def test_a_line_that_was_cut_off_ends_the_run(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    metrics = b / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 4, "lo')
    assert compare_runs(a, b).steps == 3
    metrics.write_text(metrics.read_text() + '\n{"step": 5}\n')
    with pytest.raises(ValueError, match=rf"^{metrics}, line 4: not JSON \(Unterminated string"):
        compare_runs(a, b)
