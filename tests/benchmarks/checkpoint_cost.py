"""Benchmark of checkpoints: how long they hold up training, written in the step or in the background.

    python tests/benchmarks/checkpoint_cost.py --out tests/benchmarks/results

Trains the model of configs/large.yaml at --dim on two CPU ranks, under DDP and each ZeRO stage. A run is a
sequence of blocks of 50 steps. Before each block comes: no checkpoint, one that is written before the next
step (train.async_checkpoint false), or one that is written in the background; these take turns, so that a
change of the machine's speed meets all of them. A block's time is that of its checkpoint and its steps.

Last, a run of ZeRO-2 gets SIGTERM: the time until its status is "preempted" and its checkpoint is whole.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

ENGINES = ("ddp", "zero0", "zero1", "zero2", "zero3")
MODES = ("none", "in the step", "in the background")
BLOCK = 50  # steps
EPOCH = 25  # steps, at whose end `save` is called
WARM_UP = EPOCH  # steps before the first block
GLOBAL = 16
LIMIT_S = 3600.0
COLUMNS = (
    "engine",
    "checkpoint",
    "mode",
    "200 steps",
    "throughput",
    "held up",
    "longest step",
    "written after",
)


def settings(engine: str, dim: int, corpus: str, steps: int, folder: Path) -> list[str]:
    given: dict[str, Any] = {
        "data.train": corpus,
        "run.dir": folder,
        "model.shared_dim": dim,
        "train.global_batch_size": GLOBAL,
        "train.micro_batch_size": GLOBAL // 2,
        "train.epochs": 10_000,
        "train.max_steps": steps,
        "train.validate_every": 10_000,
        "train.checkpoint_every": BLOCK,
        "train.zero_stage": engine[-1] if engine.startswith("zero") else "null",
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def launch(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "DS_", "TORCHELASTIC_"))}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *arguments,
    ]
    environment = kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def measure(engine: str, dim: int, rounds: int, corpus: str, scratch: Path) -> dict[str, Any]:
    """Run the blocks; returns the main rank's record (`run_rank`).

    Raises:
        RuntimeError: the run failed; ends with its output.
    """
    steps = WARM_UP + BLOCK * len(MODES) * rounds
    record, log = scratch / f"{engine}.json", scratch / f"{engine}.log"
    command = [__file__, "--rank_of", str(record), "--config", str(ROOT / "configs" / "large.yaml")]
    process = launch([*command, *settings(engine, dim, corpus, steps, scratch / engine)], log)
    if process.wait(LIMIT_S) or not record.exists():
        raise RuntimeError(f"{engine} failed:\n{log.read_text()[-3000:]}")
    return json.loads(record.read_text())  # type: ignore[no-any-return]


def run_rank(record: Path, argv: list[str]) -> None:
    """Run launch/train.py, with the mode of each checkpoint by turns, and record the main rank's times."""
    from awtpn.training import saving, trainer

    train_step, save, write = trainer.train_step, trainer.save, saving.write
    ends: list[float] = []
    saves: list[dict[str, Any]] = []

    def timed_step(*args: Any, **kwargs: Any) -> Any:
        if not ends:
            ends.append(time.perf_counter())
        info = train_step(*args, **kwargs)
        ends.append(time.perf_counter())
        return info

    def save_in_turn(run: Any, *args: Any, **kwargs: Any) -> None:
        step = run.position.step
        if step >= run.total_steps:
            if run.world.is_main:
                record.write_text(json.dumps({"ends": ends, "saves": saves}))
            save(run, *args, **kwargs)  # the test of the run needs one
            return
        if step < WARM_UP or (step - WARM_UP) % BLOCK:
            return
        mode = MODES[len(saves) % len(MODES)]
        began = time.perf_counter()
        saves.append({"step": step, "mode": mode, "at": began})
        if mode != "none":
            run.config.train.async_checkpoint = mode == MODES[2]
            save(run, *args, **kwargs)
        saves[-1]["held_s"] = time.perf_counter() - began

    def timed_write(*args: Any, **kwargs: Any) -> str | None:
        own = saves[-1] if saves else {"at": 0.0}
        failure = write(*args, **kwargs)
        own["written_s"] = time.perf_counter() - own["at"]
        own["bytes"] = sum(path.stat().st_size for path in args[0].resolve().glob("latest/*"))
        return failure

    trainer.train_step, saving.write = timed_step, timed_write  # type: ignore[assignment]
    trainer.save = save_in_turn  # type: ignore[assignment]
    script = ROOT / "launch" / "train.py"
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")


def summarize(engine: str, record: dict[str, Any]) -> list[list[str]]:
    """The table's rows of an engine."""
    ends, rows, usual = record["ends"], [], 0.0
    for mode in MODES:
        saves = [save for save in record["saves"] if save["mode"] == mode]
        blocks = [ends[save["step"] + BLOCK] - ends[save["step"]] for save in saves]
        steps = [ends[i + 1] - ends[i] for save in saves for i in range(save["step"], save["step"] + BLOCK)]
        block = statistics.median(blocks)
        usual = usual or block
        row = [engine, "", mode, f"{block * 200 / BLOCK:.1f} s", f"{usual / block - 1:+.1%}"]
        row += ["" if mode == "none" else f"{statistics.median(s['held_s'] for s in saves):.2f} s"]
        row += [f"{max(steps):.2f} s"]
        row += ["" if mode == "none" else f"{statistics.median(s['written_s'] for s in saves):.2f} s"]
        if mode != "none":
            row[1] = f"{saves[-1]['bytes'] / 1e6:.0f} MB"
        rows.append(row)
    return rows


def stop_by_signal(dim: int, corpus: str, scratch: Path) -> float:
    """Seconds from SIGTERM at a run of ZeRO-2, in a step, to the status "preempted"."""
    folder, log = scratch / "stopped", scratch / "stopped.log"
    train = [str(ROOT / "launch" / "train.py"), "--config", str(ROOT / "configs" / "large.yaml")]
    words = settings("zero2", dim, corpus, 1000, folder)
    process = launch([*train, *words, "--train.log_every", "1"], log)
    metrics, status = folder / "metrics.jsonl", folder / "status.json"
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        if process.poll() is not None:
            raise RuntimeError(f"the run ended:\n{log.read_text()[-3000:]}")
        time.sleep(0.05)
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    while json.loads(status.read_text())["status"] != "preempted":
        time.sleep(0.01)
    took = time.perf_counter() - began
    process.wait(LIMIT_S)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=4, help="blocks of each kind")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--out", type=Path, help="folder for checkpoint-cost-<date>.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = compare(options, Path(scratch))
    print(text)
    if options.out:
        (options.out / f"checkpoint-cost-{date.today()}.md").write_text(text)


def compare(options: argparse.Namespace, scratch: Path) -> str:
    import torch
    from zero_memory import write_corpus

    from shards.safe_io.markdown import table

    corpus = write_corpus(scratch / "corpus", GLOBAL * EPOCH, median=20)
    rows = []
    for engine in options.engines:
        found = summarize(engine, measure(engine, options.dim, options.rounds, corpus, scratch))
        rows += found
        for row in found:
            print(" | ".join(row), file=sys.stderr, flush=True)
    stopped = stop_by_signal(options.dim, corpus, scratch)
    return (
        "\n".join(
            [
                f"# What a checkpoint costs: configs/large.yaml at shared_dim {options.dim}, two CPU ranks",
                "",
                f"{date.today()}; {cpu()}, {os.cpu_count()} cores, one thread a rank; {platform.system()} "
                f"{platform.release()}, torch {torch.__version__}; global batch {GLOBAL}; `python "
                f"tests/benchmarks/checkpoint_cost.py --dim {options.dim} --rounds {options.rounds}`.",
                "",
                f"Blocks of {BLOCK} steps with one checkpoint each, {options.rounds} of each kind; medians, "
                "times 4. "
                "Held up: how long all ranks wait in `save`. Longest step: of all blocks, with its "
                "checkpoint. Written after: from the begin of `save` to the moved link `latest`.",
                "",
                table(COLUMNS, rows, "lrlrrrrr"),
                "",
                f"From SIGTERM in a step of ZeRO-2 to a whole checkpoint and `preempted`: {stopped:.2f} s.",
            ]
        )
        + "\n"
    )


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")


if __name__ == "__main__":
    if "--rank_of" in sys.argv:
        run_rank(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
