"""How a launch becomes ranks, a layout and an engine, and what is refused on the way."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import REPO

from awtpn.config.schema import Config, Launch
from awtpn.distributed.accelerate_launch import RANK_VARIABLES, Asked, asked_of_accelerate, torchrun_options
from awtpn.distributed.batch_layout import Layout, check_negatives, make_layout
from awtpn.distributed.engines.deepspeed import load_communication_op
from awtpn.distributed.engines.deepspeed_config import ZERO, deepspeed_settings
from awtpn.distributed.world import (
    check_engine,
    check_port,
    check_precision,
    check_world_size,
    init_engine,
    launched_ranks,
)
from awtpn.learning.settings import LossConfig

BY_ACCELERATE = {"ACCELERATE_USE_DEEPSPEED": "true"}
LAYOUT = Layout(global_batch=32, micro_batch=8, accumulation=2)


# --- Layout --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "ranks", "layout"),
    [
        (32, None, 1, Layout(32, 32, 1)),
        (32, None, 4, Layout(32, 8, 1)),
        (32, 8, 2, Layout(32, 8, 2)),
        (32, 1, 1, Layout(32, 1, 32)),
    ],
)
def test_accumulation_is_derived(
    global_batch: int, micro_batch: int | None, ranks: int, layout: Layout
) -> None:
    assert make_layout(global_batch, micro_batch, ranks) == layout


def test_a_layout_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"global_batch_size 32 does not divide over 3 ranks.*e\.g\. 33"):
        make_layout(32, None, 3)
    with pytest.raises(ValueError, match="micro_batch_size 5 does not divide the 16"):
        make_layout(32, 5, 2)
    with pytest.raises(ValueError, match="micro_batch_size 32 does not divide the 16"):
        make_layout(32, 32, 2)


def test_a_layout_that_would_change_the_negatives_is_refused() -> None:
    both = ["audio", "video"]
    group = LossConfig(negatives="group", negative_group=8)
    check_negatives(group, both, Layout(32, 8, 4))
    check_negatives(group, ["audio"], Layout(32, 4, 8))
    with pytest.raises(ValueError, match="negative_group 8 does not divide the micro-batch of 4"):
        check_negatives(group, both, Layout(32, 4, 8))
    whole = LossConfig(negatives="global")
    check_negatives(whole, both, Layout(32, 4, 1))
    with pytest.raises(ValueError, match=r"negatives=global.*accumulation is 2"):
        check_negatives(whole, both, Layout(32, 4, 2))
    check_negatives(LossConfig(negatives="reference"), both, Layout(32, 3, 2))


# --- Ranks ---------------------------------------------------------------------------------------

Parent = Callable[[list[str]], None]


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Parent]:
    """Make this process believe that it was started by a command line."""
    children: list[subprocess.Popen[bytes]] = []

    def pretend(words: list[str]) -> None:
        sleeper = [sys.executable, "-c", "import time; print(flush=True); time.sleep(1e6)", *words]
        child = subprocess.Popen(sleeper, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        child.stdout.readline()  # its command line is in /proc once it runs
        monkeypatch.setattr(os, "getppid", lambda: child.pid)

    yield pretend
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("accelerate launch --num_processes 3 launch/train.py", Asked(3, 1, None)),
        ("accelerate launch --cpu --num_processes=4 launch/train.py", Asked(4, 1, None)),
        ("accelerate launch --num-processes 2 launch/evaluate.py", Asked(2, 1, None)),
        ("accelerate-launch --num_processes 2 launch/train.py", Asked(2, 1, None)),
        ("python -m accelerate.commands.launch --num_processes 2 -m awtpn.cli extract", Asked(2, 1, None)),
        ("accelerate launch --config_file configs/accelerate/cpu.yaml launch/train.py", Asked(2, 1, 0)),
        (
            "accelerate launch --config_file=configs/accelerate/zero2.yaml --num_processes=1 launch/train.py",
            Asked(1, 1, 0),
        ),
        (
            "accelerate launch --cpu --num_processes 4 --num_machines 2 --machine_rank 1 launch/train.py",
            Asked(4, 2, 1),
        ),
        (
            "accelerate launch --config_file configs/accelerate/cpu.yaml --num_machines=2 launch/train.py",
            Asked(2, 2, 0),
        ),
        ("accelerate launch launch/train.py", Asked(None, 1, None)),
        # What follows the script is the script's, and other launchers set WORLD_SIZE themselves.
        ("accelerate launch launch/train.py --num_processes 3", Asked(None, 1, None)),
        ("torchrun --nproc-per-node 2 launch/train.py", None),
        ("bash", None),
    ],
)
def test_what_was_asked_of_accelerate(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, words: str, asked: Asked | None
) -> None:
    monkeypatch.chdir(REPO)
    parent(words.split())
    assert asked_of_accelerate() == asked


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
def test_machines_that_each_believe_to_be_alone_are_refused(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a number of processes, on machines with one GPU or none."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    parent(["accelerate", "launch", "--num_machines", "2", "--machine_rank", "0", "launch/train.py"])
    with pytest.raises(ValueError, match=r"accelerate launch says 2 ranks, but .* says 1"):
        launched_ranks()
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launched_ranks() == 8


def test_what_torchrun_is_told() -> None:
    assert torchrun_options(Asked(4, 1, 0), {}) == ["--standalone", "--nproc-per-node=4"]
    meet = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert torchrun_options(Asked(4, 2, 1), meet) == [
        "--nnodes=2",
        "--node-rank=1",
        "--nproc-per-node=2",
        "--master-addr=10.0.0.1",
        "--master-port=29500",
    ]
    for processes in (None, 3):
        with pytest.raises(ValueError, match=rf"give a multiple of 2, not {processes}"):
            torchrun_options(Asked(processes, 2, 0), meet)
    with pytest.raises(ValueError, match="give --machine_rank"):
        torchrun_options(Asked(2, 2, None), meet)


def test_worlds_that_differ_are_refused() -> None:
    check_world_size("someone", 2, 2)
    check_world_size("someone without an opinion", None, 2)
    with pytest.raises(ValueError, match=r"someone says 2 ranks.*says 1.*--cpu"):
        check_world_size("someone", 2, 1)


# --- Engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_other_engines_of_accelerate_are_refused(name: str) -> None:
    check_engine({f"ACCELERATE_USE_{name}": "false", "ACCELERATE_USE_DEEPSPEED": "true"})
    with pytest.raises(ValueError, match=rf"--use_{name.lower()}.*configs/accelerate.*zero_stage 3"):
        check_engine({f"ACCELERATE_USE_{name}": "True"})


def test_accelerate_divides_no_loss(no_accelerator: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where its environment counts micro-batches: a loss is a share of the global batch's."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator, world, _ = init_engine(Config(), Launch())
    assert (world.engine, world.size) == ("none", 1)
    x = torch.ones((), device=world.device, requires_grad=True)
    accelerator.backward(3 * x)
    assert x.grad == 3


# --- Precision -----------------------------------------------------------------------------------


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    check_precision("fp16", has_fp16=True)
    with pytest.raises(ValueError, match=r"precision=fp16 needs a GPU"):
        check_precision("fp16", has_fp16=False)
    check_precision("bf16", has_fp16=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_precision("bf16", has_fp16=False)
    with pytest.raises(ValueError, match=r"mixed precision bf16.*precision=fp32"):
        check_precision("fp32", has_fp16=False)


def test_a_setting_in_a_file_of_accelerate_is_told_as_the_files(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "default_config.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nmixed_precision: fp16\n"
        "num_machines: 1\nnum_processes: 2\nuse_cpu: false\n"
    )
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(file))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "1")
    told = re.escape(f"Accelerate's configuration file {file} says")
    parent(["accelerate", "launch", "launch/train.py"])
    with pytest.raises(ValueError, match=f"^{told} mixed precision fp16, .* leave it out there"):
        check_precision("fp32", has_fp16=True)
    with pytest.raises(ValueError, match=f"^{told} 2 ranks"):
        launched_ranks()
    with pytest.raises(ValueError, match=f"^{told} --use_fsdp"):
        check_engine(os.environ)
    parent(["accelerate", "launch", "--mixed_precision", "fp16", "launch/train.py"])
    with pytest.raises(ValueError, match=r"^accelerate launch says mixed precision fp16"):
        check_precision("fp32", has_fp16=True)
    parent(["torchrun", "launch/train.py"])  # which this package puts in between on a CPU
    with pytest.raises(ValueError, match=re.escape(f"or its configuration file {file}) says mixed")):
        check_precision("fp32", has_fp16=True)


# --- The environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " "])
def test_empty_variables_of_launchers_are_not_set(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANK_VARIABLES:
        monkeypatch.setenv(name, value)
    assert launched_ranks() == 1
    assert not {*RANK_VARIABLES} & {*os.environ}, "Accelerate and torch read them too"


@pytest.mark.parametrize("name", [name for name in RANK_VARIABLES if name != "MASTER_ADDR"])
def test_variables_of_launchers_that_are_no_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in RANK_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "two")
    with pytest.raises(ValueError, match=f"the environment variable {name} is 'two', and should be a whole"):
        launched_ranks()


def test_a_folder_for_compiled_operators_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/dev/null/extensions")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ValueError, match=r"/dev/null/extensions .*environment variable TORCH_EXTENSIONS_DIR"):
        load_communication_op()


def test_a_port_in_use_is_named_before_torch_tries_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        main = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with pytest.raises(ValueError, match=rf"port {port} .*\(Address already in use\).*--master_port N"):
            check_port(main)
        for harmless in ({"RANK": "1"}, {"WORLD_SIZE": "1"}, {"TORCHELASTIC_USE_AGENT_STORE": "True"}):
            check_port(main | harmless)
    check_port(main)
    with pytest.raises(ValueError, match="at port 123456 of this machine"):
        check_port(main | {"MASTER_PORT": "123456"})


# --- DeepSpeed -----------------------------------------------------------------------------------


def settings_of(
    tmp_path: Path,
    file: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    by_launcher: bool = False,
    **train: Any,
) -> dict[str, Any] | None:
    config = Config()
    config.optim.grad_clip = 0.5
    for name, value in train.items():
        setattr(config.train, name, value)
    path = None
    if file is not None:
        path = str(tmp_path / "ds.json")
        Path(path).write_text(json.dumps(file))
    return deepspeed_settings(config, Launch(path, by_launcher), LAYOUT, environment or {})


def test_without_a_wish_there_is_no_deepspeed(tmp_path: Path) -> None:
    assert settings_of(tmp_path) is None
    assert settings_of(tmp_path, environment={"ACCELERATE_USE_DEEPSPEED": "false"}) is None


FILLED = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
}


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ({}, 2),
        ({"zero_optimization": {"stage": 3}}, 3),
        ({"zero_optimization": {"stage": "auto"}}, 2),
        ({name: "auto" for name in FILLED if "16" not in name} | {"bf16": {"enabled": "auto"}}, 2),
        ({"gradient_clipping": 0.5, "train_batch_size": 32, "bf16": {"enabled": False}}, 2),
    ],
    ids=["absent", "stage in the file", "stage auto", "auto", "the same explicitly"],
)
def test_what_a_file_leaves_open_is_filled_from_the_run(
    tmp_path: Path, file: dict[str, Any], stage: int
) -> None:
    settings = settings_of(tmp_path, file)
    assert settings is not None
    assert {k: settings[k] for k in FILLED} == FILLED
    assert settings["zero_optimization"]["stage"] == stage


def test_other_keys_of_a_file_are_kept(tmp_path: Path) -> None:
    file = {"zero_optimization": {"stage": 1, "overlap_comm": True}, "wall_clock_breakdown": True}
    settings = settings_of(tmp_path, file)
    assert settings is not None
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert settings["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("file", "train", "named"),
    [
        (
            {"train_batch_size": 64},
            {},
            r"train_batch_size is 64 in .*ds\.json, but 32 by train\.global_batch_size",
        ),
        ({"train_micro_batch_size_per_gpu": 4}, {}, r"is 4 in .* but 8 by train\.micro_batch_size"),
        ({"gradient_accumulation_steps": 1}, {}, r"is 1 in .* but 2 by"),
        ({"gradient_clipping": 1.0}, {}, r"is 1\.0 in .* but 0\.5 by optim\.grad_clip"),
        ({"bf16": {"enabled": True}}, {}, r"bf16\.enabled is True in .* but False by train\.precision"),
        ({"bf16": {"enabled": False}}, {"precision": "bf16"}, r"bf16\.enabled is False"),
        ({"fp16": {"enabled": True}}, {}, r"fp16\.enabled is True"),
        (
            {"zero_optimization": {"stage": 3}},
            {"zero_stage": 1},
            r"stage is 3 in .* but 1 by train\.zero_stage",
        ),
        ({"optimizer": {"type": "Adam"}}, {}, r"optimizer is set in .* optim\.\*"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, r"scheduler is set in"),
        ({"bf16": True}, {}, r'bf16 in .*ds\.json must be a mapping such as \{"enabled": "auto"\}, not true'),
        ({"zero_optimization": 2}, {}, r'zero_optimization in .* such as \{"stage": "auto"\}, not 2'),
    ],
)
def test_another_explicit_value_is_refused_by_name(
    tmp_path: Path, file: dict[str, Any], train: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        settings_of(tmp_path, file, **train)


def test_fp16_at_stage_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage 0 scales no losses.*zero_stage 1"):
        settings_of(tmp_path, {}, precision="fp16", zero_stage=0)
    settings = settings_of(tmp_path, {}, precision="fp16", zero_stage=1)
    assert settings is not None
    assert settings["fp16"]["enabled"]


def test_all_contradictions_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)train_batch_size.*gradient_clipping.*scheduler"):
        settings_of(tmp_path, {"train_batch_size": 1, "gradient_clipping": 9.0, "scheduler": {}})


@pytest.mark.parametrize(
    ("text", "named"), [("{", "not JSON"), ("[1]", "not a JSON object"), (None, "cannot read")]
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "broken.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"{named}|broken\.json") as refusal:
        deepspeed_settings(Config(), Launch(str(path)), LAYOUT, {})
    assert named in str(refusal.value)
    assert "broken.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("wish", "stage"),
    [
        ({"by_launcher": True}, 2),
        ({"zero_stage": 3}, 3),
        ({"by_launcher": True, "zero_stage": 0}, 0),
        ({"environment": BY_ACCELERATE | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}}, 1),
        ({"environment": BY_ACCELERATE}, 2),
    ],
    ids=["deepspeed launcher", "train.zero_stage", "both", "a flag of accelerate", "accelerate alone"],
)
def test_who_may_ask_for_deepspeed(tmp_path: Path, wish: dict[str, Any], stage: int) -> None:
    settings = settings_of(tmp_path, **wish)
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == stage
    assert {k: settings[k] for k in FILLED} == FILLED


def test_the_file_that_accelerate_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_text('{"zero_optimization": {"stage": 3}}')
    named = BY_ACCELERATE | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "theirs.json")}
    settings = settings_of(tmp_path, environment=named)
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == 3
    settings = settings_of(tmp_path, environment=named | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "none"})
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        (
            "ACCELERATE_DEEPSPEED_ZERO_STAGE",
            "1",
            r"stage is 1 in accelerate launch, but 3 by train\.zero_stage",
        ),
        ("ACCELERATE_GRADIENT_CLIPPING", "2.0", r"gradient_clipping is 2\.0 in accelerate launch"),
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "7",
            "gradient_accumulation_steps is 7 in accelerate launch",
        ),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "offloading the optimizer"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "offloading the param"),
    ],
)
def test_flags_of_accelerate_that_contradict_the_run_are_refused(
    tmp_path: Path, flag: str, value: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        settings_of(tmp_path, environment=BY_ACCELERATE | {flag: value}, zero_stage=3)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_deepspeed_files_of_the_repository_contradict_nothing(stage: int) -> None:
    path = REPO / "configs" / "deepspeed" / f"zero{stage}.json"
    config = Config()
    config.train.precision = "bf16"
    settings = deepspeed_settings(config, Launch(str(path)), LAYOUT, {})
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["bf16"]["enabled"] is True
    assert "auto" not in json.dumps(settings)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_files_of_the_repository_say_what_holds_without_one(stage: int) -> None:
    found = json.loads((REPO / "configs" / "deepspeed" / f"zero{stage}.json").read_text())[
        "zero_optimization"
    ]
    assert found.pop("stage") == stage
    assert found == {name: value for name, value in ZERO.items() if stage == 3 or "stage3" not in name}
