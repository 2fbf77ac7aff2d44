"""Evaluate a trained model on a split, alone or over many ranks, with the same figures.

python launch/evaluate.py --checkpoint runs/demo --data DATASET --split test
torchrun --nproc-per-node 4 launch/evaluate.py --checkpoint EXPORT --data s3://corpus/iemocap
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.distributed import start_missing_ranks
from awtpn.evaluation import evaluate_command


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN_OR_EXPORT", help="run, checkpoint or export folder"
    )
    parser.add_argument(
        "--data", metavar="URL", help="packed dataset; default: the one that the run was trained on"
    )
    parser.add_argument("--split", default="test", help="split to evaluate (default: test)")
    parser.add_argument("--select", type=json.loads, help="utterances by metadata, as JSON: '{\"fold\": 3}'")
    parser.add_argument("--out", metavar="FILE", help="write the figures there, as JSON")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write a JSON line per utterance there"
    )
    parser.add_argument("--cache_dir", help="where remote shards are kept")
    parser.add_argument("--storage_options", type=json.loads, help="options for fsspec, as JSON")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    evaluate_command(parser.parse_args())


if __name__ == "__main__":
    start_missing_ranks(sys.argv)
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
