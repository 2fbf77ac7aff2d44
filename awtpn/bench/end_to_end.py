"""Benchmark of training from the stream: utterances per second, and the share of time that waits for data.

Times epochs of the trainer's own loop in a temporary run. Besides the step of `bench.step` that includes the
reduction of batch counts over ranks (here one), fingerprints, negatives, learning rate, seeds and metrics. It
excludes validation, checkpoints and figures.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from awtpn.bench.machine import synchronize
from awtpn.bench.readers import UTTERANCES, write_corpora
from awtpn.bench.step import Setting, scaled_by_width
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import make_layout
from awtpn.distributed.stopping import StopFlag
from awtpn.distributed.world import World, mixed_precision
from awtpn.tracking.monitor import Monitor
from awtpn.training.run_state import Run
from awtpn.training.setup import setup
from awtpn.training.trainer import train_epoch
from shards.safe_io.markdown import table

# A round has as many epochs as it takes for at least so many steps.
LEAST_STEPS = 30


def run(
    setting: Setting,
    dim: int,
    batch: int,
    scratch: Path,
    count: int = UTTERANCES,
    rounds: int = 3,
    least_steps: int | None = None,
) -> str:
    """Time epochs from shards in `scratch` (page-cached) and of batches in memory, in turn; Markdown."""
    write_corpora(scratch, count, ["shards"])
    passes = math.ceil((least_steps or LEAST_STEPS) / math.ceil(count / batch))
    streamed, resident = [], []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        config = make_config(setting, dim, batch, scratch / "shards", epochs=1 + 2 * rounds * passes)
        from_stream = make_run(config, setting.device, Path(folder))
        preloaded = from_memory(from_stream)
        with (
            closing(from_stream.watchdog),
            closing(Monitor(from_stream.dir, True, 0, from_stream.total_steps)) as monitor,
        ):
            train(from_stream, monitor, 1)  # warm-up
            for number in range(1, rounds + 1):
                streamed.append(train(from_stream, monitor, passes))
                resident.append(train(preloaded, monitor, passes))
                print(f"round {number}: {streamed[-1][0]:,.0f} utterances/s end to end", file=sys.stderr)
    ratios = [one[0] / other[0] for one, other in zip(streamed, resident, strict=True)]
    rows = [
        ["from the stream", f"{median(streamed, 0):,.0f}", f"{median(streamed, 1):.1%}"],
        [
            "batches already on the device",
            f"{median(resident, 0):,.0f}",
            f"{median(resident, 1):.1%}",
        ],
    ]
    return "\n".join(
        [
            f"## End to end: stream and step, D {dim}, batch {batch}, {setting.precision}",
            "",
            table(["", "utterances/s", "waiting for data"], rows, "lr"),
            "",
            "The trainer's own loop, without validation, checkpoints and figures. "
            f"Medians of {rounds} interleaved rounds of {passes} epochs of {count:,} utterances; from the "
            f"stream it reaches {statistics.median(ratios):.1%} of the speed with batches on the device. "
            "Waiting for data: share of the time in which the host waits for the next batch.",
            "",
        ]
    )


def make_config(setting: Setting, dim: int, batch: int, corpus: Path, epochs: int) -> Config:
    """The default configuration with this width, batch size and corpus."""
    config = Config()
    config.data.train = str(corpus)
    config.model.shared_dim = dim
    config.model.modalities = scaled_by_width(config.model.modalities, dim)
    if batch % config.loss.negative_group:
        config.loss.negative_group = batch
    config.train.epochs, config.train.global_batch_size = epochs, batch
    config.train.precision = "fp32" if setting.precision == "fp32" else "bf16"
    return config


def make_run(config: Config, device: str, folder: Path) -> Run:
    """Set up a run of one process in an empty folder."""
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision(config.train.precision))
    world = World(0, 1, 0, accelerator.device, None, "none")
    layout = make_layout(config.train.global_batch_size, None, world.size)
    return setup(config, accelerator, world, layout, folder, StopFlag())


def from_memory(run: Run) -> Run:
    """The same run, but each epoch repeats the batches of epoch 0, which are on the device already."""
    batches = [batch.to(run.world.device) for batch in run.train.epoch(0)]
    stream = copy.copy(run.train)
    stream.epoch = lambda *_, **__: iter(batches)  # type: ignore[method-assign]
    return replace(run, train=stream, pending=[])


def train(run: Run, monitor: Monitor, epochs: int) -> tuple[float, float]:
    """Train for `epochs` epochs: utterances per second, and the share of the time spent waiting for data."""
    position, before = run.position, run.position.step
    run.since = start = time.perf_counter()
    for _ in range(epochs):
        train_epoch(run, monitor)
        position.epoch, position.epoch_step = position.epoch + 1, 0
    synchronize(run.world.device.type)
    seconds = time.perf_counter() - start
    lines = (run.dir / "metrics.jsonl").read_text().splitlines()[before:]
    waited = sum(json.loads(line)["data_wait"] for line in lines)
    return epochs * run.train.num_utterances / seconds, waited / seconds


def median(runs: list[tuple[float, float]], column: int) -> float:
    return statistics.median(run[column] for run in runs)
