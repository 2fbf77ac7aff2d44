"""Reads the command line of `accelerate launch`, and starts the ranks that it does not start on a CPU.

On a machine without GPUs Accelerate starts one process per machine, whatever number was asked for, and passes
on only some options. Each machine would then train alone on all the data. So the options are read from the
command line of the parent process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from awtpn.config.private_words import hand_over

ACCELERATE = "accelerate launch"
RANK_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@dataclass(frozen=True)
class Asked:
    """What was asked of `accelerate launch` by its command line, or else by its configuration file."""

    processes: int | None
    """Over all machines; None if neither gives it."""
    machines: int
    machine_rank: int | None
    file: str | None = field(default=None, compare=False)
    """The configuration file that Accelerate read."""
    flags: frozenset[str] = field(default=frozenset(), compare=False)
    """The options that the command line itself gives, e.g. "mixed_precision"."""


def asked_of_accelerate() -> Asked | None:
    """What the `accelerate launch` that started this process was asked for (Linux); None if none did."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return None
    start = next((i + 1 for i in range(len(words)) if _launches(words, i)), None)
    if start is None:
        return None
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    parser, file = launch_command_parser(), None
    options = parser.parse_args(words[start:])
    flags = frozenset(name for name, value in vars(options).items() if value != parser.get_default(name))
    processes, machines, rank = options.num_processes, options.num_machines, options.machine_rank
    # The same precedence as Accelerate's: it reads its default file, but not together with --cpu.
    if options.config_file or (Path(default_config_file).is_file() and not options.cpu):
        file = options.config_file or str(default_config_file)
        config = load_config_from_file(options.config_file)
        processes = config.num_processes if processes is None else processes
        machines = config.num_machines if machines is None else machines
        rank = config.machine_rank if rank is None else rank
    return Asked(processes, machines or 1, rank, file, flags)


def who_says(option: str) -> str:
    """Where an option of `accelerate launch` was set, for error messages: its command line, or which file."""
    asked = asked_of_accelerate()
    if asked is None:  # torchrun stands between it and this process: name the file if there is one
        from accelerate.commands.config.config_args import default_config_file

        there = Path(default_config_file).is_file()
        return f"{ACCELERATE} (or its configuration file {default_config_file})" if there else ACCELERATE
    if asked.file is None or option in asked.flags:
        return ACCELERATE
    return f"Accelerate's configuration file {asked.file}"


def check_environment() -> None:
    """Unset variables of launchers that are empty.

    Raises:
        ValueError: one is not a number; names it.
    """
    for name in RANK_VARIABLES:
        value = os.environ.get(name)
        if value is not None and not value.strip():
            del os.environ[name]
        elif (
            value is not None
            and name != "MASTER_ADDR"
            and not (value.isdecimal() and (int(value) > 0 or "SIZE" not in name))
        ):
            raise ValueError(
                f"the environment variable {name} is {value!r}, and should be a whole number that a launcher "
                f"has set: unset {name} to train alone"
            )


def _launches(words: Sequence[str], i: int) -> bool:
    """`words[i]` ends one of the spellings of `accelerate launch`."""
    if words[i] == "launch":
        return i > 0 and "accelerate" in words[i - 1]
    return words[i] == "accelerate.commands.launch" or Path(words[i]).name == "accelerate-launch"


def start_missing_ranks(argv: Sequence[str]) -> None:
    """Replace this process by torchrun, where `accelerate launch --cpu --num_processes N` started only one.

    On a CPU Accelerate starts one process per machine and expects MPI to start the others. torchrun then runs
    the same program in all of them. In all other cases this function does nothing.

    Args:
        argv: arguments of Python that start this program: a script or `-m MODULE`, and what follows it.

    Raises:
        ValueError: several machines were asked for, but options that each of them needs are missing.
    """
    check_environment()
    if "WORLD_SIZE" in os.environ or os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true":
        return
    asked = asked_of_accelerate()
    if asked and (asked.machines > 1 or (asked.processes or 1) > 1):
        torchrun = ["-m", "torch.distributed.run", *torchrun_options(asked, os.environ)]
        words, private = hand_over(argv)
        os.execve(sys.executable, [sys.executable, *torchrun, *words], {**os.environ, **private})


def torchrun_options(asked: Asked, environment: Mapping[str, str]) -> list[str]:
    """torchrun's options for the same ranks; `environment` has the rendezvous address of several machines.

    Raises:
        ValueError: names the missing or wrong option of `accelerate launch`.
    """
    if asked.machines == 1:
        return ["--standalone", f"--nproc-per-node={asked.processes}"]
    if not asked.processes or asked.processes % asked.machines:
        raise ValueError(
            f"accelerate launch: --num_processes is the total over all {asked.machines} machines, with "
            f"the same number on each: give a multiple of {asked.machines}, not {asked.processes}"
        )
    if asked.machine_rank is None:
        raise ValueError(
            f"accelerate launch: with --num_machines {asked.machines} give --machine_rank, too: 0 on the "
            "machine of --main_process_ip, 1 on the next, ..."
        )
    return [
        f"--nnodes={asked.machines}",
        f"--node-rank={asked.machine_rank}",
        f"--nproc-per-node={asked.processes // asked.machines}",
        f"--master-addr={environment['MASTER_ADDR']}",
        f"--master-port={environment['MASTER_PORT']}",
    ]
