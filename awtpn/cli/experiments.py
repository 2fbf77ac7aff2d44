"""`awtpn cross-validate`, `awtpn ablate` and `awtpn compare-models`: many runs as one experiment."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awtpn.config.command_parser import CONFIG_AND_KEYS
from awtpn.config.option_types import path_argument
from awtpn.experiments.command_line import add_experiment_options, sigterm_as_interrupt
from shards.storage.credentials import redact_command

if TYPE_CHECKING:
    from awtpn.config.schema import Config

ENDING: dict[str, Any] = {
    "errors": (ValueError, RuntimeError, OSError),
    "interrupted": "interrupted; the same command resumes from here",
}
CROSS_VALIDATE_HELP = """Cross-validate: train once per value of a metadata column and seed, and test on the
utterances that are left out.

    awtpn cross-validate --config configs/ravdess.yaml --by fold --seeds 0 1 2 --dir runs/ravdess
    awtpn cross-validate --config configs/meld.yaml --seeds 0 1 2 3 4 --dir runs/meld-seeds
    awtpn cross-validate --config configs/iemocap.yaml --by session --dir runs/iemocap-cv \\
        --sweep optim.lr=1e-4,3e-4,1e-3 --sweep model.dropout=0.1,0.3 --jobs 8

Further options are those of `awtpn train` and are passed to every run. A run that is done is not trained
again, an interrupted one is resumed. The same command in several terminals, jobs or nodes shares the runs
between them. At the end it prints the table and writes report.html and report.md to --dir.

--sweep tries a grid of settings and chooses one for each fold by its own training groups (nested
cross-validation; without --by: by the split "val"). Test utterances are never used to choose.
train.best_by names the metric that decides; default: w-F1, MAE (the least) or F1, by the task.

The baseline is a linear model on pooled features: logistic regression of the classes or of each label, or
ridge regression of values. To print it alone, without training:

    awtpn cross-validate --baseline_only --data.train URL --data.target valence
"""
ABLATE_HELP = """Ablate: train the base and variants of it on the same folds with the same seeds, and compare
them in pairs.

    awtpn ablate --config configs/ravdess.yaml --by fold --seeds 0 1 --dir runs/ravdess-ablations

Variants are lines of configs/ablations.yaml: each loss term off, AWM off, one modality, more prototypes.
Those that the task does not have are left out. They are compared by train.best_by; default: w-F1, MAE or F1,
by the task.
Further options are those of `awtpn train` and are passed to every run. Runs are shared, resumed and not
repeated as those of `awtpn cross-validate` are, and a folder that it wrote can serve as DIR/base.
"""
COMPARE_HELP = """Compare models: train several models on several datasets with the same folds and seeds, and
report which is better on which data, with intervals.

    awtpn compare-models --data.train data/mine --by speaker --seeds 0 1 2 --dir runs/compare
    awtpn compare-models --suite suite --sources data/sources --seeds 0 1 2 3 4 --dir runs/suite --jobs 2

With --data.train or --config, your data is the only dataset, and the suite gives the models. Else the
datasets are those of the suite; configs/comparison/suite.yaml shows how to write one. Further options are
those of `awtpn train` and are passed to every run. Runs are shared, resumed and not repeated as those of
`awtpn cross-validate` are. The report is comparison.html, comparison.md and comparison.json in --dir.

--nested also trains with settings that each fold chooses from the suite's grid by its own training groups
(without folds: by the split "val"). --curves also trains on made-up data, and changes one property at a time.
"""


def add_cross_validate(commands: Any) -> None:
    parser = _add(
        commands,
        "cross-validate",
        "many runs: folds, seeds, a sweep of settings; a table and a report",
        CROSS_VALIDATE_HELP,
        Path("runs/cross-validation"),
    )
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="values to choose from; several make a grid",
    )
    parser.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        help="fit the baseline, or leave it out; it needs scikit-learn (default: fit it with --by)",
    )
    parser.add_argument(
        "--baseline_only", action="store_true", help="train nothing: print the figures of the baseline"
    )
    parser.set_defaults(command=run_cross_validate)


def run_cross_validate(options: argparse.Namespace) -> None:
    training, _ = _training(options)

    # Here, since `--help` needs no torch.
    from awtpn.experiments.crossvalidation import cross_validate, print_baseline

    if options.baseline_only:
        print_baseline(training, options.by)
        return
    with sigterm_as_interrupt():
        cross_validate(
            training,
            options.by,
            options.seeds,
            options.dir,
            sweep=options.sweep,
            parallel=options.jobs,
            launcher=_launcher(options),
            baseline=options.baseline,
            command=redact_command([*options.program.typed, *options.words]),
        )


def add_ablate(commands: Any) -> None:
    parser = _add(
        commands,
        "ablate",
        "many runs: variants of a configuration, compared with it",
        ABLATE_HELP,
        Path("runs/ablations"),
    )
    parser.add_argument(
        "--variants",
        type=path_argument,
        metavar="YAML",
        help="file of the variants (default: configs/ablations.yaml)",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="train these variants only, e.g. 'AWM off'"
    )
    parser.set_defaults(command=run_ablate)


def run_ablate(options: argparse.Namespace) -> None:
    training, base = _training(options)

    from awtpn.experiments.ablation import VARIANTS_FILE, ablate, read_variants  # here: see cross-validate
    from awtpn.experiments.folds import task_type_of_data

    with sigterm_as_interrupt():
        ablate(
            training,
            read_variants(options.variants or VARIANTS_FILE, options.only, base, task_type_of_data(base)),
            options.by,
            options.seeds,
            options.dir,
            parallel=options.jobs,
            launcher=_launcher(options),
            command=redact_command([*options.program.typed, *options.words]),
        )


def add_compare_models(commands: Any) -> None:
    parser = _add(
        commands,
        "compare-models",
        "many runs: several models on several datasets, and a report",
        COMPARE_HELP,
        Path("runs/comparison"),
    )
    parser.add_argument(
        "--suite",
        type=path_argument,
        metavar="YAML",
        help="file of datasets and models (default: configs/comparison/suite.yaml)",
    )
    parser.add_argument(
        "--sources",
        type=path_argument,
        metavar="DIR",
        help="folder of the sources that the suite packs; without it these datasets are left out",
    )
    parser.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help="only these datasets")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="only these models")
    parser.add_argument("--nested", action="store_true", help="also choose settings from the suite's grid")
    parser.add_argument("--curves", action="store_true", help="also train on the suite's made-up data")
    parser.set_defaults(command=run_compare_models)


def run_compare_models(options: argparse.Namespace) -> None:
    training, config = _training(options)

    from awtpn.experiments.comparison.compare import compare_models  # here: see cross-validate
    from awtpn.experiments.comparison.suite import SUITE_FILE, name_of_data, read_suite, with_own_data

    suite = read_suite(options.suite or SUITE_FILE, options.datasets, options.models)
    has_own_data = any(word.startswith(("--data.train", "--config")) for word in training)
    if has_own_data:
        if given := [name for name in ("sources", "datasets", "curves") if getattr(options, name)]:
            raise ValueError(
                f"--{given[0]} is for the suite's data; leave it out, or --data.train and --config"
            )
        suite = with_own_data(suite, name_of_data(config.data.train), options.by)
    elif options.by is not None:
        raise ValueError(
            "--by: the suite names the column of each of its datasets; leave it out, or give --data.train"
        )
    with sigterm_as_interrupt():
        compare_models(
            suite,
            training,
            options.seeds,
            options.dir,
            sources=options.sources,
            nested=options.nested,
            curves=options.curves,
            parallel=options.jobs,
            launcher=_launcher(options),
            command=redact_command([*options.program.typed, *options.words]),
        )


def _add(commands: Any, name: str, about: str, description: str, folder: Path) -> Any:
    """A command of many runs, with the options that all of them take; `folder` is the default of --dir."""
    parser = commands.add_parser(
        name,
        help=about,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --data must not pass for an option of ours
    )
    parser.passes_on = CONFIG_AND_KEYS
    parser.set_defaults(parser=parser)
    add_experiment_options(parser, folder)
    return parser


def _training(options: argparse.Namespace) -> tuple[list[str], Config]:
    """The words of every run, and the configuration they give. Wrong ones end the program before any run."""
    from awtpn.config.command_line import parse_command_line  # here, since `--help` needs no jsonargparse

    config, _ = parse_command_line(options.passed_on, options.program, also=options.parser.options)
    return list(options.passed_on), config


def _launcher(options: argparse.Namespace) -> Sequence[str]:
    from awtpn.experiments.runner import PYTHON

    return shlex.split(options.launcher) if options.launcher else PYTHON
