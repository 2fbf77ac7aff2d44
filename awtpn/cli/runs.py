"""`awtpn report`, `compare`, `doctor` and `runs`: finished runs, one that is to start, and runs at URLs."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from awtpn.config.option_types import (
    OR_DEMO,
    add_store_options,
    finite_number,
    path_argument,
    run_argument,
    takes_dataset,
    takes_run,
)
from shards.safe_io.printable import plural, printable, table_lines
from shards.storage.local_path import is_remote


def add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="finished runs -> one page: figures with intervals, classes, curves, cost, reproduction",
        description="Write a page on one run, on several seeds of it, or on a folder of folds and seeds (of "
        "awtpn cross-validate). Several runs are averaged, so they must be repetitions: alike in all but "
        "seed and utterances.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=run_argument,
        help="run folder, or the URL of one; or a folder of runs",
    )
    takes_run(parser, "runs", "cards")
    parser.add_argument(
        "--out",
        type=path_argument,
        metavar="HTML",
        help="page to write (default: report.html in the first RUN, also where that is a URL)",
    )
    parser.add_argument(
        "--markdown",
        type=path_argument,
        metavar="MD",
        help="also write Markdown there; without --out, in place of HTML",
    )
    add_store_options(parser)
    parser.set_defaults(command=run_report)


def run_report(options: argparse.Namespace) -> None:
    from awtpn.report.write import write_report

    html = options.out or (None if options.markdown else options.runs[0] / "report.html")
    for file in write_report(options.runs, html, options.markdown):
        given = options.runs_given[0]
        if file == html and not options.out and isinstance(given, str):
            from awtpn.run.remote.commands import send_back

            print(f"report in {send_back(given, file, options.storage_options)}")
        else:
            print(f"report in {file}")


def add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare the data, losses and weights of two runs",
        description="Compare the utterances of every step, the losses and the weights of two runs of one "
        "task, and print the metrics of their test utterances. Runs of one configuration without dropout "
        "agree on any number of ranks and any engine. Exits with 1 where they differ.",
    )
    parser.add_argument("a", metavar="RUN_A", type=run_argument, help="run folder, or the URL of one")
    parser.add_argument("b", metavar="RUN_B", type=run_argument, help="run to compare it with")
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
    add_store_options(parser)
    parser.set_defaults(command=run_compare)


def run_compare(options: argparse.Namespace) -> None:
    from awtpn.run.compare import compare_runs, format_comparison
    from awtpn.run.remote.commands import run_folder

    a, b = (run_folder(run, "checkpoints", options.storage_options) for run in (options.a, options.b))
    comparison = compare_runs(a, b)
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
  awtpn doctor --scaling configs/large.yaml --steps audio=120 video=60 --features audio=1024 video=512
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
    parser.add_argument(
        "--scaling",
        nargs=argparse.REMAINDER,
        metavar="CONFIG",
        help="instead: predict a step's time and its parts on 8, 64 and 512 GPUs of a stated network. All "
        "words that follow belong to it; see `awtpn doctor --scaling --help`",
    )
    add_store_options(parser)
    parser.set_defaults(command=run_doctor)


def run_doctor(options: argparse.Namespace) -> None:
    if options.memory is not None:
        from awtpn.bench.memory_table import report

        print(report(options.memory))
        return
    if options.scaling is not None:
        from awtpn.bench.scaling.command import report as scaling_report

        print(scaling_report(options.scaling))
        return
    from awtpn.distributed.doctor import doctor_main

    if not doctor_main(options.run_dir, options.data, options.storage_options):
        sys.exit(1)


RUNS_HELP = """Runs whose run.dir is a URL (s3://, gs://, sftp://, ...): list them, copy them, delete them;
and the status of any run, for scripts.

examples:
  awtpn runs list s3://bucket/runs
  [ "$(awtpn runs status s3://bucket/runs/meld-7)" = preempted ] && echo "start it again"
  awtpn runs pull s3://bucket/runs/meld-7 runs/meld-7
  awtpn runs delete s3://bucket/runs/meld-7 --yes
"""


def add_runs(commands: Any) -> None:
    parser = commands.add_parser(
        "runs",
        help="runs in object storage: list, status, pull, delete",
        description=RUNS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=lambda options: parser.print_help())
    actions = parser.add_subparsers(metavar="ACTION")
    _add_action(
        actions, "list", "status, latest checkpoint and use of a run, or of all in a folder", run_list
    )
    status = actions.add_parser(
        "status",
        help="one word for scripts: running, preempted, done or failed",
        description="Print what status.json of a run says, as one word: running, preempted, done or failed. "
        "A run that was killed still says running.",
    )
    status.add_argument("run", metavar="RUN", type=run_argument, help="run folder, or the URL of one")
    add_store_options(status)
    status.set_defaults(command=run_status)
    pull = _add_action(actions, "pull", "copy a run into a folder on this machine", run_pull)
    pull.add_argument("out", metavar="DIR", type=path_argument, help="folder to write; must not exist")
    pull.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME",
        help="checkpoint to copy, such as step-00000120; may be repeated (default: the latest and the best)",
    )
    delete = _add_action(actions, "delete", "delete a run with all its checkpoints", run_delete)
    delete.add_argument("--yes", action="store_true", help="do it; without, only say what would be deleted")


def _add_action(actions: Any, name: str, about: str, command: Any) -> Any:
    parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    parser.add_argument("url", metavar="URL", type=_url, help="run folder, any fsspec URL")
    add_store_options(parser)
    parser.set_defaults(command=command)
    return parser


def _url(text: str) -> str:
    if not is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} is a path on this machine: give the URL of a run folder")
    return text


def run_list(options: argparse.Namespace) -> None:
    from awtpn.run.remote.commands import list_runs

    rows = [("RUN", "STATUS", "LATEST", "LEASE")]
    for run in list_runs(options.url, options.storage_options):
        rows.append((run.url, run.status, run.checkpoint, run.in_use))
    print("\n".join(table_lines(rows)))


def run_status(options: argparse.Namespace) -> None:
    from awtpn.run.remote.commands import read_status

    print(printable(read_status(options.run, options.storage_options)))


def run_pull(options: argparse.Namespace) -> None:
    from awtpn.run.remote.commands import pull_run

    folder = pull_run(options.url, options.out, options.checkpoint, options.storage_options)
    print(f"run in {folder}")


def run_delete(options: argparse.Namespace) -> None:
    from awtpn.run.remote.commands import delete_run, list_runs, open_run

    if not options.yes:
        open_run(options.url, options.storage_options)
        [run] = list_runs(options.url, options.storage_options)
        raise ValueError(
            f"{run.url} (status {run.status}, latest checkpoint {run.checkpoint}, {run.in_use}) is deleted "
            "with all its checkpoints only with --yes"
        )
    number, others = delete_run(options.url, options.storage_options)
    print(f"{plural(number, 'file')} deleted")
    if others:
        print(printable(f"not deleted, since not of the run: {', '.join(others[:5])}"))
