"""Evaluate a trained model on a split, alone or over many ranks, with the same figures.

python launch/evaluate.py --checkpoint runs/demo
python launch/evaluate.py --checkpoint my-model --data data/iemocap#all --select '{"session": "Ses05"}'
torchrun --nproc-per-node 4 launch/evaluate.py --checkpoint runs/meld --predictions answers.jsonl
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.cli.shards import json_object
from awtpn.evaluation import evaluate_command
from awtpn.launcher import start_missing_ranks
from shards.printable import printable_lines


def main() -> None:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN_OR_EXPORT", help="run, checkpoint or export folder"
    )
    parser.add_argument(
        "--data", metavar="URL", help="packed dataset (default: the one that the run was trained on)"
    )
    parser.add_argument("--split", default="test", metavar="NAME", help="split to evaluate (default: test)")
    parser.add_argument(
        "--select", type=json_object, metavar="JSON", help="utterances by metadata, e.g. '{\"fold\": 3}'"
    )
    parser.add_argument("--out", metavar="FILE", help="write the figures there, as JSON")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write a JSON line per utterance there"
    )
    parser.add_argument(
        "--cache_dir", metavar="DIR", help="where remote shards are kept (default: ~/.cache/awtpn-shards)"
    )
    parser.add_argument(
        "--storage_options",
        type=json_object,
        metavar="JSON",
        help='options for fsspec, e.g. \'{"endpoint_url": "https://..."}\'',
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    evaluate_command(parser.parse_args())


if __name__ == "__main__":
    try:
        start_missing_ranks(sys.argv)
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {printable_lines(error)}")
