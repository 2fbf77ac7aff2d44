"""Evaluate a trained model on a split; on any number of ranks the metrics are the same.

python launch/evaluate.py --checkpoint runs/demo
python launch/evaluate.py --checkpoint my-model --data data/iemocap#all --select '{"session": "Ses05"}'
torchrun --nproc-per-node 4 launch/evaluate.py --checkpoint runs/meld --predictions answers.jsonl
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.config.entry_point import run_command
from awtpn.config.option_types import add_store_options, json_object, path_argument
from awtpn.distributed.accelerate_launch import start_missing_ranks


def main(words: Sequence[str] | None = None) -> None:
    """Evaluate as the command line says."""
    words = sys.argv[1:] if words is None else words
    start_missing_ranks([sys.argv[0], *words])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        required=True,
        metavar="RUN_OR_EXPORT",
        help="run, checkpoint or export folder",
    )
    parser.add_argument(
        "--data", metavar="URL", help="packed dataset (default: the one that the run was trained on)"
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
    add_store_options(parser)
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    options = parser.parse_args(words)

    from awtpn.training.evaluate import evaluate_command  # here, since `--help` needs no torch

    evaluate_command(options)


if __name__ == "__main__":
    run_command(main)
