"""Cross-validate: train once per value of a metadata column and seed, testing on the utterances left out.

    python launch/cross_validate.py --config configs/ravdess.yaml --by fold --seeds 0 1 2 --dir runs/ravdess
    python launch/cross_validate.py --config configs/meld.yaml --seeds 0 1 2 3 4 --dir runs/meld-seeds
    python launch/cross_validate.py --config configs/iemocap.yaml --by session --dir runs/iemocap-cv \\
        --sweep optim.lr=1e-4,3e-4,1e-3 --sweep model.dropout=0.1,0.3 --jobs 8

Further options are those of launch/train.py and reach every run. A run that is done is not trained again, one
that was interrupted goes on; the same command in several terminals, jobs or nodes shares the runs between
them. It ends with the table and with report.html and report.md in --dir.

--sweep tries a grid and chooses for every fold on its own training groups (nested cross-validation; without
--by on the split "val"): test utterances never choose.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from awtpn.cli.paths import path_argument
from awtpn.config.entry_point import run_command
from awtpn.experiments.crossvalidation import cross_validate
from awtpn.experiments.runner import PYTHON
from shards.storage.credentials import redact_command


def main(words: Sequence[str] | None = None) -> None:
    """Cross-validate as the command line says."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser, Path("runs/cross-validation"))
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="values to choose from; several make a grid",
    )
    parser.add_argument("--no-baseline", action="store_true", help="leave out the logistic regression")
    options, training = parse(parser, words)
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


def add_options(parser: argparse.ArgumentParser, folder: Path) -> None:
    """What every experiment of many runs is told."""
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
        type=path_argument,
        default=folder,
        help=f"folder of the runs and of the table (default: {folder})",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time on this machine (default: 1)"
    )
    parser.add_argument(
        "--launcher", metavar="WORDS", help="what starts each run, e.g. 'torchrun --nproc-per-node 8'"
    )


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and the others, which are those of launch/train.py."""
    own = parser.format_usage().removeprefix("usage: ").rstrip()
    parser.usage = f"{own}\n{' ' * len(f'usage: {parser.prog} ')}[--config FILE] [--SECTION.KEY VALUE ...]"
    return parser.parse_known_args(words)


def run_script(main: Callable[[list[str]], object]) -> None:
    """Run a script's `main`; what a user can set right ends in a line, not in a traceback."""
    # A batch system's SIGTERM is an interrupt: runs in progress save themselves and can go on.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_command(
        main,
        errors=(ValueError, RuntimeError, OSError),
        interrupted="interrupted; the same command goes on from here",
    )


if __name__ == "__main__":
    run_script(main)
