"""Whole runs of one process whose checkpoints are written in the background."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import LIMIT, arguments, assert_same_run, metrics, status
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awtpn.model.files import OPTIMIZER_FILE, find_corruption
from awtpn.run import checkpoint
from awtpn.run.position import load_position
from awtpn.training import saving, trainer
from awtpn.training.saving import CheckpointNotWritten

EVERY, STEPS = 3, 14
SETTINGS: dict[str, Any] = {
    "model.shared_dim": 8,
    "model.dropout": 0.2,
    "train.epochs": 100,
    "train.max_steps": STEPS,
    "train.global_batch_size": 16,
    "train.validate_every": 100,
    "train.checkpoint_every": EVERY,
    "train.log_every": 1,
}


@pytest.fixture
def written_in_the_step(corpus: str, tmp_path: Path) -> Path:
    folder = tmp_path / "in the step"
    settings = SETTINGS | {"data.train": corpus, "run.dir": folder, "train.async_checkpoint": False}
    trainer.main(arguments(settings))
    return folder


def at_files_of(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Call `action` while the checkpoint of this step is being written."""
    whole_print = checkpoint._fingerprint

    def fingerprint(path: Path) -> Any:
        if path.name == OPTIMIZER_FILE and f"{step:08d}" in path.parent.name:
            action()
        return whole_print(path)

    monkeypatch.setattr(checkpoint, "_fingerprint", fingerprint)


def test_steps_go_on_while_one_checkpoint_is_written(
    corpus: str, tmp_path: Path, written_in_the_step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "run", []
    writing, most, whole_write = 0, 0, saving.write

    def write(*args: Any) -> str | None:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        failure = whole_write(*args)
        writing -= 1
        return failure

    def wait_for_another_step() -> None:
        end = time.monotonic() + LIMIT
        while len(metrics(folder)) < EVERY + 1 and time.monotonic() < end:
            time.sleep(0.01)
        seen.append(len(metrics(folder)))

    monkeypatch.setattr(saving, "write", write)
    at_files_of(monkeypatch, EVERY, wait_for_another_step)
    trainer.main(arguments(SETTINGS | {"data.train": corpus, "run.dir": folder}))
    assert seen[0] >= EVERY + 1, "training waited for the checkpoint"
    assert most == 1
    assert_same_run(folder, written_in_the_step)
    for run_dir in (folder, written_in_the_step):
        board = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        held = board.Scalars("system/checkpoint_s")
        assert {*range(EVERY, STEPS, EVERY), STEPS} <= {point.step for point in held}
        assert all(0 < point.value < LIMIT for point in held)


def test_a_signal_waits_for_the_checkpoint(
    corpus: str, tmp_path: Path, written_in_the_step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signal_and_wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)

    folder = tmp_path / "run"
    settings = arguments(SETTINGS | {"data.train": corpus, "run.dir": folder})
    with monkeypatch.context() as patch:
        at_files_of(patch, 2 * EVERY, signal_and_wait)
        assert trainer.main(settings) == {}
    assert status(folder)["status"] == "preempted"
    latest = checkpoint.find_latest(folder / "checkpoints")
    assert latest is not None
    assert find_corruption(latest) is None
    assert load_position(latest).step == status(folder)["step"] == len(metrics(folder))
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint writer"]
    trainer.main(settings)
    assert_same_run(folder, written_in_the_step)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    corpus: str, tmp_path: Path, written_in_the_step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "run"
    settings = arguments(SETTINGS | {"data.train": corpus, "run.dir": folder})
    with monkeypatch.context() as patch:
        at_files_of(patch, 2 * EVERY, fail)
        with pytest.raises(
            CheckpointNotWritten, match=r"step 6 could not be written: .*No space left.*00004 is whole"
        ):
            trainer.main(settings)
    said = status(folder)
    assert said["status"] == "failed"
    assert "No space left" in said["error"]
    assert len(metrics(folder)) < STEPS, "the next step or save tells of it"
    trainer.main(settings)
    assert_same_run(folder, written_in_the_step)


def test_a_failure_at_the_end_is_not_lost(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    at_files_of(monkeypatch, STEPS, fail)
    with pytest.raises(CheckpointNotWritten, match="step 14 could not be written"):
        trainer.main(arguments(SETTINGS | {"data.train": corpus, "run.dir": tmp_path / "run"}))
    assert status(tmp_path / "run")["status"] == "failed"
