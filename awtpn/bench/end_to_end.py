"""Training from the stream: utterances per second with reading, and what share of it waits for data."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from awtpn.bench.loader import UTTERANCES, write_corpora
from awtpn.bench.machine import markdown, synchronise
from awtpn.bench.step import Setting, make_step
from shards import FeatureBatch, FeatureStream

# A round takes as many epochs as have these together.
LEAST_STEPS = 30


def run(
    setting: Setting, dim: int, batch: int, scratch: Path, count: int = UTTERANCES, rounds: int = 3
) -> str:
    """Epochs from shards in `scratch` (page-cached), and of batches in memory, in turn; Markdown."""
    write_corpora(scratch, count, ["shards"])
    stream = FeatureStream(str(scratch / "shards"), global_batch_size=batch)
    step = make_step("packed", dim, setting)
    ready = [b.to(setting.device) for b in stream.epoch(0)]
    train(step, ready, setting.device)  # warms up
    streamed, resident = [], []
    passes = max(1, math.ceil(LEAST_STEPS / len(ready)))
    for number in range(1, rounds + 1):
        epochs = (stream.epoch(number * passes + i, device=setting.device) for i in range(passes))
        streamed.append(train(step, chain.from_iterable(epochs), setting.device))
        resident.append(train(step, ready * passes, setting.device))
        print(f"round {number}: {streamed[-1][0]:,.0f} utterances/s end to end", file=sys.stderr)
    ratios = [ours[0] / theirs[0] for ours, theirs in zip(streamed, resident, strict=True)]
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
            f"Medians of {rounds} interleaved rounds of {passes} epochs of {count:,} utterances; from the "
            f"stream it runs at {statistics.median(ratios):.1%} of the other's speed. Waiting: the host's "
            "time in asking for batches, of all.",
            "",
        ]
    )


def train(
    step: Callable[[dict[str, Any]], None], batches: Iterable[FeatureBatch], device: str
) -> tuple[float, float]:
    """Utterances per second of an epoch, and the share of its time spent in asking for batches."""
    utterances, waited = 0, 0.0
    start = time.perf_counter()
    waiting = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(waiting, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        step({"packed": batch.features, "label": batch.label})
        utterances += len(batch)
    synchronise(device)
    seconds = time.perf_counter() - start
    return utterances / seconds, waited / seconds


def median(runs: list[tuple[float, float]], column: int) -> float:
    return statistics.median(run[column] for run in runs)
