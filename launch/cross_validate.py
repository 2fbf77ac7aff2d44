"""Cross-validate: train once per value of a metadata column and seed, testing on the utterances left out.

    python launch/cross_validate.py --config configs/ravdess.yaml --by fold --seeds 0 1 2 --dir runs/ravdess
    python launch/cross_validate.py --config configs/meld.yaml --seeds 0 1 2 3 4 --dir runs/meld-seeds
    python launch/cross_validate.py --config configs/iemocap.yaml --by session --dir runs/iemocap-cv \\
        --sweep optim.lr=1e-4,3e-4,1e-3 --sweep model.dropout=0.1,0.3 --jobs 8

Further options are those of launch/train.py and are passed to every run. A run that is done is not trained
again, an interrupted one is resumed. The same command in several terminals, jobs or nodes shares the runs
between them. At the end it prints the table and writes report.html and report.md to --dir.

--sweep tries a grid of settings and chooses one for each fold by its own training groups (nested
cross-validation; without --by: by the split "val"). Test utterances are never used to choose.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.experiments.command_line import add_experiment_options, parse_own_options, run_script
from shards.storage.credentials import redact_command


def main(words: Sequence[str] | None = None) -> None:
    """Cross-validate as the command line says."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_experiment_options(parser, Path("runs/cross-validation"))
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="values to choose from; several make a grid",
    )
    parser.add_argument(
        "--no-baseline",
        action="store_true",
        help="leave out the logistic regression, which needs scikit-learn",
    )
    options, training = parse_own_options(parser, words)

    from awtpn.experiments.crossvalidation import cross_validate  # here, since `--help` needs no torch
    from awtpn.experiments.runner import PYTHON

    cross_validate(
        training,
        options.by,
        options.seeds,
        options.dir,
        sweep=options.sweep,
        parallel=options.jobs,
        launcher=shlex.split(options.launcher) if options.launcher else PYTHON,
        baseline=not options.no_baseline,
        command=redact_command(["python", sys.argv[0], *words]),
    )


if __name__ == "__main__":
    run_script(main)
