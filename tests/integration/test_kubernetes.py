"""The recipe for Kubernetes, as far as it can be tested without a cluster.

The structure is checked by hand against the types of Kubeflow Trainer v2.2, which cannot be installed here.
The container's command is run with the variables that Trainer sets: two pods with a disk each, and a real
object store.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import swift as laboratory
import yaml
from recipes_support import assert_whole, bucket, folder_in_cache, training
from support import LIMIT, REPO, arguments, free_port, launched

from awtpn.run.remote.commands import read_status

FILE = REPO / "launch" / "kubernetes.yaml"
GROUP = "trainer.kubeflow.org"
# torch.elastic's agents wait so long for each other.
EXIT_BARRIER_S = 300.0


@pytest.fixture(scope="module")
def runtime() -> dict[str, Any]:
    return next(yaml.safe_load_all(FILE.read_text()))


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return list(yaml.safe_load_all(FILE.read_text()))[1]


def test_the_job_is_a_train_job(job: dict[str, Any], runtime: dict[str, Any]) -> None:
    """Checked by hand: the fields in use, with the types and values that v2.2 allows."""
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == (f"{GROUP}/v1alpha1", "TrainJob")
    spec = job["spec"]
    assert set(spec) <= {
        *("runtimeRef", "initializer", "trainer", "runtimePatches", "suspend"),
        *("activeDeadlineSeconds", "managedBy"),
    }
    assert spec["runtimeRef"] == {
        "apiGroup": GROUP,
        "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }
    trainer = spec["trainer"]
    assert set(trainer) <= {
        *("image", "command", "args", "env", "numNodes", "resourcesPerNode", "numProcPerNode"),
    }
    assert isinstance(trainer["image"], str)
    assert isinstance(trainer["numNodes"], int)
    assert isinstance(trainer["numProcPerNode"], int), "v2.2 takes no word"
    assert all(isinstance(word, str) for word in [*trainer["command"], *trainer["args"]])
    assert all(set(variable) == {"name", "value"} for variable in trainer["env"])
    # Trainer refuses jobs that set what it sets itself.
    assert not any(variable["name"].startswith("PET_") for variable in trainer["env"])
    resources = trainer["resourcesPerNode"]
    assert set(resources) == {"requests", "limits"}
    for amounts in resources.values():
        assert amounts["nvidia.com/gpu"] == str(trainer["numProcPerNode"])


def test_the_runtime_is_a_training_runtime(runtime: dict[str, Any], job: dict[str, Any]) -> None:
    """The fields of Trainer v2.2, of JobSet v1alpha2 within it, of a Job and of a pod."""
    assert set(runtime) == {"apiVersion", "kind", "metadata", "spec"}
    assert (runtime["apiVersion"], runtime["kind"]) == (f"{GROUP}/v1alpha1", "TrainingRuntime")
    spec = runtime["spec"]
    assert set(spec) <= {"mlPolicy", "podGroupPolicy", "template"}
    assert spec["mlPolicy"] == {"numNodes": 1, "torch": {}}, "since v2.2 `torch` has no fields"
    assert set(spec["template"]) == {"spec"}
    (replicated,) = spec["template"]["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "template"}
    # The job, its label and its container are how Trainer finds what a TrainJob's `trainer` is about.
    assert replicated["name"] == "node"
    assert replicated["template"]["metadata"] == {"labels": {f"{GROUP}/trainjob-ancestor-step": "trainer"}}
    of_job = replicated["template"]["spec"]
    assert set(of_job) == {"backoffLimit", "template"}
    pod = of_job["template"]["spec"]
    assert set(pod) == {
        *("restartPolicy", "terminationGracePeriodSeconds", "securityContext", "containers", "volumes"),
    }
    assert pod["restartPolicy"] == "OnFailure"
    assert pod["terminationGracePeriodSeconds"] >= 120, "time to save and to send a checkpoint"
    (container,) = pod["containers"]
    assert container["name"] == "node"
    assert set(container) == {"name", "workingDir", "envFrom", "volumeMounts"}, "the rest is the TrainJob's"
    volumes = {volume.pop("name"): volume for volume in map(dict, pod["volumes"])}
    assert all(set(volume) == {"emptyDir"} for volume in volumes.values()), "no disk is shared"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    variables = {variable["name"]: variable["value"] for variable in job["spec"]["trainer"]["env"]}
    assert variables["AWTPN_CACHE_DIR"] in mounts
    assert "://" in variables["RUN_DIR"]


def test_the_image_fits_the_pod(runtime: dict[str, Any]) -> None:
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    lines = [line.split() for line in (REPO / "launch" / "Dockerfile").read_text().splitlines()]
    number = str(pod["securityContext"]["runAsUser"])
    assert pod["securityContext"] == {"runAsNonRoot": True} | dict.fromkeys(
        ("runAsUser", "runAsGroup", "fsGroup"), int(number)
    )
    assert [words[1] for words in lines if words[:1] == ["USER"]] == [number]
    assert [words[1] for words in lines if words[:1] == ["WORKDIR"]][-1] == pod["containers"][0]["workingDir"]


def command_of(job: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    return [*job["spec"]["trainer"]["command"], *arguments(settings)]


def test_the_command_is_sound(job: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "command.sh"
    script.write_text(f"#!/bin/bash\n{job['spec']['trainer']['command'][2]}")
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


# --- Two pods ------------------------------------------------------------------------------------


class Pods:
    """Two pods of a job, each with one rank and a disk of its own."""

    def __init__(self, command: list[str], variables: dict[str, str], folder: Path) -> None:
        self.command, self.variables, self.folder = command, variables, folder
        self.attempts = 0

    def disk(self, pod: int) -> Path:
        return self.folder / f"scratch-{pod}"

    def log(self, pod: int) -> Path:
        return self.folder / f"pod-{pod}.attempt-{self.attempts}.log"

    def start(self, stack: ExitStack) -> list[subprocess.Popen[Any]]:
        self.attempts += 1
        by_trainer = {
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_MASTER_ADDR": "localhost",
            "PET_MASTER_PORT": str(free_port()),
        }
        started = []
        for pod in (0, 1):
            self.disk(pod).mkdir(exist_ok=True)
            own = {"PET_NODE_RANK": str(pod), "AWTPN_CACHE_DIR": str(self.disk(pod))}
            variables = by_trainer | own | self.variables
            started.append(stack.enter_context(launched(self.command, self.log(pod), **variables)))
        return started

    def wait(self, started: list[subprocess.Popen[Any]]) -> list[int]:
        return [process.wait(LIMIT) for process in started]


def test_pods_stop_fail_and_resume_on_other_disks(
    job: dict[str, Any], corpus: str, swift: laboratory.Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes signals the first process of one pod, and restarts pods that failed."""
    url, secret = bucket(swift)
    settings = training(corpus, url)
    del settings["run.dir"]  # the command gives it
    pods = Pods(command_of(job, settings), secret | {"RUN_DIR": url, "GLOO_SOCKET_IFNAME": "lo"}, tmp_path)
    for name, value in secret.items():
        monkeypatch.setenv(name, value)

    with ExitStack() as stack:
        started = pods.start(stack)
        while not (folder_in_cache(pods.disk(0)) / "checkpoints" / "latest").exists():
            assert started[0].poll() is None, pods.log(0).read_text()
            time.sleep(0.02)
        began = time.monotonic()
        started[1].send_signal(signal.SIGTERM)
        assert 0 not in pods.wait(started), pods.log(0).read_text()
        waited = time.monotonic() - began
    assert read_status(url) == "preempted"
    assert "Waiting 300 seconds" not in pods.log(0).read_text() or waited < EXIT_BARRIER_S

    shutil.rmtree(pods.disk(1))  # the pod is replaced by one on another node
    with ExitStack() as stack:
        assert pods.wait(pods.start(stack)) == [0, 0], pods.log(0).read_text() + pods.log(1).read_text()
    assert ", resumed at step " in pods.log(0).read_text()
    assert read_status(url) == "done"
    assert_whole(folder_in_cache(pods.disk(0)))
