"""`awtpn evaluate`: the metrics of a trained model on a split, on any number of ranks."""

from __future__ import annotations

import argparse
from typing import Any

from awtpn.config.option_types import (
    OR_DEMO,
    add_base_options,
    add_store_options,
    json_object,
    path_argument,
    run_argument,
    takes_dataset,
)

HELP = """Evaluate a trained model on a split; on any number of ranks the metrics are the same.

examples:
  awtpn evaluate runs/meld
  awtpn evaluate my-model --data data/iemocap#all --select '{"session": "Ses05"}'
  awtpn evaluate my-model --data data/other --target arousal,valence
  torchrun --nproc-per-node 4 launch/evaluate.py runs/meld --predictions answers.jsonl

Launchers that start modules take `-m awtpn.cli evaluate` in place of launch/evaluate.py.
"""


def add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="metrics of a trained model on a split, under any launcher",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=run_argument,
        nargs="?",
        help="run, checkpoint or export folder; or the URL of a run",
    )
    parser.add_argument(
        "--checkpoint",
        type=run_argument,
        metavar="MODEL",
        help="the same as MODEL: the option of earlier versions",
    )
    parser.needed = ["model"]
    parser.add_argument(
        "--data",
        metavar="URL",
        help=f"packed dataset, {OR_DEMO}; default: the one that the run was trained on",
    )
    takes_dataset(parser, "data")
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="what is true, if the data has it by another name than the model: a named target, or columns in "
        "the order of the model's, separated by commas (default: the model's own names)",
    )
    parser.add_argument("--split", metavar="NAME", help="split to evaluate (default: test)")
    parser.add_argument(
        "--select", type=json_object, metavar="JSON", help="utterances by metadata, e.g. '{\"fold\": 3}'"
    )
    parser.add_argument("--out", type=path_argument, metavar="FILE", help="write the metrics there, as JSON")
    parser.add_argument(
        "--predictions", type=path_argument, metavar="FILE", help="write a JSON line per utterance there"
    )
    parser.add_argument(
        "--cache_dir",
        type=path_argument,
        metavar="DIR",
        help="where remote shards are kept (default: $AWTPN_CACHE_DIR, or ~/.cache/awtpn-shards)",
    )
    add_base_options(parser)
    add_store_options(parser)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.set_defaults(command=run_evaluate, parser=parser)


def run_evaluate(options: argparse.Namespace) -> None:
    if options.model and options.checkpoint:
        options.parser.error(
            f"MODEL is {options.model} and --checkpoint is {options.checkpoint}: give only one of them"
        )
    options.checkpoint = options.checkpoint or options.model
    if not options.checkpoint:
        options.parser.error("the following arguments are required: MODEL")

    from awtpn.distributed.accelerate_launch import start_missing_ranks

    start_missing_ranks([*options.program.for_python, *options.words])

    from awtpn.training.evaluate import evaluate_command  # here, since `--help` needs no torch

    evaluate_command(options)
