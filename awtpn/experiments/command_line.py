"""Options that every experiment of many runs takes, and how such a script begins and ends."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from awtpn.config.entry_point import run_command
from awtpn.config.option_types import path_argument


def add_experiment_options(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Add the options that say which runs to make, where and how many at a time.

    Args:
        parser: of the script.
        folder: the default of `--dir`.
    """
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="metadata column; each of its values is left out once (default: the data's own splits)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="run.seed of each repetition (default: 0)",
    )
    parser.add_argument(
        "--dir",
        type=path_argument,
        default=folder,
        help=f"folder of the runs and of the table (default: {folder})",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time on this machine (default: 1)"
    )
    parser.add_argument(
        "--launcher",
        metavar="WORDS",
        help="command that starts each run, e.g. 'torchrun --nproc-per-node 8' (default: one process)",
    )


def parse_own_options(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and the remaining words, which are those of launch/train.py."""
    own = parser.format_usage().removeprefix("usage: ").rstrip()
    parser.usage = f"{own}\n{' ' * len(f'usage: {parser.prog} ')}[--config FILE] [--SECTION.KEY VALUE ...]"
    return parser.parse_known_args(words)


def run_script(main: Callable[[list[str]], object]) -> None:
    """Run a script's `main`; an error that a user can cause ends in one line, not in a traceback."""
    # A batch system's SIGTERM acts as Ctrl-C: the runs in progress save themselves and can be resumed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(
        main,
        errors=(ValueError, RuntimeError, OSError),
        interrupted="interrupted; the same command resumes from here",
    )
