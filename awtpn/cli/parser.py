"""The parser of the `awtpn` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from awtpn.config.command_parser import CommandParser
from awtpn.config.program import Program, started_as
from shards.safe_io.versions import installed_version
from shards.storage.local_path import is_remote

HELP = "Pack features into shards and inspect them; train models, and use, report on and share them."
EXAMPLES = """examples:
  awtpn extract recordings data/mine              recordings/LABEL/clip.mp4 -> features in shards
  awtpn train --data.train data/mine              train on them
  accelerate launch -m awtpn.cli train --data.train data/mine
                                                  on many devices; likewise torchrun -m, deepspeed --module
  awtpn report runs/mine-20260101-120000          figures with intervals, curves, cost
  awtpn predict runs/mine-20260101-120000 clip.mp4

`awtpn COMMAND --help` lists the options of a command.
"""

# Command -> the module here whose function add_COMMAND adds it. Where one is typed, no other is imported.
COMMANDS = {
    "init": "init",
    "pack": "pack",
    "extract": "extract",
    "shards": "shards",
    "train": "train",
    "evaluate": "evaluate",
    "cross-validate": "experiments",
    "ablate": "experiments",
    "compare-models": "experiments",
    "predict": "predict",
    "serve": "predict",
    "report": "runs",
    "export": "share",
    "push": "share",
    "compare": "runs",
    "doctor": "runs",
    "runs": "runs",
    "bench": "bench",
}


class ShowVersion(argparse.Action):
    """Print the version and exit. Unlike argparse's own action it looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        version = installed_version("awtpn-at-scale")
        print(f"awtpn {version}" if version else "awtpn, not installed but started from its folder")
        parser.exit()


def module_of(command: str) -> ModuleType:
    return import_module(f"awtpn.cli.{COMMANDS[command]}")


def ending(words: Sequence[str]) -> dict[str, Any]:
    """Arguments of `run_command` for a command that ends in its own way, as its module says in `ENDING`."""
    known = words and words[0] in COMMANDS
    return getattr(module_of(words[0]), "ENDING", {}) if known else {}


def run_words(typed: tuple[str, ...], words: Sequence[str]) -> None:
    """Parse the words and run the command that they name.

    Args:
        typed: before the words: see `Program`.
        words: of the command line; the command finds its own in `options.words`, for the record.
    """
    program = started_as(typed, words[0]) if words else None
    options = make_parser(program).parse_args(words)
    options.program, options.words = program, list(words[1:])
    make_demos(options)
    fetch_runs(options)
    options.command(options)


def make_demos(options: argparse.Namespace) -> None:
    """Put the folder of a demo in place of its name, where the command takes a dataset: `takes_dataset`.

    Raises:
        ValueError: a misspelled name of a demo.
        CacheUnwritable: the cache cannot be written.
    """
    given = getattr(options, getattr(options, "dataset_option", ""), None)
    if not given:
        return
    from awtpn.run.demos import dataset_url, hidden_by_demo  # here, since `--help` needs none of it

    urls, cache_dir = [given] if isinstance(given, str) else given, getattr(options, "cache_dir", None)
    if os.environ.get("RANK") in (None, "", "0"):
        for note in filter(None, map(hidden_by_demo, urls)):
            print(note, file=sys.stderr)
    found = [dataset_url(url, cache_dir and str(cache_dir)) for url in urls]
    setattr(options, options.dataset_option, found[0] if isinstance(given, str) else found)


def fetch_runs(options: argparse.Namespace) -> None:
    """Put the copy of a run in place of its URL, where the command takes a run: `takes_run`.

    Raises:
        ValueError: there is no run at the URL, or it is damaged.
        OSError: the store cannot be reached, or refuses.
    """
    given = getattr(options, getattr(options, "run_option", ""), None)
    runs: list[Any] = given if isinstance(given, list) else [given]
    options.runs_given = runs
    if not any(isinstance(run, str) and is_remote(run) for run in runs):
        return
    from awtpn.run.remote.commands import run_folder  # here, since `--help` needs none of it

    found = [run_folder(run, options.run_needs, options.storage_options) for run in runs]
    setattr(options, options.run_option, found if isinstance(given, list) else found[0])


def make_parser(program: Program | None = None) -> CommandParser:
    """The parser of all commands; `options.command(options)` runs the one that was chosen.

    Args:
        program: of one command, if that was started; other commands need not be added then.
    """
    parser = CommandParser(
        prog="awtpn",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    parser.set_defaults(command=lambda options: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    name = program.command if program else ""
    for command in [name] if name in COMMANDS else COMMANDS:
        getattr(module_of(command), f"add_{command.replace('-', '_')}")(commands)
    if program and program.is_script:
        own = commands.choices[name]
        own.prog = program.name
        own.description = str(own.description).replace(f"awtpn {name} ", f"{' '.join(program.typed)} ")
    return parser
