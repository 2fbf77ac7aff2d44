"""Every launcher starts the ranks it was asked for, and all of them see the same data in the same order."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest
from support import LIMIT, arguments, free_port, launched, metrics, run, status

TRAIN = "launch/train.py"
MODULE = "awtpn.cli train"
ACCELERATE = ["accelerate", "launch"]
CONFIGS = "configs/accelerate"

# Launch command -> the engine that it means. On machines with GPUs ddp.yaml takes the place of cpu.yaml. A
# command that ends with a launcher's option for modules starts the module.
LAUNCHERS: dict[str, tuple[list[str], str]] = {
    "accelerate --cpu": ([*ACCELERATE, "--cpu", "--num_processes", "2"], "ddp"),
    "accelerate cpu.yaml": ([*ACCELERATE, "--config_file", f"{CONFIGS}/cpu.yaml"], "ddp"),
    "torchrun -m": (["torchrun", "--standalone", "--nproc-per-node", "2", "-m"], "ddp"),
    "accelerate --cpu -m": ([*ACCELERATE, "--cpu", "--num_processes", "2", "-m"], "ddp"),
    "deepspeed --module": (["deepspeed", "--num_gpus", "2", "--master_port", "PORT", "--module"], "zero2"),
    "deepspeed": (["deepspeed", "--num_gpus", "2", "--master_port", "PORT"], "zero2"),
    **{
        f"accelerate zero{stage}.yaml": (
            [*ACCELERATE, "--config_file", f"{CONFIGS}/zero{stage}.yaml", "--main_process_port", "PORT"],
            f"zero{stage}",
        )
        for stage in (1, 2, 3)
    },
}
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}  # machines that are this one find each other there
STEPS = 3
SETTINGS = {"train.max_steps": STEPS, "train.log_every": 1, "model.dropout": 0.0}

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def alone(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same few steps by plain `python`."""
    folder = tmp_path_factory.mktemp("alone")
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": folder / "run"})
    code, log = run([sys.executable, TRAIN, *settings], folder / "log")
    assert code == 0, log
    assert "1 rank x" in log
    assert "engine none" in log
    return folder / "run"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_starts_two_ranks_that_see_the_same_data(
    name: str, alone: Path, demo_cache: Path, tmp_path: Path
) -> None:
    launcher, engine = LAUNCHERS[name]
    launcher = [str(free_port()) if word == "PORT" else word for word in launcher]
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": tmp_path / "run"})
    program = MODULE.split() if launcher[-1] in ("-m", "--module") else [TRAIN]
    code, log = run([*launcher, *program, *settings], tmp_path / "log")
    assert code == 0, log
    assert status(tmp_path / "run")["status"] == "done"
    # Not two runs of one rank each, which is what several of these do when left to themselves.
    assert log.count("2 ranks x micro-batch 16 x accumulation 1 = 32 utterances a step") == 1, log
    assert f"engine {engine} on cpu" in log
    for line in ("step 1/3 (epoch 1): loss ", "epoch 1/1: train loss "):
        assert log.count(line) == 1, "one rank tells how far it is"
    ours, theirs = metrics(tmp_path / "run"), metrics(alone)
    assert [x["step"] for x in ours] == [1, 2, 3]
    assert [x["fingerprint"] for x in ours] == [x["fingerprint"] for x in theirs]
    assert [x["loss"] for x in ours] == pytest.approx([x["loss"] for x in theirs], rel=1e-5)


def test_machines_without_gpus_wait_for_each_other(alone: Path, demo_cache: Path, tmp_path: Path) -> None:
    """Accelerate itself starts a process on each, which would train alone: two runs in one folder."""
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": tmp_path / "run"})
    port = free_port()
    meet = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    machine = [*ACCELERATE, "--cpu", "--num_processes", "2", "--num_machines", "2", *meet, "--machine_rank"]
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    with launched([*machine, "0", TRAIN, *settings], logs[0], **LOOPBACK) as first:
        while not listens(port):
            assert first.poll() is None, logs[0].read_text()
            time.sleep(0.05)
        assert not (tmp_path / "run").exists(), "the first machine waits for the second"
        with launched([*machine, "1", TRAIN, *settings], logs[1], **LOOPBACK) as second:
            codes = first.wait(LIMIT), second.wait(LIMIT)
    assert codes == (0, 0), logs[0].read_text() + logs[1].read_text()
    assert "2 ranks x micro-batch 16" in logs[0].read_text()
    assert [x["fingerprint"] for x in metrics(tmp_path / "run")] == [x["fingerprint"] for x in metrics(alone)]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_processes_that_accelerate_would_not_start_are_refused(demo_cache: Path, tmp_path: Path) -> None:
    """Without --cpu, `accelerate launch --num_processes 2` starts one process on a CPU, silently."""
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": tmp_path / "run"})
    code, log = run([*ACCELERATE, "--num_processes", "2", TRAIN, *settings], tmp_path / "log")
    assert code != 0
    assert "says 2 ranks, but the launcher's environment says 1" in log
    assert "--cpu" in log
    assert not (tmp_path / "run").exists(), "refused before anything starts"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.global_batch_size": 31}, "31 does not divide over 2 ranks"),
        ({"train.batch": 31}, "train.batch"),
    ],
    ids=["layout", "unknown key"],
)
def test_wrong_settings_are_refused_before_anything_starts(
    settings: dict[str, int], message: str, tmp_path: Path
) -> None:
    words = arguments(settings | {"run.dir": tmp_path / "run", "data.cache_dir": tmp_path / "cache"})
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    code, log = run([*launcher, TRAIN, *words], tmp_path / "log")
    assert code != 0
    assert message in log
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]
