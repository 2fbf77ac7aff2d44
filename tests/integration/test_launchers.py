"""Every launcher starts the ranks it was asked for, and all of them see the same data in the same order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import arguments, free_port, metrics, run, status

TRAIN = "launch/train.py"
ACCELERATE = ["accelerate", "launch"]
CONFIGS = "configs/accelerate"

# Launch command -> the engine that it means. On machines with GPUs ddp.yaml takes the place of cpu.yaml.
LAUNCHERS: dict[str, tuple[list[str], str]] = {
    "torchrun": (["torchrun", "--standalone", "--nproc-per-node", "2"], "ddp"),
    "accelerate --cpu": ([*ACCELERATE, "--cpu", "--num_processes", "2"], "ddp"),
    "accelerate cpu.yaml": ([*ACCELERATE, "--config_file", f"{CONFIGS}/cpu.yaml"], "ddp"),
    "deepspeed": (["deepspeed", "--num_gpus", "2", "--master_port", "PORT"], "zero2"),
    **{
        f"accelerate zero{stage}.yaml": (
            [*ACCELERATE, "--config_file", f"{CONFIGS}/zero{stage}.yaml", "--main_process_port", "PORT"],
            f"zero{stage}",
        )
        for stage in (1, 2, 3)
    },
}
STEPS = 3
SETTINGS = {"train.max_steps": STEPS, "train.log_every": 1, "model.dropout": 0.0}


@pytest.fixture(scope="module")
def alone(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same few steps by plain `python`."""
    folder = tmp_path_factory.mktemp("alone")
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": folder / "run"})
    code, log = run([sys.executable, TRAIN, *settings], folder / "log")
    assert code == 0, log
    assert "1 ranks x" in log
    assert "engine none" in log
    return folder / "run"


@pytest.mark.timeout(260)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_starts_two_ranks_that_see_the_same_data(
    name: str, alone: Path, demo_cache: Path, tmp_path: Path
) -> None:
    launcher, engine = LAUNCHERS[name]
    launcher = [str(free_port()) if word == "PORT" else word for word in launcher]
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": tmp_path / "run"})
    code, log = run([*launcher, TRAIN, *settings], tmp_path / "log", timeout=240)
    assert code == 0, log
    assert status(tmp_path / "run")["status"] == "done"
    # Not two runs of one rank each, which is what several of these do when left to themselves.
    assert log.count("2 ranks x micro-batch 16 x accumulation 1 = 32 utterances a step") == 1, log
    assert f"engine {engine} on cpu" in log
    ours, theirs = metrics(tmp_path / "run"), metrics(alone)
    assert [x["step"] for x in ours] == [1, 2, 3]
    assert [x["fingerprint"] for x in ours] == [x["fingerprint"] for x in theirs]
    assert [x["loss"] for x in ours] == pytest.approx([x["loss"] for x in theirs], rel=1e-5)


@pytest.mark.timeout(120)
def test_two_processes_that_accelerate_would_not_start_are_refused(demo_cache: Path, tmp_path: Path) -> None:
    """Without --cpu, `accelerate launch --num_processes 2` starts one process on a CPU, silently."""
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": tmp_path / "run"})
    code, log = run([*ACCELERATE, "--num_processes", "2", TRAIN, *settings], tmp_path / "log", timeout=100)
    assert code != 0
    assert "says 2 ranks, but the launcher's environment says 1" in log
    assert "--cpu" in log
    assert not (tmp_path / "run").exists(), "refused before anything starts"


@pytest.mark.timeout(120)
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
    code, log = run([*launcher, TRAIN, *words], tmp_path / "log", timeout=100)
    assert code != 0
    assert message in log
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]
