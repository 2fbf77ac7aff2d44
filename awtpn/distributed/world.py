"""The ranks: how a process joins the others, reduces small values with them, and leaves.

The environment that a launcher has set is checked before training. Without these checks, ranks that do not
see each other would all train on the same data, and launcher settings that contradict the run's would have no
effect, both without an error.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from numpy.typing import NDArray

from awtpn.config.schema import Config, Launch
from awtpn.distributed.accelerate_launch import asked_of_accelerate, check_environment, who_says
from awtpn.distributed.batch_layout import Layout, check_negatives, make_layout
from awtpn.distributed.elastic import nodes_may_change, warn_of_shared_store
from awtpn.distributed.engines import ENGINES, choose_engine
from awtpn.distributed.engines.base import AVAILABLE, join_ranks

EXIT_PAUSE_S = 0.2  # at the end of a process, for the threads of collectives; see `_pause_at_exit`


@dataclass(frozen=True)
class World:
    """This process among all ranks. One process alone is rank 0 of 1."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    cpu_group: dist.ProcessGroup | None  # for small reductions that should not wait for the GPU
    engine: str  # its name in engines.ENGINES

    @property
    def is_main(self) -> bool:
        """This is the main rank, rank 0: it prints, and writes the run folder."""
        return self.rank == 0

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum over ranks of a small host array, of one shape on all of them (int64 wraps modulo 2^64)."""
        if self.size == 1:
            return values
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        dist.all_reduce(tensor, group=self.cpu_group)
        return tensor.numpy()

    def max(self, value: int) -> int:
        """The largest of the ranks' values, on every rank; every rank calls."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.cpu_group)
        return int(found)

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value of a small object, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.cpu_group)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's value of a small object, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.cpu_group)


def init_engine(config: Config, launch: Launch) -> tuple[Accelerator, World, Layout]:
    """Join the other ranks and start the engine that the launcher and the configuration ask for.

    Raises:
        ValueError: a layout that does not divide, settings that contradict the launcher's, or ranks that
            do not see each other.
    """
    check_engine(os.environ)
    launched, on_gpu = launched_ranks(), use_gpu()
    batch, micro_batch = config.train.global_batch_size, config.train.micro_batch_size
    layout = make_layout(batch, micro_batch, launched, uneven=nodes_may_change(os.environ))
    check_negatives(config.loss, list(config.model.modalities), layout)
    name, settings = choose_engine(config, launch, layout, launched, os.environ)
    engine, precision = ENGINES[name], config.train.precision
    check_precision(precision, has_fp16=on_gpu or engine.fp16_on_cpu)
    # Longer than the watchdog waits: it writes every rank's stacks, which a collective's time-out would not.
    wait = timedelta(seconds=2 * config.train.timeout + 60)

    check_port(os.environ)
    _rendezvous_after_restart(on_gpu, wait)
    accelerator = engine.make_accelerator(mixed_precision(precision), on_gpu, launched, wait, settings)
    world = _world(accelerator, launched, name, wait)
    if world.is_main and (warning := warn_of_shared_store(os.environ)):
        print(warning, flush=True)
    check_same_everywhere(world, config)
    return accelerator, world, layout


def init_process_group(wait: timedelta = timedelta(minutes=30)) -> World:
    """Join the other ranks for evaluation or extraction, under any launcher; nothing is trained.

    Args:
        wait: how long a collective waits for a rank before it fails.
    """
    launched, on_gpu = launched_ranks(), use_gpu()
    check_port(os.environ)
    _rendezvous_after_restart(on_gpu, wait)
    return _world(join_ranks(on_gpu, wait), launched, "none", wait)


def shutdown() -> None:
    """Wait for the other ranks, and leave the process group."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def launched_ranks() -> int:
    """The number of ranks, by the launcher's environment.

    Raises:
        ValueError: `accelerate launch` was asked for another number.
    """
    check_environment()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if asked := asked_of_accelerate():
        # Without --num_processes, there is at least one process on each machine.
        processes = asked.processes or max(launched, asked.machines)
        check_world_size(who_says("num_processes"), processes, launched)
    return launched


def use_gpu() -> bool:
    """There is a GPU, and `accelerate launch --cpu` was not given."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"


def check_port(environment: Mapping[str, str]) -> None:
    """Refuse a rendezvous port that another program uses, on the rank that has to open it.

    torch.distributed's own error is a screenful of C++ frames. Under torchrun nothing is checked: torchrun
    itself has opened the port.

    Raises:
        ValueError: names the port, and each launcher's option for another one.
    """
    opens = environment.get("RANK") == "0" and int(environment.get("WORLD_SIZE", "1")) > 1
    by_torchrun = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not opens or by_torchrun or "MASTER_PORT" not in environment or dist.is_initialized():
        return
    port = int(environment["MASTER_PORT"])
    with socket.socket() as probe:
        # As torch does: a port whose last connection has just ended is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(
                f"the ranks cannot meet at port {port} of this machine ({reason}): choose another: deepspeed "
                "--master_port N, accelerate launch --main_process_port N, torchrun --master-port N or "
                "MASTER_PORT=N"
            ) from None


def _rendezvous_after_restart(on_gpu: bool, wait: timedelta) -> None:
    """After a restart by torchrun, exchange addresses under keys of this attempt.

    All attempts share torchrun's store, which still has the addresses of the ranks that ended. A rank that
    reads those before the new ranks have written theirs would wait for a process that is gone.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    ranks, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"attempt_{attempt}", dist.TCPStore(address, port, ranks, False, wait))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=ranks, timeout=wait
    )


def _world(accelerator: Accelerator, launched: int, engine: str, wait: timedelta) -> World:
    joined = dist.get_world_size() if dist.is_initialized() else 1
    check_world_size("torch.distributed", joined, launched)
    check_world_size("Accelerate", accelerator.num_processes, launched)
    if launched > 1:
        _pause_at_exit()
    return World(
        rank=accelerator.process_index,
        size=launched,
        local_rank=accelerator.local_process_index,
        device=accelerator.device,
        cpu_group=dist.new_group(backend="gloo", timeout=wait) if launched > 1 else None,
        engine=engine,
    )


@functools.cache  # a process may start several runs, one after another, and exits once
def _pause_at_exit() -> None:
    # While Python shuts down, it ends every thread that asks for its lock. A thread of gloo that frees the
    # tensors of the last collective asks for it, and C++ would abort the process: wait for it.
    atexit.register(time.sleep, EXIT_PAUSE_S)


def mixed_precision(precision: str) -> str:
    """Accelerate's word for `train.precision`."""
    return "no" if precision == "fp32" else precision


def check_engine(environment: Mapping[str, str]) -> None:
    """Raise ValueError if Accelerate was told to use an engine that is not in ENGINES."""
    for name in ("FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        variable = f"ACCELERATE_USE_{name}"
        if environment.get(variable, "false").lower() == "true":
            who = who_says(f"use_{name.lower()}")
            raise ValueError(f"{who} says --use_{name.lower()} ({variable}): {AVAILABLE}")


def check_world_size(who: str, found: int | None, launched: int) -> None:
    """Raise ValueError if `who` found another number of ranks than the launcher started; None: unknown."""
    if found is not None and found != launched:
        raise ValueError(
            f"{who} says {found} ranks, but the launcher's environment says {launched}: every rank would "
            "train alone on all the data. On a machine without GPUs add --cpu to `accelerate launch`, or use "
            "torchrun"
        )


def check_precision(precision: str, has_fp16: bool) -> None:
    """Refuse fp16 where nothing computes it, and a --mixed_precision that contradicts train.precision.

    Args:
        precision: `train.precision`.
        has_fp16: the engine computes fp16 on this device.

    Raises:
        ValueError: names the fix.
    """
    if precision == "fp16" and not has_fp16:
        raise ValueError("train.precision=fp16 needs a GPU (or DeepSpeed); on a CPU use bf16 or fp32")
    flag = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if flag not in ("no", mixed_precision(precision)):
        raise ValueError(
            f"{who_says('mixed_precision')} says mixed precision {flag}, but the run says train.precision="
            f"{precision}: leave it out there, or add --train.precision {flag}"
        )


def check_same_everywhere(world: World, config: Config) -> None:
    """Raise ValueError on every rank if some rank was started with another configuration."""
    digests = world.all_gather_object(hashlib.sha256(repr(config).encode()).hexdigest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise ValueError(f"ranks {others} were started with another configuration than rank 0")
