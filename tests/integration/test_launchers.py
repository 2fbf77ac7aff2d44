"""Every launcher starts the ranks it was asked for, and all of them see the same data in the same order."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import LIMIT, REPO, arguments, free_port, launched, metrics, run, status

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
        ({"train.batch": 31}, "error: there is no --train.batch"),
        ({"train.global_batch_size": 31}, "error: train.global_batch_size 31 does not divide over 2 ranks"),
        ({"data.train": "nowhere"}, "error: this run cannot work: ranks 0, 1 on "),
    ],
    ids=["unknown key", "layout", "ranks that have met"],
)
def test_wrong_settings_are_refused_before_anything_starts_in_one_line(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    words = arguments(settings | {"run.dir": tmp_path / "run", "data.cache_dir": tmp_path / "cache"})
    launcher = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    code, log = run([*launcher, TRAIN, *words], tmp_path / "log")
    assert code != 0
    assert [line[: len(message)] for line in log.splitlines() if line.startswith("error: ")] == [message], log
    # The last lines of all are torchrun's summary.
    assert log.splitlines()[-2].startswith(f"  traceback : {message}"), log
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]


# A package that must not be imported; it says so by an error, and by a file in case the error is caught.
FORBIDDEN = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
raise RuntimeError(f"{__name__} is imported where no ZeRO is used")
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_without_zero_neither_deepspeed_nor_a_compiler_is_needed(
    ranks: int, demo_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "no-compiler").mkdir()
    for name in ("deepspeed", "ninja"):
        (tmp_path / "fakes" / name).mkdir(parents=True)
        (tmp_path / "fakes" / name / "__init__.py").write_text(FORBIDDEN)
    settings = arguments({"train.max_steps": 1, "data.cache_dir": demo_cache, "run.dir": tmp_path / "run"})
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(ranks), TRAIN]
    command = [sys.executable, *(launcher if ranks > 1 else [TRAIN]), *settings]
    paths = {"PATH": tmp_path / "no-compiler", "PYTHONPATH": f"{tmp_path / 'fakes'}{os.pathsep}{REPO}"}
    code, log = run(command, tmp_path / "log", **{name: str(path) for name, path in paths.items()})
    assert code == 0, log
    assert f"engine {'ddp' if ranks > 1 else 'none'}" in log
    assert not list((tmp_path / "fakes").glob("*/imported"))


def test_where_zero_needs_a_compiler_one_line_says_which_package_to_install(tmp_path: Path) -> None:
    settings = arguments({"train.zero_stage": 2, "run.dir": tmp_path / "run", "data.cache_dir": tmp_path})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "no-compiler").mkdir()
    nothing = {"PATH": str(tmp_path / "no-compiler"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "operators")}
    code, log = run([*torchrun, TRAIN, *settings], tmp_path / "log", **nothing)
    assert code != 0
    [line] = [line for line in log.splitlines() if line.startswith("error: ")]
    assert "needs a C++ compiler, and there is no " in line
    assert ": install one (apt-get install g++, " in line
    assert "compiling" not in log
    assert not (tmp_path / "run").exists(), "refused before anything starts"
