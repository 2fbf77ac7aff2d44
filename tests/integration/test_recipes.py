"""The cluster recipes, as far as one machine can test them.

Slurm itself is not run: small stand-ins for `srun` and `scontrol` start the tasks, pass the signal on, and
record that the job was queued again. The launchers' own parsers read the examples for the other launchers.
Kubernetes is in test_kubernetes.py, the image in test_dockerfile.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import swift as laboratory
from accelerate.commands.config.config_args import load_config_from_file
from deepspeed.launcher.runner import fetch_hostfile
from deepspeed.runtime.config import DeepSpeedConfig
from recipes_support import STEPS, assert_whole, bucket, folder_in_cache, training, wait_for_checkpoint
from support import LIMIT, REPO, arguments, environment, free_port, launched, metrics, run, status

from awtpn.config.schema import Config, Launch
from awtpn.distributed.batch_layout import make_layout
from awtpn.distributed.engines.deepspeed_config import deepspeed_settings
from awtpn.run.remote.commands import read_status

SBATCH = REPO / "launch" / "slurm.sbatch"

SRUN = """#!/bin/bash
# Starts every task of a step on this machine, and ends all if one fails. With OWN_DISKS each task is on a
# node of its own, with its own scratch.
tasks=$SLURM_NTASKS
case "$1 $2" in
"--kill-on-bad-exit=1 --cpus-per-task=3") ;;
"--nodes=1 --ntasks=1") [ "$3" = --ntasks-per-node=1 ] || exit 9; tasks=1; shift ;;
*) exit 9 ;;
esac
shift 2
while [[ $1 == --container-* ]]; do
    echo "$1" >>"$STAND_INS/container"
    shift
done
for ((i = 0; i < tasks; i++)); do
    own=()
    [ -z "${OWN_DISKS-}" ] || own=(AWTPN_CACHE_DIR="$AWTPN_CACHE_DIR/node-$i" SLURM_LOCALID=0)
    SLURM_PROCID=$i SLURM_LOCALID=$i env "${own[@]}" "$@" &
    echo $! >>"$STAND_INS/tasks"
done
for ((i = 0; i < tasks; i++)); do
    wait -n || { code=$?; kill -KILL $(jobs -p); exit "$code"; }
done
"""
SCONTROL = """#!/bin/bash
case "$*" in
"show hostnames node-[1-2]") printf 'localhost\\nelsewhere\\n' ;;
"requeue "*) echo "$2" >>"$STAND_INS/requeued" ;;
*) exit 1 ;;
esac
"""


# --- Slurm ---------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment that Slurm gives a job, and stand-ins for its commands."""
    stand_ins = tmp_path / "stand-ins"
    stand_ins.mkdir()
    for name, script in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (stand_ins / name).write_text(script)
        (stand_ins / name).chmod(0o755)
    return {
        "PATH": f"{stand_ins}{os.pathsep}{environment()['PATH']}",
        "STAND_INS": str(stand_ins),
        # The script derives the ranks' port from it: below 32,000, which no outgoing connection takes.
        "SLURM_JOB_ID": str(free_port() % 12_000),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "3",
    }


def test_the_slurm_script_is_sound() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SBATCH], check=True)


def test_slurm_stops_requeues_and_resumes(corpus: str, slurm: dict[str, str], tmp_path: Path) -> None:
    """SIGUSR1 before the time limit reaches the tasks but not the script, as under Slurm."""
    run_dir, stand_ins = tmp_path / "run", Path(slurm["STAND_INS"])
    job = ["bash", str(SBATCH), *arguments(training(corpus, run_dir))]
    log = tmp_path / "first.log"
    with launched(job, log, **slurm) as process:
        wait_for_checkpoint(run_dir, process, log)
        for task in (stand_ins / "tasks").read_text().split():
            os.kill(int(task), signal.SIGUSR1)
        assert process.wait(LIMIT) == 0, log.read_text()
    assert "2 ranks x micro-batch 8" in log.read_text()
    assert status(run_dir)["status"] == "preempted"
    assert (stand_ins / "requeued").read_text().split() == [slurm["SLURM_JOB_ID"]]
    assert metrics(run_dir)[-1]["step"] < STEPS

    code, text = run(job, tmp_path / "second.log", **slurm)
    assert code == 0, text
    assert ", resumed at step " in text
    assert_whole(run_dir)
    assert len((stand_ins / "requeued").read_text().split()) == 1, "a finished run must not be queued again"


def test_slurm_without_a_shared_disk_in_a_container(
    corpus: str,
    slurm: dict[str, str],
    swift: laboratory.Swift,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two nodes with scratch of their own, and the run folder in an object store; resumed on two others."""
    url, secret = bucket(swift)
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    scratch, stand_ins = tmp_path / "scratch", Path(slurm["STAND_INS"])
    slurm |= secret | {
        "OWN_DISKS": "1",
        "SLURM_TMPDIR": str(scratch),
        "CONTAINER": "registry.example.org#awtpn:latest",
        "CONTAINER_MOUNTS": "/shared:/shared",
        "CONTAINER_WORKDIR": str(REPO),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    slurm.pop("AWTPN_CACHE_DIR", None)
    job = ["bash", str(SBATCH), *arguments(training(corpus, url))]
    cache, log = scratch / f"awtpn-{os.getuid()}", tmp_path / "first.log"
    with launched(job, log, **slurm) as process:
        while not (folder_in_cache(cache / "node-0") / "checkpoints" / "latest").exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        for task in (stand_ins / "tasks").read_text().split():
            os.kill(int(task), signal.SIGUSR1)
        assert process.wait(LIMIT) == 0, log.read_text()
    assert read_status(url) == "preempted"
    assert (stand_ins / "requeued").read_text().split() == [slurm["SLURM_JOB_ID"]]
    flags = [
        "--container-image=registry.example.org#awtpn:latest",
        f"--container-mounts={scratch}:{scratch},/shared:/shared",
        f"--container-workdir={REPO}",
    ]
    assert (stand_ins / "container").read_text().splitlines() == 2 * flags, "of the run and of the status"

    shutil.rmtree(scratch)
    code, text = run(job, tmp_path / "second.log", **slurm)
    assert code == 0, text
    assert ", resumed at step " in text
    assert_whole(folder_in_cache(cache / "node-0"))
    assert read_status(url) == "done"
    assert len((stand_ins / "requeued").read_text().split()) == 1


def test_slurm_does_not_requeue_what_failed(slurm: dict[str, str], tmp_path: Path) -> None:
    """Not even if the attempt before was preempted: the job would fail again, without end."""
    (tmp_path / "status.json").write_text('{"status": "preempted"}')
    (Path(slurm["STAND_INS"]) / "srun").write_text("#!/bin/bash\nexit 3\n")
    code, _ = run(["bash", str(SBATCH), "--run.dir", str(tmp_path)], tmp_path / "log", **slurm)
    assert code == 3
    assert not (Path(slurm["STAND_INS"]) / "requeued").exists()


def test_slurm_needs_a_run_folder(slurm: dict[str, str], tmp_path: Path) -> None:
    code, text = run(["bash", str(SBATCH), "--config", "configs/demo.yaml"], tmp_path / "log", **slurm)
    assert code != 0
    assert "give --run.dir DIR, on a shared file system" in text


# --- The other launchers' examples ---------------------------------------------------------------


def test_the_example_hostfile() -> None:
    assert fetch_hostfile(str(REPO / "configs" / "deepspeed" / "hostfile.example")) == {
        "node-01": 8,
        "node-02": 8,
    }


@pytest.mark.parametrize("file", sorted((REPO / "configs" / "accelerate").iterdir()), ids=lambda f: f.name)
def test_the_accelerate_configurations(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)  # their paths are relative to it
    config = load_config_from_file(str(file))
    assert config.num_processes == 2
    assert config.use_cpu == (file.stem == "cpu")
    if file.stem.startswith("zero"):
        named = Path(config.deepspeed_config["deepspeed_config_file"])
        assert named == Path("configs/deepspeed") / f"{file.stem}.json"
        assert named.is_file()


@pytest.mark.parametrize(
    "file", sorted((REPO / "configs" / "deepspeed").glob("*.json")), ids=lambda f: f.name
)
def test_the_deepspeed_configurations(file: Path) -> None:
    """As a run fills them in: DeepSpeed itself does not accept `auto`."""
    config = Config()
    layout = make_layout(config.train.global_batch_size, None, 1)
    settings = deepspeed_settings(config, Launch(deepspeed_file=str(file)), layout, {})
    assert settings is not None
    loaded = DeepSpeedConfig(settings)
    assert loaded.zero_optimization_stage == int(file.stem.removeprefix("zero"))
    assert loaded.train_batch_size == config.train.global_batch_size
    assert loaded.gradient_clipping == config.optim.grad_clip
