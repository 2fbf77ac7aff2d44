"""Ablate: train the base and variants of it on the same folds with the same seeds, and compare in pairs.

    python launch/ablate.py --config configs/ravdess.yaml --by fold --seeds 0 1 --dir runs/ravdess-ablations

Variants are lines of configs/ablations.yaml: each loss term off, AWM off, one modality alone or left
out, more prototypes.
Further options are those of launch/train.py and are passed to every run. Runs are shared, resumed and not
repeated as those of launch/cross_validate.py are, and a folder that it wrote can serve as DIR/base.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.config.option_types import path_argument
from awtpn.experiments.command_line import add_experiment_options, parse_own_options, run_script
from shards.storage.credentials import redact_command


def main(words: Sequence[str] | None = None) -> None:
    """Ablate as the command line says."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_experiment_options(parser, Path("runs/ablations"))
    parser.add_argument(
        "--variants", type=path_argument, metavar="YAML", help="default: configs/ablations.yaml"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="train these variants only, e.g. 'AWM off'"
    )
    options, training = parse_own_options(parser, words)

    from awtpn.config.command_line import parse_command_line
    from awtpn.experiments.ablation import VARIANTS_FILE, ablate, read_variants  # here: see cross_validate
    from awtpn.experiments.runner import PYTHON

    ablate(
        training,
        read_variants(options.variants or VARIANTS_FILE, options.only, parse_command_line(training)[0]),
        options.by,
        options.seeds,
        options.dir,
        parallel=options.jobs,
        launcher=shlex.split(options.launcher) if options.launcher else PYTHON,
        command=redact_command(["python", sys.argv[0], *words]),
    )


if __name__ == "__main__":
    run_script(main)
