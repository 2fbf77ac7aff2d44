"""The `awtpn` command: pack features into shards, look at them, use and share trained models.

Training and evaluation are `launch/train.py` and `launch/evaluate.py`, since launchers start scripts.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from awtpn.cli.bench import add_bench
from awtpn.cli.extract import add_extract
from awtpn.cli.pack import add_pack
from awtpn.cli.paths import path_argument
from awtpn.cli.shards import add_shards, add_store_options, finite_number
from awtpn.cli.share import add_export, add_push, add_report
from awtpn.config.entry_point import data_output, run_command
from awtpn.run.atomic_write import open_atomic
from shards import FeatureStream
from shards.format.split_names import named_once
from shards.safe_io.json_text import json_text
from shards.safe_io.versions import installed_version
from shards.storage.local_path import local_or_url


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `awtpn` command with these words (default: those it was started with).

    Raises:
        SystemExit: with a line for people, where something cannot be done; or after `--help`.
    """
    run_command(run_words, argv)


def run_words(words: Sequence[str]) -> None:
    """Parse the words and run the command that they name; `options.words` keeps them for the record."""
    options = make_parser().parse_args(words)
    options.words = list(words)
    options.command(options)


HELP = "Pack features into shards and look at them; use, report on and share trained models."
EXAMPLES = """examples:
  awtpn extract recordings data/mine              recordings/LABEL/clip.mp4 -> features in shards
  python launch/train.py --data.train data/mine   train on them; torchrun, accelerate and deepspeed, too
  awtpn report runs/mine-20260101-120000          figures with intervals, curves, cost
  awtpn predict runs/mine-20260101-120000 clip.mp4

awtpn COMMAND --help tells what a command takes.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `options.command(options)` runs the one that was chosen."""
    parser = argparse.ArgumentParser(
        prog="awtpn",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=installed(), help="print the version and exit")
    parser.set_defaults(command=lambda options: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    add_pack(commands)
    add_extract(commands)
    add_shards(commands)
    add_predict(commands)
    add_report(commands)
    add_export(commands)
    add_push(commands)
    add_compare(commands)
    add_doctor(commands)
    add_bench(commands)
    return parser


def installed() -> str:
    """ "awtpn 1.2.3", by the package that is installed."""
    version = installed_version("awtpn-at-scale")
    return f"awtpn {version}" if version else "awtpn, not installed but started from its folder"


# --- models --------------------------------------------------------------------------------------


PREDICT_HELP = """Write a JSON line for each utterance: its label, the classes' probabilities, and how much
each of its steps counted (the reliability weights of sound and picture).

INPUT is a packed dataset, or recordings. Features of recordings are made as those were that the model was
trained on, so it must have been trained on what `awtpn extract` made.

examples:
  awtpn predict runs/mine clip.mp4 --png pictures
  awtpn predict my-model s3://corpus/meld --split val --out answers.jsonl
"""


def add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="labels, probabilities and reliability weights, a JSON line each",
        description=PREDICT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=path_argument,
        help="run, checkpoint or export folder, or USER/MODEL on the Hugging Face Hub",
    )
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=local_or_url,
        nargs="+",
        help="a packed dataset, any fsspec URL (URL#split names a split); or recordings, sound or video",
    )
    parser.add_argument(
        "--png",
        metavar="DIR",
        type=path_argument,
        help="recordings: draw each answer there, with its weights",
    )
    for modality in ("audio", "video"):
        parser.add_argument(
            f"--{modality}",
            metavar="ENCODER",
            help=f"recordings: where the {modality} encoder is now, if it moved",
        )
    parser.add_argument("--split", metavar="NAME", help="of a dataset (default: test)")
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help="file to write (default: standard output)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    add_store_options(parser)
    parser.set_defaults(command=run_predict)


def run_predict(options: argparse.Namespace) -> None:
    from awtpn.cli.predict import are_recordings, run_recordings
    from awtpn.inference.predictor import Predictor
    from awtpn.run.data import check_feature_space

    of_recordings = are_recordings(options.input)
    for name in ("png", "audio", "video"):
        if getattr(options, name) and not of_recordings:
            raise ValueError(f"--{name} is for recordings, and {options.input[0]} is a dataset: leave it out")
    split = None if of_recordings else named_once(options.input[0], options.split)
    predictor = Predictor.from_pretrained(options.model, options.device)
    if of_recordings:
        run_recordings(predictor, options)
        return
    stream = FeatureStream(
        options.input[0],
        split=split or "test",
        shuffle=False,
        modalities=list(predictor.model.feature_dims),
        storage_options=options.storage_options,
    )
    check_feature_space(predictor.model, stream)
    with open_atomic(options.out) if options.out else contextlib.nullcontext(data_output()) as file:
        for key, prediction in predictor.predict_stream(stream):
            file.write(json_text({"key": key, **prediction.as_json()}) + "\n")


# --- runs ----------------------------------------------------------------------------------------


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="two runs: same data? same losses? same weights?",
        description="Tell whether two runs saw the same utterances at every step and learned the same from "
        "them, as runs of one configuration must, whatever their ranks and engine. Exits with 1 if not.",
    )
    parser.add_argument("a", metavar="RUN_A", type=path_argument, help="run folder")
    parser.add_argument("b", metavar="RUN_B", type=path_argument, help="run folder to compare it with")
    parser.add_argument(
        "--loss_tolerance",
        type=finite_number,
        default=1e-5,
        metavar="X",
        help="largest relative difference of a loss at any step (default: 1e-5)",
    )
    parser.add_argument(
        "--weight_tolerance",
        type=finite_number,
        default=1e-4,
        metavar="X",
        help="largest absolute difference of a weight in the latest checkpoints (default: 1e-4)",
    )
    parser.set_defaults(command=run_compare)


def run_compare(options: argparse.Namespace) -> None:
    from awtpn.run.compare import compare_runs, format_comparison

    comparison = compare_runs(options.a, options.b)
    print(format_comparison(comparison))
    equal = (
        comparison.same_data
        and comparison.largest_loss_gap <= options.loss_tolerance
        and comparison.largest_weight_gap <= options.weight_tolerance
    )
    print("equal within tolerance" if equal else "NOT equal within tolerance")
    if not equal:
        sys.exit(1)


DOCTOR_HELP = """Find what would spoil a run before it begins, and say how to repair it: versions that differ
between hosts, a run folder that is not shared, data that a rank cannot read, addresses that are of no use. It
also measures whether matrix products on the CPUs repeat bit for bit.

examples:
  awtpn doctor --data s3://corpus/meld
  torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint node-01:29400 \\
      -m awtpn.cli doctor --run_dir /shared/run --data s3://corpus/meld
  awtpn doctor --memory configs/large.yaml --ranks 8 64
"""


def add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="find what would spoil a run before it begins",
        description=DOCTOR_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run_dir", type=path_argument, metavar="DIR", help="run folder that the ranks would share"
    )
    parser.add_argument(
        "--data", nargs="*", default=[], metavar="URL", help="packed datasets that every rank must read"
    )
    parser.add_argument(
        "--memory",
        nargs=argparse.REMAINDER,
        metavar="CONFIG",
        help="instead: estimate each rank's peak memory by ZeRO stage. Takes all words that follow: CONFIG, "
        "[--ranks N ...] and overrides; `awtpn doctor --memory --help` tells them",
    )
    add_store_options(parser)
    parser.set_defaults(command=run_doctor)


def run_doctor(options: argparse.Namespace) -> None:
    if options.memory is not None:
        from awtpn.bench.memory_table import report

        print(report(options.memory))
        return
    from awtpn.distributed.doctor import doctor_main

    if not doctor_main(options.run_dir, options.data, options.storage_options):
        sys.exit(1)
