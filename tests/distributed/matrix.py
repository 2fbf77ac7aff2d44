"""The full matrix of layouts, each held to one process: a table of how far apart they are.

    python tests/distributed/matrix.py                                  # the demo corpus
    python tests/distributed/matrix.py --data data/ravdess --fold 3     # packed, with a column "fold"
    python tests/distributed/matrix.py --precision bf16                 # beside float32 on one process
    python tests/distributed/matrix.py --out matrix.md                  # the table in a file, too

Ranks 1, 2 and 4, accumulation 1, 2 and 4, no engine or DDP and ZeRO 1, 2 and 3 with every parameter
partitioned, prototypes by gradient and by class means, negatives by group and global: 50 steps in float32
without dropout at one global batch size. Ends with an error if fingerprints differ, a loss is more than 1e-5
apart relatively, a weight more than 1e-4, or validation differs at all. (In bf16: a loss more than 1e-2;
weights and validation are shown, not judged.) Two cores take some minutes; `test_layouts_agree.py` holds a
part of it to the same.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from ranks_support import run_ranks  # noqa: E402
from support import arguments  # noqa: E402

from awtpn.run.compare import compare_runs  # noqa: E402

BATCH = 32
BASE: dict[str, Any] = {
    "model.shared_dim": 32,
    "model.dropout": 0.0,
    "loss.negative_group": 2,  # divides the smallest micro-batch
    "train.epochs": 100,
    "train.pictures": "never",
    "train.global_batch_size": BATCH,
    "train.validate_every": 100,
    "prototypes.check_every": 10,
}
LESSONS: dict[str, dict[str, Any]] = {
    "gradient": {},
    "class means": {"prototypes.update": "ema"},
    "global negatives": {"loss.negatives": "global"},
}
BF16_BAND = 1e-2  # relative, at every one of the first 50 steps
Layout = tuple[int, int, int | None]  # ranks, accumulation, ZeRO stage


def job(lesson: str, layout: Layout, data: dict[str, Any], run: Path, zero3: Path) -> dict[str, Any]:
    ranks, accumulation, stage = layout
    settings = BASE | LESSONS[lesson] | data | {"run.dir": run}
    settings["train.micro_batch_size"] = BATCH // ranks // accumulation
    if stage == 3:
        settings["deepspeed"] = zero3
    elif stage is not None:
        settings["train.zero_stage"] = stage
    return {"train": arguments(settings)}


def validation(run: Path) -> Any:
    """Which utterances were taken for what; every metric follows from it."""
    return json.loads((run / "results.json").read_text())["val"]["confusion_matrix"]


def heading(options: argparse.Namespace) -> list[str]:
    """What the table of a file is of: command, and what it ran on."""
    machine = f"{os.cpu_count()} cores, PyTorch {torch.__version__}, DeepSpeed {version('deepspeed')}"
    command = shlex.join(["python", *sys.argv])
    return [
        f"# Layouts beside one process, {options.precision}, {options.steps} steps",
        "",
        f"Made by `{command}` on {date.today()}: {machine}. Largest relative difference of a loss at any "
        "step, largest absolute difference of a weight at the end, and the validation's confusion matrix.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="demo", help="packed dataset (default: the demo corpus)")
    parser.add_argument("--fold", type=int, help="validate on this value of the column fold")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--accumulations", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path, metavar="MD", help="write the table there, too")
    parser.add_argument("--lessons", nargs="+", default=list(LESSONS), choices=list(LESSONS))
    options = parser.parse_args()
    data: dict[str, Any] = {"data.train": options.data, "train.max_steps": options.steps}
    if options.fold is not None:
        others = [fold for fold in range(4) if fold != options.fold]
        data |= {"data.select.train": f"{{fold: {others}}}", "data.select.val": f"{{fold: {options.fold}}}"}

    root = Path(tempfile.mkdtemp(prefix="matrix-"))
    zero3 = root / "zero3.json"
    # Parameters of fewer elements are never partitioned, and these are all small.
    zero3.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    wanted: list[tuple[str, Layout]] = [
        (lesson, layout)
        for lesson in options.lessons
        for layout in itertools.product(options.ranks, options.accumulations, (None, 1, 2, 3))
    ]
    folder = {case: root / f"run-{i}" for i, case in enumerate(wanted)}
    for ranks in options.ranks:
        mine = [case for case in wanted if case[1][0] == ranks]
        print(f"{len(mine)} runs on {ranks} ranks", file=sys.stderr)
        precision = {"train.precision": options.precision}
        run_ranks([job(*case, data | precision, folder[case], zero3) for case in mine], ranks, root, 3600)
    alone = {lesson: root / f"alone-{i}" for i, lesson in enumerate(options.lessons)}
    run_ranks([job(lesson, (1, 1, None), data, run, zero3) for lesson, run in alone.items()], 1, root, 3600)

    lines = [
        "| lesson | ranks | accumulation | engine | losses apart | weights apart | validation |",
        "|---|---|---|---|---|---|---|",
    ]
    failed = 0
    for lesson, layout in wanted:
        ranks, accumulation, stage = layout
        run = folder[lesson, layout]
        found = compare_runs(alone[lesson], run)
        same = validation(alone[lesson]) == validation(run)
        exact = found.largest_loss_gap <= 1e-5 and found.largest_weight_gap <= 1e-4 and same
        close = exact if options.precision == "fp32" else found.largest_loss_gap <= BF16_BAND
        good = found.same_data and found.steps == options.steps and close
        failed += not good
        engine = f"ZeRO {stage}" if stage else "DDP" if ranks > 1 else "none"
        lines.append(
            f"| {lesson} | {ranks} | {accumulation} | {engine} | {found.largest_loss_gap:.1e} "
            f"| {found.largest_weight_gap:.1e} | {'same' if same else 'DIFFERS'} |{'' if good else ' FAILED'}"
        )
    lines += ["", f"{len(wanted)} layouts, {failed} not equal to one process"]
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join([*heading(options), *lines]) + "\n")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
