"""`awtpn train`: one run, under any launcher."""

from __future__ import annotations

import argparse
from typing import Any

from awtpn.config.command_parser import CONFIG_AND_KEYS
from awtpn.config.program import Program
from shards.storage.cache import CacheUnwritable

# Wrong settings or data: the message says what to change. Any other error shows its traceback.
ENDING: dict[str, Any] = {
    "errors": (ValueError, CacheUnwritable),
    "interrupted": "interrupted; the same command, with the same --run.dir, resumes from the last checkpoint",
}


def add_train(commands: Any) -> None:
    # Its keys come from the configuration, which `awtpn.config.command_line` parses when the command runs.
    parser = commands.add_parser(
        "train", help="train one run, under any launcher", description="Train one run.", add_help=False
    )
    parser.passes_on = CONFIG_AND_KEYS
    parser.set_defaults(command=run_train)


def run_train(options: argparse.Namespace) -> None:
    from awtpn.config.command_line import parse_command_line
    from awtpn.distributed.accelerate_launch import start_missing_ranks

    program: Program = options.program
    config, launch = parse_command_line(options.words, program)
    start_missing_ranks([*program.for_python, *options.words])

    from awtpn.training.trainer import run_training  # here, since `--help` and a mistyped key need no torch

    run_training(config, launch)
