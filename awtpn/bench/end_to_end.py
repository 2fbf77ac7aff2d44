"""Training from the stream: utterances per second with reading, and what share of it waits for data.

What is timed are epochs of the trainer's own loop in a run of its own: besides the step of `bench.step` the
ranks' agreement (here of one), fingerprints, negatives, learning rate and seeds, gathering and writing the
figures. Validation, checkpoints and pictures are left out.
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

from awtpn.bench.machine import markdown, synchronise
from awtpn.bench.readers import UTTERANCES, write_corpora
from awtpn.bench.step import Setting
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import make_layout
from awtpn.distributed.stopping import StopFlag
from awtpn.distributed.world import World, mixed_precision
from awtpn.tracking.monitor import Monitor
from awtpn.training.run_state import Run
from awtpn.training.setup import setup
from awtpn.training.trainer import train_epoch

# A round takes as many epochs as have these together.
LEAST_STEPS = 30


def run(
    setting: Setting, dim: int, batch: int, scratch: Path, count: int = UTTERANCES, rounds: int = 3
) -> str:
    """Epochs from shards in `scratch` (page-cached), and of batches in memory, in turn; Markdown."""
    write_corpora(scratch, count, ["shards"])
    passes = math.ceil(LEAST_STEPS / math.ceil(count / batch))
    streamed, resident = [], []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        config = make_config(setting, dim, batch, scratch / "shards", epochs=1 + 2 * rounds * passes)
        ours = make_run(config, setting.device, Path(folder))
        theirs = from_memory(ours)
        with closing(ours.watchdog), closing(Monitor(ours.dir, True, 0, ours.total_steps)) as monitor:
            train(ours, monitor, 1)  # warms up
            for number in range(1, rounds + 1):
                streamed.append(train(ours, monitor, passes))
                resident.append(train(theirs, monitor, passes))
                print(f"round {number}: {streamed[-1][0]:,.0f} utterances/s end to end", file=sys.stderr)
    ratios = [own[0] / other[0] for own, other in zip(streamed, resident, strict=True)]
    rows = [
        ["from the stream", f"{median(streamed, 0):,.0f}", f"{median(streamed, 1):.1%}"],
        [
            "the batches lie on the device already",
            f"{median(resident, 0):,.0f}",
            f"{median(resident, 1):.1%}",
        ],
    ]
    return "\n".join(
        [
            f"## End to end: stream and step, D {dim}, batch {batch}, {setting.precision}",
            "",
            *markdown(["", "utterances/s", "waiting for data"], rows),
            "",
            "The trainer's own loop, with all that it does in a step; validation, checkpoints and pictures "
            "aside. "
            f"Medians of {rounds} interleaved rounds of {passes} epochs of {count:,} utterances; from the "
            f"stream it runs at {statistics.median(ratios):.1%} of the other's speed. Waiting: the host's "
            "time in asking for batches, of all.",
            "",
        ]
    )


def make_config(setting: Setting, dim: int, batch: int, corpus: Path, epochs: int) -> Config:
    """The defaults at this size."""
    config = Config()
    config.data.train = str(corpus)
    config.model.shared_dim = dim
    config.model.distance_scale_audio = config.model.distance_scale_video = 1 / dim
    if batch % config.loss.negative_group:
        config.loss.negative_group = batch
    config.train.epochs, config.train.global_batch_size = epochs, batch
    config.train.precision = "fp32" if setting.precision == "fp32" else "bf16"
    return config


def make_run(config: Config, device: str, folder: Path) -> Run:
    """A run of one process in an empty folder, set up as every run is."""
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision(config.train.precision))
    world = World(0, 1, 0, accelerator.device, None, "none")
    layout = make_layout(config.train.global_batch_size, None, world.size)
    return setup(config, accelerator, world, layout, folder, StopFlag())


def from_memory(run: Run) -> Run:
    """The same run, each of whose epochs is its first one, on the device already."""
    ready = [batch.to(run.world.device) for batch in run.train.epoch(0)]
    stream = copy.copy(run.train)
    stream.epoch = lambda *_, **__: iter(ready)  # type: ignore[method-assign]
    return replace(run, train=stream, pending=[])


def train(run: Run, monitor: Monitor, epochs: int) -> tuple[float, float]:
    """Utterances per second of so many epochs, and the share of their time spent in asking for batches."""
    position, before = run.position, run.position.step
    run.since = start = time.perf_counter()
    for _ in range(epochs):
        train_epoch(run, monitor)
        position.epoch, position.epoch_step = position.epoch + 1, 0
    synchronise(run.world.device.type)
    seconds = time.perf_counter() - start
    lines = (run.dir / "metrics.jsonl").read_text().splitlines()[before:]
    waited = sum(json.loads(line)["data_wait"] for line in lines)
    return epochs * run.train.num_utterances / seconds, waited / seconds


def median(runs: list[tuple[float, float]], column: int) -> float:
    return statistics.median(run[column] for run in runs)
