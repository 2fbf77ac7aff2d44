"""What a bad night brings, brought for real: after it the run goes on to the very weights it would have had.

Two ranks, dropout on, a small corpus; under torchrun, where that has to end or to restart ranks. "As if
nothing had happened" means equal to the bit, where matrix products repeat.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ranks_support import run_ranks
from support import REPO, arguments, assert_same_run, metrics, run, status

from awtpn.model import files
from awtpn.run import checkpoint

SETTINGS: dict[str, Any] = {
    "model.shared_dim": 16,
    "model.dropout": 0.2,
    "loss.negative_group": 4,
    "optim.lr": 3e-3,
    "optim.warmup_steps": 2,
    "train.epochs": 3,
    "train.global_batch_size": 16,
    "train.pictures": "never",
    "train.log_every": 2,
    "train.checkpoint_every": 3,
}
Night = Callable[..., tuple[str, Path]]
TorchrunNight = Callable[..., tuple[int, str, Path]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("survival")


@pytest.fixture(scope="module")
def night(corpus: str, root: Path) -> Night:
    """Train with a fault: (output, run folder). The same `name` goes on in the same folder.

    All ranks have to succeed, or to end with an error where it `fails`.
    """

    def night(
        fault: str, name: str, fails: bool = False, run_dir: Path | None = None, **settings: Any
    ) -> tuple[str, Path]:
        folder, logs = run_dir or root / name, root / f"{name}.logs"
        whole = SETTINGS | {"data.train": corpus, "run.dir": folder} | settings
        job: dict[str, Any] = {"train": arguments(whole), "fault": fault}
        job["environment"] = {"MARK": str(root / f"{name}.mark")}
        run_ranks([job | ({"fails": True} if fails else {})], 2, logs)
        return "".join(log.read_text() for log in sorted(logs.iterdir())), folder

    return night


@pytest.fixture(scope="module")
def torchrun_night(corpus: str, root: Path) -> TorchrunNight:
    """The same under torchrun: (exit code, output, run folder)."""

    def night(fault: str, name: str, restarts: int = 0, **settings: Any) -> tuple[int, str, Path]:
        folder = root / name
        launcher = ["torchrun", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}"]
        script = str(REPO / "tests" / "distributed" / "faulty_train.py")
        whole = SETTINGS | {"data.train": corpus, "run.dir": folder} | settings
        command = [*launcher, script, fault, *arguments(whole)]
        code, output = run(command, root / f"{name}.log", MARK=str(root / f"{name}.mark"))
        return code, output, folder

    return night


@pytest.fixture(scope="module")
def undisturbed(night: Night) -> Path:
    return night("none", "undisturbed")[1]


@pytest.mark.parametrize("fault", ["kill", "kill while saving"])
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(
    torchrun_night: TorchrunNight, night: Night, undisturbed: Path, fault: str
) -> None:
    code, _, folder = torchrun_night(fault, fault)
    assert code != 0
    latest = checkpoint.find_latest(folder / "checkpoints")
    assert latest is not None
    assert files.find_corruption(latest) is None
    night(fault, fault)
    assert_same_run(folder, undisturbed)
    assert not list((folder / "checkpoints").glob(".step-*")), "half a checkpoint is left behind"


def test_torchrun_restarts_go_on_by_themselves(torchrun_night: TorchrunNight, undisturbed: Path) -> None:
    code, output, folder = torchrun_night("kill", "restarted", restarts=1)
    assert code == 0, output
    assert "resumed at step" in output
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("fault", ["SIGUSR1 in training", "SIGUSR1 in validation", "SIGTERM in saving"])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    night: Night, undisturbed: Path, fault: str
) -> None:
    _, folder = night(fault, fault)
    assert status(folder)["status"] == "preempted"
    assert len(metrics(folder)) < len(metrics(undisturbed))
    night(fault, fault)
    assert status(folder)["status"] == "done"
    assert_same_run(folder, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_spoils_no_checkpoint_that_was_there(
    night: Night, undisturbed: Path, small_disk: Path
) -> None:
    output, folder = night("fill", "full disk", fails=True, run_dir=small_disk / "run")
    assert "could not be written" in output
    assert "No space left" in output
    latest = checkpoint.find_latest(folder / "checkpoints")
    assert latest is not None
    assert files.find_corruption(latest) is None
    (folder / "filler").unlink()
    night("none", "full disk", run_dir=folder)
    assert_same_run(folder, undisturbed)


def test_a_nan_on_one_rank_is_left_out_on_all_and_named(night: Night) -> None:
    output, folder = night("nan", "nan")
    poisoned = re.findall(r"poisoned (\S+)", output)[0]
    assert (
        f"step 7 skipped: loss nan or its gradient is not finite, because of: {poisoned} (rank 1)" in output
    )
    lines = {line["step"]: line for line in metrics(folder)}
    assert [s for s, line in lines.items() if line["skipped"]] == [7]
    assert lines[7]["loss"] is None
    assert lines[8]["loss"] is not None


def test_more_nans_than_the_budget_stop_the_run(night: Night) -> None:
    output, folder = night("nan", "nan, no budget", fails=True, **{"train.skip_budget": 0})
    assert re.search(r"more than train.skip_budget 0; the last, step 7, because of: \S+ \(rank 1\)", output)
    assert status(folder)["status"] == "failed"


def test_an_altered_prototype_table_is_found_and_its_rank_named(night: Night) -> None:
    output, _ = night("alter", "altered", fails=True, **{"prototypes.check_every": 4})
    assert re.search(r"after step 8 ranks hold different weights: .*tpn.prototypes on rank 1", output)


def test_an_altered_prototype_table_is_healed_where_asked(night: Night) -> None:
    healing = {"prototypes.check_every": 1, "prototypes.on_drift": "heal"}
    output, _ = night("alter", "healed", **healing)
    assert len(re.findall(r"weights copied from rank 0", output)) == 1, "one healing is enough"


def test_a_rank_that_hangs_ends_the_run_with_all_stacks(torchrun_night: TorchrunNight) -> None:
    code, output, folder = torchrun_night("hang", "hung", **{"train.timeout": 15})
    assert code != 0
    stacks = {path.name: path.read_text() for path in (folder / "stacks").iterdir()}
    assert sorted(stacks) == ["rank-0.txt", "rank-1.txt"], output
    assert "in hang" in stacks["rank-1.txt"]
    assert "in reduce_batch_counts" in stacks["rank-0.txt"]
    assert status(folder)["status"] == "failed"


def test_ranks_of_different_settings_are_refused(night: Night) -> None:
    output, _ = night("other settings", "other settings", fails=True)
    assert "ranks [1] were started with another configuration than rank 0" in output
