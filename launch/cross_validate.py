"""Cross-validate: train once per value of a metadata column and seed, testing on the utterances left out.

    python launch/cross_validate.py --config configs/ravdess.yaml --data.train DATASET --by fold --seeds 0 1 2

Further options are those of launch/train.py and reach every run. A run that is done is not trained again.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.crossvalidation import cross_validate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--by", required=True, metavar="COLUMN", help="metadata column; each of its values is left out once"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="run.seed of each repetition")
    parser.add_argument(
        "--dir", type=Path, default=Path("runs/cross-validation"), help="folder of the runs and of the table"
    )
    options, training = parser.parse_known_args()
    cross_validate(training, options.by, options.seeds, options.dir)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError) as error:
        # Wrong settings or a failed run: the message says what to do, a traceback would bury it.
        sys.exit(f"error: {error}")
