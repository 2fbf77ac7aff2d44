"""Every cause of a bad night that the doctor knows is found, named and given a fix; a good night has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ALONE, LIMIT

from awtpn.config.schema import Config
from awtpn.distributed import doctor
from awtpn.distributed.accelerate_launch import RANK_VARIABLES
from awtpn.experiments import runner
from awtpn.run.folder import prepare_run_dir

URL = "s3://corpus/meld"


def healthy(ranks: int = 4) -> list[dict[str, Any]]:
    """Facts of ranks on two hosts of which nothing bad can be said."""
    return [
        {
            "rank": rank,
            "host": f"node-{1 + rank // 2}",
            "address": f"10.0.0.{1 + rank // 2}",
            "interface": None,
            "time": 1000.0 + rank,
            "versions": {"python": "3.12.1", "torch": "2.13.0"},
            "run_dir": {"path": "/runs/meld", "shared": True, "unwritable": None, "free_bytes": 1 << 40},
            "data": {URL: "ok, manifest 0123456789ab"},
            "hostfile": None,
        }
        for rank in range(ranks)
    ]


def only_finding(ranks: list[dict[str, Any]]) -> doctor.Finding:
    [finding] = doctor.diagnose(ranks)
    assert str(finding) == f"{finding.level}: {finding.what}\n  fix: {finding.fix}"
    return finding


def test_nothing_is_wrong() -> None:
    assert doctor.diagnose(healthy()) == []
    assert doctor.diagnose(healthy(1)) == []


def test_a_run_without_folder_or_data_has_nothing_wrong_either() -> None:
    ranks = healthy()
    for r in ranks:
        r["run_dir"], r["data"] = None, {}
    assert doctor.diagnose(ranks) == []


def test_other_versions() -> None:
    ranks = healthy()
    for r in ranks[2:]:
        r["versions"] = r["versions"] | {"torch": "2.12.0"}
    finding = only_finding(ranks)
    assert finding.level == "error"
    assert finding.what == "hosts have different versions of torch (node-1: 2.13.0, node-2: 2.12.0)"
    assert finding.fix == "install the same version on all hosts"


def test_a_run_folder_that_is_not_shared() -> None:
    ranks = healthy()
    ranks[3]["run_dir"]["shared"] = False
    finding = only_finding(ranks)
    assert finding.level == "error"
    assert finding.what == "rank 3 on node-2 does not see rank 0's run folder at /runs/meld"
    assert "file system that all hosts share" in finding.fix


def test_a_run_folder_that_cannot_be_written() -> None:
    ranks = healthy()
    ranks[0]["run_dir"]["unwritable"] = "Permission denied"
    finding = only_finding(ranks)
    assert finding.level == "error"
    assert finding.what == "rank 0 on node-1 cannot write to /runs/meld: Permission denied"
    assert finding.fix == "choose another run.dir"


def test_a_full_disk() -> None:
    ranks = healthy()
    ranks[0]["run_dir"]["free_bytes"] = 1 << 28
    finding = only_finding(ranks)
    assert finding.level == "warning"
    assert finding.what == "only 0.25 GiB are free at /runs/meld"
    assert "keep_last" in finding.fix


def test_data_out_of_reach_of_one_rank() -> None:
    ranks = healthy()
    ranks[2]["data"] = {URL: "Name or service not known"}
    finding = only_finding(ranks)
    assert finding.level == "error"
    assert finding.what == f"rank 2 on node-2 cannot read {URL}: Name or service not known"
    assert "credentials on that host" in finding.fix


def test_ranks_of_a_host_that_fail_alike_are_named_together() -> None:
    ranks = healthy(5)
    for r in ranks[1:]:
        r["data"] = {URL: "Name or service not known" if r["rank"] < 4 else "403"}
    assert [finding.what for finding in doctor.diagnose(ranks)] == [
        f"rank 1 on node-1 cannot read {URL}: Name or service not known",
        f"ranks 2, 3 on node-2 cannot read {URL}: Name or service not known",
        f"rank 4 on node-3 cannot read {URL}: 403",
    ]


def test_different_datasets_under_one_name() -> None:
    ranks = healthy(2)
    ranks[1]["data"] = {URL: "ok, manifest ba9876543210"}
    finding = only_finding(ranks)
    assert finding.level == "error"
    assert f"different datasets at {URL}" in finding.what
    assert "rank 1: ok, manifest ba9876543210" in finding.what
    assert "same copy" in finding.fix


def test_clocks_apart() -> None:
    ranks = healthy()
    ranks[2]["time"] += 100
    finding = only_finding(ranks)
    assert finding.level == "warning"
    assert finding.what == "the clock of node-2 is 102 s ahead of that of node-1"
    assert "NTP" in finding.fix


def test_a_host_that_knows_itself_by_an_address_of_no_use() -> None:
    ranks = healthy()
    for r in ranks[2:]:
        r["address"] = "127.0.1.1"
    finding = only_finding(ranks)
    assert finding.level == "warning"
    assert (
        finding.what == "the name node-2 resolves to 127.0.1.1 on that host, which other hosts cannot reach"
    )
    assert "GLOO_SOCKET_IFNAME" in finding.fix

    for r in ranks:
        r["interface"] = "eth0"
    assert doctor.diagnose(ranks) == []


def test_one_host_may_call_itself_what_it_likes() -> None:
    ranks = healthy(2)
    for r in ranks:
        r["address"] = "127.0.1.1"
    assert doctor.diagnose(ranks) == []


def test_a_hostfile_that_deepspeed_did_not_find() -> None:
    """Deepspeed then trains on this machine alone, so one rank is enough to tell."""
    ranks = healthy(1)
    ranks[0]["hostfile"] = "hosts.txt"
    finding = only_finding(ranks)
    assert finding.level == "error"
    assert finding.what == "deepspeed was given the hostfile hosts.txt, which does not exist"
    assert finding.fix == "give the path of an existing file"


def test_errors_come_first() -> None:
    ranks = healthy()
    ranks[0]["run_dir"]["free_bytes"] = 0
    ranks[1]["time"] += 1000
    ranks[1]["data"] = {URL: "gone"}
    assert [f.level for f in doctor.diagnose(ranks)] == ["error", "warning", "warning"]


# --- Before the ranks meet -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("launcher", "refused"),
    [
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, True),  # torchrun
        ({"WORLD_SIZE": "2", "LOCAL_SIZE": "1"}, True),  # deepspeed
        ({"WORLD_SIZE": "2", "SLURM_NNODES": "2"}, True),
        # One process within an allocation of two nodes: as salloc and sbatch leave it, and as srun -n 1 does.
        ({"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NTASKS": "2"}, False),
        (
            {"SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
            False,
        ),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, False),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "eth0"}, False),
        ({}, False),
    ],
)
def test_ranks_that_could_not_meet_do_not_try(
    launcher: dict[str, str], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_launchers(monkeypatch)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor.socket, "gethostbyname", lambda name: "127.0.1.1")
    if not refused:
        doctor.check_network()
        return
    with pytest.raises(ValueError, match=r"resolves to 127\.0\.1\.1(.|\n)*set GLOO_SOCKET_IFNAME"):
        doctor.check_network()


def forget_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in (*RANK_VARIABLES, "GLOO_SOCKET_IFNAME"):
            monkeypatch.delenv(name)


def test_processes_of_srun_that_know_nothing_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would train alone on all the data, in one run folder."""
    forget_launchers(monkeypatch)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(
        ValueError, match=r"srun started 2 processes without a launcher, .* one torchrun on each node"
    ):
        doctor.check_network()
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    doctor.check_network()
    own = runner.environment({"SLURM_STEP_NUM_TASKS": "2", "HOME": "/"}, slot=0, parallel=1, gpus=[])
    assert own == {"HOME": "/"}, "a fold is a run of its own, however the cross-validation was started"


# --- The facts -----------------------------------------------------------------------------------


def test_facts_of_this_machine_are_healthy(tmp_path: Path, corpus: str) -> None:
    run_dir = tmp_path / "runs" / "new"
    [facts], findings = doctor.check_cluster(ALONE, run_dir, [corpus])
    assert findings == []
    assert facts["run_dir"]["path"] == str(run_dir)
    assert facts["data"][corpus].startswith("ok, manifest ")
    assert facts["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert list(run_dir.iterdir()) == [], "the doctor leaves nothing behind"


def test_a_token_of_another_rank_0_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TOKEN_TIMEOUT_S", 0.0)
    (tmp_path / doctor.TOKEN_FILE).write_text("of another run")
    facts = doctor.collect_host_info(1, tmp_path, token="ours")
    assert not facts["run_dir"]["shared"]


def test_a_missing_package_is_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert doctor.versions()["no-such-package"] == "missing"


def test_the_hostfile_of_a_deepspeed_above(tmp_path: Path) -> None:
    """Found over the launcher in between, on a stand-in for the command of that name."""
    between = "import os; print(os.getpid(), flush=True); input()"
    deepspeed = tmp_path / "deepspeed"
    deepspeed.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {between!r}])")
    command = [sys.executable, str(deepspeed), "--hostfile", "nowhere/hosts", "train.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        try:
            assert launcher.stdout is not None
            assert doctor.missing_hostfile(int(launcher.stdout.readline())) == "nowhere/hosts"
        finally:
            launcher.communicate("\n", timeout=LIMIT)
    assert doctor.missing_hostfile() is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--hostfile", "hosts"], "hosts"),
        (["--hostfile=hosts"], "hosts"),
        (["-H", "hosts"], "hosts"),
        (["--num_gpus", "2"], None),
        (["--hostfile"], None),
    ],
)
def test_the_hostfile_that_a_command_line_names(options: list[str], named: str | None) -> None:
    assert doctor._hostfile(["python3", "/usr/bin/deepspeed", *options]) == named


# --- Training does not start ---------------------------------------------------------------------


def test_training_does_not_start_on_data_out_of_reach(tmp_path: Path) -> None:
    config = Config()
    config.data.train = str(tmp_path / "nowhere")
    config.run.dir = str(tmp_path / "run")
    with pytest.raises(ValueError, match="this run cannot work") as refusal:
        prepare_run_dir(config, ALONE)
    assert "rank 0 on " in str(refusal.value)
    assert f"cannot read {tmp_path / 'nowhere'}" in str(refusal.value)
    assert "error: " not in str(refusal.value), "launch/train.py writes that"
    assert "no such folder; `awtpn pack` makes a dataset" in str(refusal.value)
    assert str(refusal.value).endswith("fix: check the path")
    assert not (tmp_path / "run" / "status.json").exists()


def test_training_does_not_start_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = Config()
    config.run.dir = str(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match="this run cannot work") as refusal:
        prepare_run_dir(config, ALONE)
    assert f"cannot write to {tmp_path / 'file' / 'run'}: " in str(refusal.value)
    assert "fix: choose another run.dir" in str(refusal.value)


def test_a_warning_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1 << 62)
    config = Config()
    config.run.dir = str(tmp_path / "run")
    assert prepare_run_dir(config, ALONE) == tmp_path / "run"
    assert "warning: " in capsys.readouterr().out
    assert (tmp_path / "run").is_dir()
