"""How a launch becomes ranks, a layout and an engine, and what is refused on the way."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from support import REPO

from awtpn.config.schema import Config, Launch
from awtpn.distributed.accelerate_launch import RANK_VARIABLES, Asked, asked_of_accelerate, torchrun_options
from awtpn.distributed.batch_layout import (
    Layout,
    check_negatives,
    make_layout,
    negatives_cross_micro_batches,
)
from awtpn.distributed.engines.deepspeed import load_communication_op
from awtpn.distributed.world import (
    check_engine,
    check_port,
    check_precision,
    check_world_size,
    init_engine,
    launched_ranks,
)
from awtpn.learning.settings import LossConfig

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


def test_groups_of_negatives_fill_the_global_batch() -> None:
    group = LossConfig(negatives="group", negative_group=8)
    check_negatives(group, ["audio", "video"], Layout(32, 4, 8))
    check_negatives(group, ["audio"], Layout(12, 4, 1))
    with pytest.raises(ValueError, match=r"negative_group 8 does not divide train\.global_batch_size 12"):
        check_negatives(group, ["audio", "video"], Layout(12, 4, 1))


@pytest.mark.parametrize(
    ("negatives", "layout", "crosses"),
    [
        ("group", Layout(32, 8, 4), False),
        ("group", Layout(32, 16, 2), False),
        ("group", Layout(32, 4, 8), True),
        ("group", Layout(32, 1, 1), True),
        ("global", Layout(32, 4, 1), False),
        ("global", Layout(32, 4, 2), True),
        ("reference", Layout(32, 3, 2), False),
    ],
)
def test_negatives_that_cross_micro_batches(
    negatives: Literal["group", "global", "reference"], layout: Layout, crosses: bool
) -> None:
    loss = LossConfig(negatives=negatives)
    assert negatives_cross_micro_batches(loss, ["audio", "video"], layout) == crosses
    assert not negatives_cross_micro_batches(loss, ["audio"], layout)


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
        ("accelerate launch --cpu --num_processes 2 -m awtpn.cli train --train.epochs 3", Asked(2, 1, None)),
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
