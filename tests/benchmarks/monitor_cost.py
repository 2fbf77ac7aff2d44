"""What TensorBoard, metrics.jsonl and their pictures cost of a run's time.

    python tests/benchmarks/monitor_cost.py                                  # the demo
    python tests/benchmarks/monitor_cost.py --config configs/ravdess.yaml --data.train data/ravdess \\
        --data.select.train '{fold: [0, 1]}' --data.select.val '{fold: 2}' --data.select.test '{fold: 3}'

Takes the arguments of launch/train.py. Times every function that exists for being looked at, in a real run of
one process, and prints its share of the time from the first step to the results (matplotlib's import is in
that of the first picture).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from awtpn.tracking import figures, monitor, tensorboard
from awtpn.tracking.snapshot import SnapshotCollector
from awtpn.training import step, trainer

# What is timed: where the name stands that is called, and what it is for. None of them calls another.
PARTS: list[tuple[Any, str, str]] = [
    (monitor.Monitor, "log_step", "scalars of each step"),
    (monitor.Monitor, "log_pace", "throughput, memory"),
    (step, "batch_cost", "FLOPs, bytes and padding of each step"),
    (SnapshotCollector, "add", "collecting in validations"),
    (SnapshotCollector, "gather", "gathering over ranks"),
    (tensorboard.Board, "settings", "settings, HParams"),
    (tensorboard.Board, "_histogram", "reliability histograms"),
    (tensorboard, "prototype_figures", "prototype figures"),
    (figures, "confusion_matrix", "confusion matrices"),
    (figures, "prototype_map", "prototype maps"),
    (figures, "weights_over_time", "weights over time"),
    (tensorboard.Board, "_picture", "encoding pictures"),
    (tensorboard, "write_projector", "projector"),
]


def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    return call


def main() -> None:
    arguments = sys.argv[1:]
    taken: dict[str, list[float]] = {}
    for owner, name, what in PARTS:
        taken[what] = []
        setattr(owner, name, timed(getattr(owner, name), taken[what]))
    whole: list[float] = []
    trainer.fit = timed(trainer.fit, whole)  # type: ignore[assignment]
    trainer.test = timed(trainer.test, whole)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        trainer.main([*arguments, "--run.dir", str(Path(folder) / "run")])
        steps = json.loads((Path(folder) / "run" / "status.json").read_text())["step"]
    run_s = sum(whole)
    print(f"\n{steps} steps in {run_s:.1f} s, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| what | calls | ms each | s | share |")
    print("|---|---|---|---|---|")
    for what, seconds in taken.items():
        calls, total = len(seconds), sum(seconds)
        each, share = 1e3 * total / max(calls, 1), 100 * total / run_s
        print(f"| {what} | {calls} | {each:.2f} | {total:.2f} | {share:.2f} % |")
    total = sum(sum(seconds) for seconds in taken.values())
    print(f"| **all** | | | {total:.2f} | {100 * total / run_s:.2f} % |")


if __name__ == "__main__":
    main()
