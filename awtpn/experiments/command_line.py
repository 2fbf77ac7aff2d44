"""What the commands of many runs have in common: options, and what SIGTERM does."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

from awtpn.config.option_types import run_argument


def add_experiment_options(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Add the options that say which runs to make, where and how many at a time.

    Args:
        parser: of the command.
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
        type=run_argument,
        default=folder,
        help=f"folder of the runs and of the table, or its URL (default: {folder})",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time on this machine (default: 1)"
    )
    parser.add_argument(
        "--launcher",
        metavar="WORDS",
        help="command that starts each run, e.g. 'torchrun --nproc-per-node 8' (default: one process)",
    )


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM, which batch systems send, acts as Ctrl-C: the runs in progress save and can be resumed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
