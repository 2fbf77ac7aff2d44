"""`awtpn report`, `compare` and `doctor`: finished runs, and a run that is to start."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from awtpn.config.option_types import OR_DEMO, add_store_options, finite_number, path_argument, takes_dataset


def add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="finished runs -> one page: figures with intervals, classes, curves, cost, reproduction",
        description="Write a page on one run, on several seeds of it, or on a folder of folds and seeds (of "
        "awtpn cross-validate). Several runs are averaged, so they must be repetitions: alike in all but "
        "seed and utterances.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=path_argument, help="run folder, or a folder of runs"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="HTML",
        help="page to write (default: report.html in the first RUN)",
    )
    parser.add_argument(
        "--markdown",
        type=path_argument,
        metavar="MD",
        help="also write Markdown there; without --out, in place of HTML",
    )
    parser.set_defaults(command=run_report)


def run_report(options: argparse.Namespace) -> None:
    from awtpn.report.write import write_report

    html = options.out or (None if options.markdown else options.runs[0] / "report.html")
    for file in write_report(options.runs, html, options.markdown):
        print(f"report in {file}")


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare the data, losses and weights of two runs",
        description="Compare the utterances of every step, the losses and the weights of two runs of one "
        "task, and print the metrics of their test utterances. Runs of one configuration without dropout "
        "agree on any number of ranks and any engine. Exits with 1 where they differ.",
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
        if comparison.same_data:
            print("note: two runs agree only with the same settings and seed, and with model.dropout 0")
        sys.exit(1)


DOCTOR_HELP = """Find problems of a cluster before a run starts, and say how to repair them: versions that
differ between hosts, a run folder that is not shared, data that a rank cannot read, network addresses that
other hosts cannot reach. It also measures whether matrix products on the CPUs repeat bit for bit.

examples:
  awtpn doctor --data s3://corpus/meld
  torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint node-01:29400 \\
      -m awtpn.cli doctor --run_dir /shared/run --data s3://corpus/meld
  awtpn doctor --memory configs/large.yaml --ranks 8 64
"""


def add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="find problems of a machine or cluster before a run starts",
        description=DOCTOR_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run_dir", type=path_argument, metavar="DIR", help="run folder that all ranks will share"
    )
    parser.add_argument(
        "--data",
        nargs="*",
        default=[],
        metavar="URL",
        help=f"packed datasets that every rank must read, {OR_DEMO}",
    )
    takes_dataset(parser, "data")
    parser.add_argument(
        "--memory",
        nargs=argparse.REMAINDER,
        metavar="CONFIG",
        help="instead: estimate each rank's peak memory by ZeRO stage. All words that follow belong to it: "
        "CONFIG, [--ranks N ...] and overrides; see `awtpn doctor --memory --help`",
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
