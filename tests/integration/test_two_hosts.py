"""Two hosts with a network between them: every launcher trains the model that one process trains.

And when a host dies, the other one ends in bounded time, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ranks_support import run_ranks
from support import LIMIT, REPO, arguments, launched, metrics, run, status
from two_hosts import NAMES, Host, two_hosts, why_not

from awtpn.run.compare import compare_runs

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=f"no two hosts: {why_not()}"),
]

TRAIN = "launch/train.py"
NETWORK = {"GLOO_SOCKET_IFNAME": "eth0"}
SHORT, LONG = 8, 120

Hosts = tuple[Host, Host]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with two_hosts(tmp_path / "hosts") as both:
        yield both


@pytest.fixture(scope="module")
def settings(demo_cache: Path) -> dict[str, Any]:
    """The demo in float32 without dropout; of a schedule that knows no end."""
    return {
        "data.cache_dir": demo_cache,
        "model.dropout": 0.0,
        "model.shared_dim": 32,
        "optim.schedule": "constant",
        # Where rounding puts a time step on the other side of ReLU's kink, runs part by a share of a step.
        "optim.lr": 1e-4,
        "train.validate_every": 1000,
        "train.epochs": 1000,
        "train.log_every": 2,
    }


@pytest.fixture(scope="module")
def alone(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of one process that nothing disturbs, by their number of steps."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {steps: folder / f"{steps}-steps" for steps in (SHORT, LONG)}
    run_ranks(
        [
            {"train": arguments(settings | {"run.dir": path, "train.max_steps": steps})}
            for steps, path in runs.items()
        ],
        1,
        folder,
    )
    return runs


# --- Launchers -----------------------------------------------------------------------------------


def torchrun(_: int) -> list[str]:
    meet = ["--rdzv-backend=c10d", "--rdzv-endpoint=host-1:29400", "--rdzv-id=two-hosts"]
    return ["torchrun", "--nnodes=2", "--nproc-per-node=1", *meet]


def accelerate(number: int) -> list[str]:
    config = ["--config_file", "configs/accelerate/cpu.yaml", "--num_processes=2"]
    meet = ["--num_machines=2", f"--machine_rank={number}", "--main_process_ip=10.0.0.1"]
    return ["accelerate", "launch", *config, *meet, "--main_process_port=29500"]


def run_on_both(
    hosts: Hosts,
    command: Callable[[int], list[str]],
    rest: Sequence[object],
    folder: Path,
    on_second: dict[str, str] | None = None,
    **env: str,
) -> tuple[list[int], list[str]]:
    """Start `command` on each host, as a scheduler or two terminals would: exit codes and outputs."""
    logs = [folder / f"{host.name}.log" for host in hosts]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                launched(
                    host.command([*command(i), *rest]), log, **env, **((on_second or {}) if i == 1 else {})
                )
            )
            for i, (host, log) in enumerate(zip(hosts, logs, strict=True))
        ]
        codes = [wait(process, log) for process, log in zip(processes, logs, strict=True)]
    return codes, [log.read_text() for log in logs]


def wait(process: subprocess.Popen[Any], log: Path) -> int:
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"no end after {LIMIT:.0f} s\n{log.read_text()[-5000:]}") from None


def assert_equal_runs(one: Path, other: Path, steps: int) -> None:
    comparison = compare_runs(one, other)
    assert comparison.steps == steps
    assert comparison.same_data
    assert comparison.largest_loss_gap <= 1e-5
    assert comparison.largest_weight_gap <= 1e-4
    assert comparison.weights_step == (steps, steps)


@pytest.mark.parametrize("command", [torchrun, accelerate])
def test_launched_on_each_host(
    hosts: Hosts,
    command: Callable[[int], list[str]],
    settings: dict[str, Any],
    alone: dict[int, Path],
    tmp_path: Path,
) -> None:
    changes = {"run.dir": tmp_path / "run", "train.max_steps": SHORT}
    codes, logs = run_on_both(hosts, command, [TRAIN, *arguments(settings | changes)], tmp_path, **NETWORK)
    assert codes == [0, 0], "\n".join(logs)
    assert "engine ddp" in logs[0]
    assert "2 ranks x micro-batch 16" in logs[0]
    assert_equal_runs(tmp_path / "run", alone[SHORT], SHORT)


def test_deepspeed_with_a_hostfile(
    hosts: Hosts, settings: dict[str, Any], alone: dict[int, Path], deepspeed_operator: Path, tmp_path: Path
) -> None:
    """One command on one host; pdsh starts the other's ranks through ssh."""
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in NAMES))
    # ssh begins with an environment of its own; this file is how variables reach the ranks.
    home = tmp_path / "home"
    home.mkdir()
    # DeepSpeed looks for its operator, already compiled, with the ninja that is installed beside Python.
    (home / ".deepspeed_env").write_text(
        "GLOO_SOCKET_IFNAME=eth0\n"
        "DS_ACCELERATOR=cpu\n"
        "OMP_NUM_THREADS=1\n"
        f"TORCH_EXTENSIONS_DIR={deepspeed_operator}\n"
        f"PATH={Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin\n"
    )
    changes = {
        "deepspeed": "configs/deepspeed/zero2.json",
        "run.dir": tmp_path / "run",
        "train.max_steps": SHORT,
    }
    code, log = run(
        hosts[0].command(["deepspeed", "--hostfile", hostfile, TRAIN, *arguments(settings | changes)]),
        tmp_path / "log",
        HOME=str(home),
        TORCH_EXTENSIONS_DIR=str(deepspeed_operator),
        DS_ACCELERATOR="cpu",
    )
    assert code == 0, log
    assert "engine zero2" in log
    assert "2 ranks x micro-batch 16" in log
    assert_equal_runs(tmp_path / "run", alone[SHORT], SHORT)


# --- A host dies ---------------------------------------------------------------------------------


def test_a_dead_host_ends_the_run_which_then_goes_on_elsewhere(
    hosts: Hosts, settings: dict[str, Any], alone: dict[int, Path], tmp_path: Path
) -> None:
    """No packet tells the survivor; its watchdog does, and leaves the stacks that show the wait."""
    run_dir = tmp_path / "run"
    of_run = arguments(
        settings
        | {
            "run.dir": run_dir,
            "train.max_steps": LONG,
            "train.checkpoint_every": 10,
        }
    )
    impatient = ["--train.timeout", "30"]
    log, other = tmp_path / "host-1.log", tmp_path / "host-2.log"
    with (
        launched(hosts[0].command([*torchrun(0), TRAIN, *of_run, *impatient]), log, **NETWORK) as survivor,
        launched(hosts[1].command([*torchrun(1), TRAIN, *of_run, *impatient]), other, **NETWORK),
    ):
        while not (run_dir / "checkpoints" / "latest").exists():
            assert survivor.poll() is None, log.read_text()
            time.sleep(0.02)
        hosts[1].unplug()
        assert wait(survivor, log) != 0
    assert status(run_dir)["status"] == "failed"
    assert "no progress for 30 s" in status(run_dir)["error"]
    assert "host-1" in (run_dir / "stacks" / "rank-0.txt").read_text()
    done = metrics(run_dir)[-1]["step"]
    assert done < LONG, "the host died too late to be missed"

    code, text = run(hosts[0].command(["python", TRAIN, *of_run]), tmp_path / "resumed.log")
    assert code == 0, text
    assert ", resumed at step " in text
    assert status(run_dir)["status"] == "done"
    assert_equal_runs(run_dir, alone[LONG], LONG)


# --- The doctor ----------------------------------------------------------------------------------


def test_the_doctor_names_what_one_host_lacks_and_training_does_not_start(
    hosts: Hosts, corpus: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """A run folder on a disk of its own, a dataset that is not there, another version of a package."""
    shared, data = tmp_path / "shared", tmp_path / "data"
    shared.mkdir()
    data.symlink_to(corpus)
    hosts[1].hide(shared)
    hosts[1].hide(Path(corpus))
    other = tmp_path / "other" / "fsspec-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: fsspec\nVersion: 0.0.1\n")
    second = {"PYTHONPATH": f"{other.parent}:{REPO}"}
    expected = [
        "error: hosts have different versions of fsspec (host-1: ",
        "host-2: 0.0.1)",
        f"error: rank 1 on host-2 does not see rank 0's run folder at {shared / 'run'}",
        "fix: put run.dir on a file system that all hosts share",
        f"error: rank 1 on host-2 cannot read {data}: ",
    ]

    doctor = ["-m", "awtpn.cli", "doctor", "--run_dir", shared / "run", "--data", data]
    codes, logs = run_on_both(hosts, torchrun, doctor, tmp_path, on_second=second, **NETWORK)
    assert 0 not in codes
    assert "2 ranks on 2 hosts" in logs[0]
    for words in expected:
        assert words in logs[0]

    changes = {"data.train": data, "run.dir": shared / "run"}
    train = [TRAIN, *arguments(settings | changes)]
    codes, logs = run_on_both(hosts, torchrun, train, tmp_path, on_second=second, **NETWORK)
    assert 0 not in codes
    for words in ["error: this run cannot work", *(line.removeprefix("error: ") for line in expected)]:
        assert words in logs[0] + logs[1]
    assert not (shared / "run" / "metrics.jsonl").exists()


def test_the_doctor_explains_ranks_that_announce_an_address_of_no_use(hosts: Hosts, tmp_path: Path) -> None:
    codes, logs = run_on_both(hosts, torchrun, ["-m", "awtpn.cli", "doctor"], tmp_path)
    assert 0 not in codes
    for host, log in zip(hosts, logs, strict=True):
        if "the ranks cannot connect" in log:  # torchrun stops the other rank, perhaps before it says so too
            assert (
                f"the name {host.name} resolves to 127.0.1.1 on that host, which other hosts cannot reach"
                in log
            )
    assert "set GLOO_SOCKET_IFNAME" in logs[0] + logs[1]


def test_the_doctor_finds_nothing_where_nothing_is_wrong(hosts: Hosts, corpus: str, tmp_path: Path) -> None:
    doctor = ["-m", "awtpn.cli", "doctor", "--run_dir", tmp_path / "run", "--data", corpus]
    codes, logs = run_on_both(hosts, torchrun, doctor, tmp_path, **NETWORK)
    assert codes == [0, 0], "\n".join(logs)
    assert "2 ranks on 2 hosts" in logs[0]
    assert "no problems found" in logs[0]
