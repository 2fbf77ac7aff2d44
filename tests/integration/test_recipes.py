"""The cluster recipes, as far as one machine can test them.

Slurm itself is not run: small stand-ins for `srun` and `scontrol` start the tasks, pass the signal on, and
record that the job was queued again. Kubernetes is not run either: the structure of the job is checked
against the PyTorchJob of the training operator (kubeflow.org/v1), and the container's command is run with the
variables that the operator sets. The launchers' own parsers read the examples for the other launchers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from deepspeed.launcher.runner import fetch_hostfile
from deepspeed.runtime.config import DeepSpeedConfig
from support import LIMIT, REPO, arguments, environment, free_port, launched, metrics, run, status
from torch.distributed.launcher.api import LaunchConfig

from awtpn.config.schema import Config, Launch
from awtpn.distributed.batch_layout import make_layout
from awtpn.distributed.engines.deepspeed_config import deepspeed_settings

SBATCH = REPO / "launch" / "slurm.sbatch"
POD = REPO / "launch" / "kubernetes.yaml"
STEPS = 120
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"

SRUN = """#!/bin/bash
# Starts every task of a step on this machine, and ends all if one fails.
[ "$1 $2" = "--kill-on-bad-exit=1 --cpus-per-task=3" ] || exit 9
shift 2
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    echo $! >>"$STAND_INS/tasks"
done
for ((i = 0; i < SLURM_NTASKS; i++)); do
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


def training(corpus: str, run_dir: Path) -> dict[str, Any]:
    """A run long enough to be stopped before its end."""
    return {
        "data.train": corpus,
        "run.dir": run_dir,
        "model.shared_dim": 8,
        "train.epochs": 1000,
        "train.max_steps": STEPS,
        "train.global_batch_size": 16,
        "train.validate_every": 1000,
    }


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen[Any], log: Path) -> None:
    while not (run_dir / "checkpoints" / "latest").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def assert_whole(run_dir: Path) -> None:
    """The run is done, with every step once."""
    assert status(run_dir)["status"] == "done"
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, STEPS + 1))


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


# --- Kubernetes ----------------------------------------------------------------------------------


def pytorch_job() -> dict[str, Any]:
    return yaml.safe_load(POD.read_text())  # type: ignore[no-any-return]


def containers(job: dict[str, Any]) -> list[dict[str, Any]]:
    replicas = job["spec"]["pytorchReplicaSpecs"].values()
    return [container for replica in replicas for container in replica["template"]["spec"]["containers"]]


def test_the_kubernetes_job_is_a_pytorch_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked by hand: the fields in use, with the types and values that the operator's schema allows."""
    job = pytorch_job()
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = job["spec"]
    assert set(spec) <= {"elasticPolicy", "nprocPerNode", "pytorchReplicaSpecs", "runPolicy"}
    assert isinstance(spec["nprocPerNode"], str), "a string in the schema: auto, gpu, cpu or a number"
    policy = spec["runPolicy"]
    assert set(policy) <= {
        "activeDeadlineSeconds",
        "backoffLimit",
        "cleanPodPolicy",
        "managedBy",
        "schedulingPolicy",
        "suspend",
        "ttlSecondsAfterFinished",
    }
    assert policy["cleanPodPolicy"] in ("None", "Running", "All")
    assert isinstance(policy["backoffLimit"], int)
    replicas = spec["pytorchReplicaSpecs"]
    assert set(replicas) == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1, "there must be one master"
    for replica in replicas.values():
        assert set(replica) == {"replicas", "restartPolicy", "template"}
        assert replica["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
        pod = replica["template"]["spec"]
        # The ranks need time to save; by default torchrun waits only 30 seconds for them.
        (container,) = pod["containers"]
        of_container = {variable["name"]: variable["value"] for variable in container["env"]}
        monkeypatch.setenv(SHUTDOWN, of_container[SHUTDOWN])
        assert 100 <= LaunchConfig(1, 1, 8).shutdown_timeout < pod["terminationGracePeriodSeconds"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["limits"]["nvidia.com/gpu"] == int(spec["nprocPerNode"])
    assert {container["name"] for container in containers(job)} == {"pytorch"}, (
        "the name that the operator needs"
    )


def test_a_pod_stops_fails_and_resumes(corpus: str, tmp_path: Path) -> None:
    """Kubernetes signals only the container's first process, and restarts only a container that failed."""
    container = containers(pytorch_job())[0]
    run_dir = tmp_path / "run"
    of_container = {variable["name"]: variable["value"] for variable in container["env"]}
    assert of_container["RUN_DIR"].startswith("/runs/"), "must be on the volume that all pods share"
    settings = training(corpus, run_dir)
    del settings["run.dir"]  # the command gives it
    command = [*container["command"], *arguments(settings)]
    by_operator = {
        "MASTER_ADDR": "localhost",
        "WORLD_SIZE": "2",
        "RANK": "0",
        "PET_MASTER_ADDR": "localhost",
        "PET_MASTER_PORT": str(free_port()),
        "PET_NNODES": "1",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": "2",
        "RUN_DIR": str(run_dir),
    }
    log = tmp_path / "first.log"
    with launched(command, log, **by_operator) as process:
        wait_for_checkpoint(run_dir, process, log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) != 0, log.read_text()
    assert status(run_dir)["status"] == "preempted"

    code, text = run(command, tmp_path / "second.log", **by_operator)
    assert code == 0, text
    assert ", resumed at step " in text
    assert_whole(run_dir)


@pytest.mark.parametrize(("said", "code"), [("done", 0), ("preempted", 1), ("failed", 1)])
def test_a_pod_succeeds_only_when_the_run_is_done(said: str, code: int, tmp_path: Path) -> None:
    """If another pod is told to stop, torchrun exits with 0 in this pod too; the pod must still fail."""
    (tmp_path / "torchrun").write_text("#!/bin/bash\nexit 0\n")
    (tmp_path / "torchrun").chmod(0o755)
    (tmp_path / "status.json").write_text(f'{{"status": "{said}"}}')
    path = f"{tmp_path}{os.pathsep}{environment()['PATH']}"
    command = containers(pytorch_job())[0]["command"]
    assert run(command, tmp_path / "log", PATH=path, RUN_DIR=str(tmp_path))[0] == code


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
