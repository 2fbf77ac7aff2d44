"""The `awtpn` command: features into shards, training on them, trained models used and shared.

Launchers start it as a module, `-m awtpn.cli train`, or by the scripts in `launch/`, each of them a command.

- `parser`: all commands and their help
- `init`: configurations and launch scripts into a folder
- `train`: one run; `evaluate`: its metrics; `experiments`: cross-validate, ablate, compare-models
- `pack`, `extract`: features and recordings -> shards; `signature_options`: their options, from signatures;
  `dataset_summary`: what both print at the end
- `shards`: info, preview, verify, index, simulate
- `predict`: labels and weights of a dataset, and the page of `awtpn serve`; `predict_recordings`: labels and
  weights of recordings, with pictures
- `runs`: report, compare, doctor, and runs at URLs; `share`: export, push
- `bench`: the benchmarks' tables

A module here imports what parses the command line. What runs a command (torch, encoders, plots) is imported
by the command's run function, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from awtpn.config.program import AWTPN


def main(
    argv: Sequence[str] | None = None, script: str | None = None, program: Sequence[str] = AWTPN
) -> None:
    """Run the `awtpn` command.

    Args:
        argv: its words, without "awtpn"; default: those of `sys.argv`.
        script: the script that was started and stands for the first word.
        program: what was typed before the words.

    Raises:
        SystemExit: after `--help`; or with a one-line error, where something cannot be done.
    """
    from awtpn.cli.parser import ending, run_words  # here, since modules of this package import it
    from awtpn.config.entry_point import run_command

    words = without_rank(sys.argv[1:] if argv is None else argv)
    typed = ("python", script) if script else tuple(program)
    run_command(partial(run_words, typed), words, **ending(words))


def without_rank(words: Sequence[str]) -> list[str]:
    """The words without the --local_rank=N that the deepspeed launcher puts before a module's arguments.

    `awtpn train` keeps it behind its name, since it tells which launcher started the run.
    """
    if not (words and words[0].startswith("--local_rank=")):
        return list(words)
    rank, *others = words
    return [others[0], rank, *others[1:]] if others[:1] == ["train"] else others
