"""The `awtpn` command: pack features into shards, inspect them, use and share trained models.

Training and evaluation are `launch/train.py` and `launch/evaluate.py`, since launchers start scripts.

- `parser`: all commands and their help
- `init`: configurations and launch scripts into a folder
- `pack`, `extract`: features and recordings -> shards; `signature_options`: their options, from signatures;
  `dataset_summary`: what both print at the end
- `shards`: info, preview, verify, index, simulate
- `predict`: labels and weights of a dataset; `predict_recordings`: the same of recordings, with pictures
- `runs`: report, compare, doctor; `share`: export, push
- `bench`: the benchmarks' tables

A module here imports what parses the command line. What runs a command (torch, encoders, plots) is imported
by the command's run function, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `awtpn` command.

    Args:
        argv: its words, without "awtpn"; default: those of `sys.argv`.

    Raises:
        SystemExit: after `--help`; or with a one-line error, where something cannot be done.
    """
    from awtpn.cli.parser import run_words  # imports every command, which a module of one command must not
    from awtpn.config.entry_point import run_command

    run_command(run_words, argv)
