"""What a training prints: lines that a batch log can hold, and a bar on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import arguments, metrics, poison, terminal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awtpn.learning.settings import TERMS
from awtpn.training import trainer

SETTINGS: dict[str, Any] = {
    "model.shared_dim": 16,
    "loss.negative_group": 4,
    "train.epochs": 3,
    "train.global_batch_size": 16,
    "train.log_every": 2,
    "train.pictures": "never",
}
SIZES = [16, 16, 16, 4]  # utterances of an epoch's steps
LOSSES = r"loss \d+\.\d{4} \(" + " ".join(rf"{term} \d+\.\d{{3}}" for term in TERMS) + r"\)"
VALIDATED = r"val cross-entropy \d\.\d{4}, w-F1 \d\.\d{4}, accuracy \(w-ACC\) \d\.\d{4}( \*)?"

TOOK = r"\S+( s)?"

Train = Callable[..., tuple[list[str], list[str]]]


@pytest.fixture
def train(corpus: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Train:
    """Train with both streams in files; returns the lines of steps and those of epochs."""

    def train(**settings: Any) -> tuple[list[str], list[str]]:
        trainer.main(arguments(SETTINGS | {"data.train": corpus, "run.dir": tmp_path / "run"} | settings))
        out, err = capfd.readouterr()
        assert "\r" not in out + err
        assert not re.search(r"^step \d+/", out, re.MULTILINE), "progress goes to standard error"
        found = re.findall(r"^step \d+/.*", err, re.MULTILINE), re.findall(r"^epoch .*", out, re.MULTILINE)
        assert found[0]
        return found

    return train


def test_a_log_has_lines_of_steps_and_of_epochs(train: Train, tmp_path: Path) -> None:
    [step, *_], epochs = train()
    assert re.fullmatch(rf"step 2/12 \(epoch 1\): {LOSSES}, lr \S+, [\d,.]+ utterances/s, \S+ left", step)
    assert len(epochs) == 3
    for number, line in enumerate(epochs, 1):
        assert re.fullmatch(rf"epoch {number}/3: train {LOSSES}, {VALIDATED}, {TOOK}", line), line
    assert " *, " in epochs[0], "the first is the best so far"

    # What is printed and drawn is the mean of the steps' losses, which are sums over all ranks.
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    for name in ("loss", *TERMS):
        steps = np.reshape([line[name] for line in metrics(tmp_path / "run")], (3, 4))
        means = np.average(steps, axis=1, weights=SIZES)
        drawn = [(event.step, event.value) for event in board.Scalars(f"epoch/{name}")]
        assert drawn == [(4 * (i + 1), pytest.approx(mean, rel=1e-5)) for i, mean in enumerate(means)]
        shown = [float(re.search(rf"\b{name} ([\d.]+)", line)[1]) for line in epochs]  # type: ignore[index]
        assert shown == pytest.approx(means, abs=1e-3)


def test_epochs_without_validation_have_a_line(train: Train) -> None:
    _, (first, second) = train(**{"train.epochs": 2, "train.validate_every": 2})
    assert re.fullmatch(rf"epoch 1/2: train {LOSSES}, {TOOK}", first), first
    assert re.fullmatch(rf"epoch 2/2: train {LOSSES}, {VALIDATED}, {TOOK}", second), second


def test_a_run_of_many_epochs_says_which_have_a_line(
    corpus: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {"data.train": corpus, "run.dir": tmp_path / "run", "train.epochs": 40, "train.max_steps": 158}
    trainer.main(arguments(SETTINGS | settings | {"train.validate_every": 25, "train.pictures": "never"}))
    out = capfd.readouterr().out
    assert "\n40 epochs: one in 2 has a line here, and those that validate\n" in out
    lines = re.findall(r"^epoch (\d+)/40: .*? (val )?", out, re.MULTILINE)
    assert [int(number) for number, _ in lines] == sorted([25, *range(2, 41, 2)])


def test_a_resumed_epoch_says_which_steps_its_losses_are_of(train: Train) -> None:
    _, (_, last) = train(**{"train.max_steps": 6})
    assert re.fullmatch(rf"epoch 2/2: train {LOSSES}, {VALIDATED}, {TOOK}", last), last
    [step, *_], (second, third) = train()
    assert step.startswith("step 8/12 (epoch 2): ")
    assert second.startswith("epoch 2/3: train loss ")
    assert " over its last 2 steps, val " in second
    assert re.fullmatch(rf"epoch 3/3: train {LOSSES}, {VALIDATED}, {TOOK}", third), third


def test_a_step_that_is_not_finite_leaves_the_epochs_losses_finite(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_step = trainer.train_step

    def step(run: trainer.Run, batch: Any, **kwargs: Any) -> Any:
        return whole_step(run, poison(batch) if run.position.step == 1 else batch, **kwargs)

    monkeypatch.setattr(trainer, "train_step", step)
    _, [epoch] = train(**{"train.epochs": 1})
    assert re.match(rf"epoch 1/1: train {LOSSES}, val ", epoch), epoch
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert losses[1] is None
    mean = np.average([x for x in losses if x], weights=[16, 16, 4])
    assert f"train loss {mean:.4f} " in epoch


def test_a_terminal_has_a_bar_and_no_lines_of_steps(
    corpus: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with terminal() as shown:
        trainer.main(arguments(SETTINGS | {"data.train": corpus, "run.dir": tmp_path / "run"}))
        screen = shown()
    assert "\rtrain: 100%|" in screen
    assert re.search(r"\| 12/12 \[.*, loss=\d\.\d{4}, utt_s=\d+\]", screen)
    assert "step 2/12" not in screen
    assert capfd.readouterr().out.count("train loss ") == 3, "a line per epoch stays"


@pytest.mark.parametrize(
    ("settings", "validated", "tags", "table"),
    [
        (
            {"train.best_by": "CCC"},
            r"val MAE \d\.\d{4}, Corr (-?\d\.\d{4}|undefined), CCC (-?\d\.\d{4}|undefined)",
            {"val/MAE", "val/scatter", "results/test_scatter", "val_ccc/fold"},
            "MAE ",
        ),
        (
            {"task.type": "multilabel", "train.best_by": "mAP"},
            r"val cross-entropy \d\.\d{4}, F1 \d\.\d{4}, WA \d\.\d{4}, mAP \d\.\d{4}",
            {"val/mAP", "val/labels", "results/test_labels", "val_f1/fold"},
            "WA, % ",
        ),
    ],
    ids=["values", "labels"],
)
def test_other_tasks_show_their_metrics(
    settings: dict[str, str],
    validated: str,
    tags: set[str],
    table: str,
    corpus: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A column of numbers, `fold`, as values from 0 to 3, and as a label that three of four have."""
    run = {"data.train": corpus, "data.target": "fold", "run.dir": tmp_path / "run"}
    trainer.main(arguments(SETTINGS | run | settings | {"train.epochs": 1, "train.pictures": "always"}))
    out = capfd.readouterr().out
    assert re.search(rf"^epoch 1/1: train {LOSSES}, {validated} \*, {TOOK}$", out, re.MULTILINE), out
    assert re.search(rf"^{table}", out, re.MULTILINE), "a table of the test split"
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert tags <= {*board.Tags()["scalars"], *board.Tags()["images"]}
