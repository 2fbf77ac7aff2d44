"""Benchmark of a second thread for training on a CPU, alone and beside a busy process.

    python tests/benchmarks/threads.py --out tests/benchmarks/results

Trains on 386 utterances of 100 audio and 100 video steps with the settings of configs/ravdess.yaml, in the
trainer's own loop, with a separate process per measurement; the cases take turns. Cases: one thread; two
threads that share each matrix product, as the math library does by default; two threads that divide the
utterances of each micro-batch; and the first two without memory retained between steps, without a busy
process. The busy process is a Python loop.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

UTTERANCES, STEPS, FEATURES = 386, 100, 27
EPOCHS = 4  # timed, after one to warm up
# Name, threads, whether they share products, whether freed memory is retained.
CASES = [
    ("one thread, memory returned", 1, False, False),
    ("one thread", 1, False, True),
    ("two threads inside products, memory returned", 2, True, False),
    ("two threads inside products", 2, True, True),
    ("two threads over utterances", 2, False, True),
]
BUSY = "while True: pass"


def write_corpus(folder: Path) -> str:
    """Noise under eight labels."""
    import shards

    rng = np.random.default_rng(0)
    classes = [f"class-{i}" for i in range(8)]
    samples = (
        shards.Sample(
            f"u{i:03d}",
            "train",
            classes[i % 8],
            {m: rng.standard_normal((STEPS, FEATURES), np.float32) for m in ("audio", "video")},
        )
        for i in range(UTTERANCES)
    )
    shards.pack(samples, str(folder), classes=classes, progress=False)
    return str(folder)


def measure(corpus: str, threads: int, inside: bool, hold: bool) -> dict[str, float]:
    """Seconds and page faults per epoch of this process's training, and its last loss."""
    import torch

    from awtpn.bench.end_to_end import make_run
    from awtpn.config.command_line import parse_command_line
    from awtpn.distributed.cpu_threads import ONE_PIECE, retain_freed_memory
    from awtpn.tracking.monitor import Monitor
    from awtpn.training.trainer import train_epoch

    if hold:
        retain_freed_memory()
    config, _ = parse_command_line(
        [
            *("--config", str(ROOT / "configs" / "ravdess.yaml"), "--data.train", corpus),
            *("--train.threads", str(threads), "--train.epochs", str(EPOCHS + 1)),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(config, "cpu", Path(folder))
        if inside:
            run = replace(run, piece_threads=ONE_PIECE)
            torch.set_num_threads(threads)
        with closing(run.watchdog), closing(Monitor(run.dir, True, 0, run.total_steps)) as monitor:
            seconds = []
            for epoch in range(EPOCHS + 1):
                if epoch == 1:
                    before = resource.getrusage(resource.RUSAGE_SELF)
                run.since = start = time.perf_counter()
                train_epoch(run, monitor)
                run.position.epoch, run.position.epoch_step = run.position.epoch + 1, 0
                seconds.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_SELF)
        loss = json.loads((run.dir / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    return {
        "seconds": statistics.median(seconds[1:]),
        "faults": (after.ru_minflt - before.ru_minflt) / EPOCHS,
        "system": (after.ru_stime - before.ru_stime) / EPOCHS,
        "loss": loss,
    }


def measured(corpus: str, case: int, busy: bool) -> dict[str, float]:
    """Measure one case in a separate process, which prints one JSON line."""
    busy_process = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    command = [sys.executable, __file__, "--measure", str(case), "--corpus", corpus]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_", "MALLOC_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    finally:
        if busy_process:
            busy_process.kill()
            busy_process.wait()
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rounds: list[dict[str, dict[int, dict[str, float]]]]) -> list[str]:
    """Medians over rounds, and the ratios to one thread in the same round."""
    from shards.safe_io.markdown import table as markdown_table

    lines = []
    for busy in ("alone", "beside a busy process"):
        rows = []
        for case, (name, *_) in enumerate(CASES):
            if case not in rounds[0][busy]:
                continue
            found = [r[busy][case] for r in rounds]
            ratios = [r[busy][1]["seconds"] / r[busy][case]["seconds"] for r in rounds]
            rows.append(
                [
                    name,
                    f"{UTTERANCES / statistics.median(f['seconds'] for f in found):,.0f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                    f"{statistics.median(f['faults'] for f in found):,.0f}",
                    f"{statistics.median(f['system'] for f in found):.2f}",
                ]
            )
        columns = [busy, "utterances/s", "speed / one thread", "page faults an epoch", "system s an epoch"]
        lines += [markdown_table(columns, rows, "lr"), ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for a Markdown file")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.corpus, *CASES[options.measure][1:])))
        return
    from awtpn.bench.machine import describe

    about = describe("cpu", 2)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder) / "corpus")
        for number in range(1, options.rounds + 1):
            rounds.append(
                {
                    name: {
                        case: measured(corpus, case, busy)
                        for case in range(len(CASES))
                        if CASES[case][3] or not busy
                    }
                    for name, busy in (("alone", False), ("beside a busy process", True))
                }
            )
            print(f"round {number} of {options.rounds}", file=sys.stderr)
    text = "\n".join(
        [
            "# Threads of training on a CPU",
            "",
            "    python tests/benchmarks/threads.py",
            "",
            about,
            "",
            f"Medians of {options.rounds} interleaved rounds; ratios with their range.",
            "",
            *table(rounds),
        ]
    )
    print(text)
    if options.out:
        (options.out / f"threads-{date.today()}.md").write_text(text)


if __name__ == "__main__":
    main()
