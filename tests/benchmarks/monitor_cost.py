"""Benchmark of monitoring: the share of a run's time that TensorBoard, metrics.jsonl and figures take.

    python tests/benchmarks/monitor_cost.py                                  # the demo
    python tests/benchmarks/monitor_cost.py --config configs/ravdess.yaml --data.train data/ravdess \\
        --data.select.train '{fold: [0, 1]}' --data.select.val '{fold: 2}' --data.select.test '{fold: 3}'

Takes the arguments of launch/train.py. Times every monitoring function in a real run of one process, and
prints its share of the time from the first step to the results. (The first figure includes the import of
matplotlib.)
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
from shards.safe_io.markdown import bold, table

# The timed functions: module or class that holds the name, name, and purpose. None of them calls another.
PARTS: list[tuple[Any, str, str]] = [
    (monitor.Monitor, "log_step", "scalars of each step"),
    (monitor.Monitor, "log_scalars", "throughput, memory"),
    (step, "batch_cost", "FLOPs, bytes and padding of each step"),
    (SnapshotCollector, "add", "collecting in validations"),
    (SnapshotCollector, "gather", "gathering over ranks"),
    (tensorboard.TensorBoardWriter, "log_settings", "settings, HParams"),
    (tensorboard.TensorBoardWriter, "_histogram", "reliability histograms"),
    (tensorboard, "prototype_scalars", "prototype scalars"),
    (figures, "confusion_matrix", "confusion matrices"),
    (figures, "prototype_map", "prototype maps"),
    (figures, "weights_over_time", "weights over time"),
    (tensorboard.TensorBoardWriter, "_add_image", "encoding figures"),
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
    rows = []
    for what, seconds in taken.items():
        calls, total = len(seconds), sum(seconds)
        each, share = 1e3 * total / max(calls, 1), 100 * total / run_s
        rows.append([what, str(calls), f"{each:.2f}", f"{total:.2f}", f"{share:.2f} %"])
    total = sum(sum(seconds) for seconds in taken.values())
    rows.append([bold("all"), "", "", f"{total:.2f}", f"{100 * total / run_s:.2f} %"])
    print(table(["what", "calls", "ms each", "s", "share"], rows, "lr"))


if __name__ == "__main__":
    main()
