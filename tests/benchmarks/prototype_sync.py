"""Benchmark of synchronizing the prototypes over ranks: measured, and estimated for clusters.

    torchrun --standalone --nproc-per-node 2 tests/benchmarks/prototype_sync.py

Measured over two ranks: a training step at the published size, the reduction of batch counts before it
(`reduce_batch_counts`), the reduction of class sums (for prototypes updated by class means; those updated by
gradient are reduced with all other gradients), and the comparison of prototypes (every
`prototypes.check_every` steps). Latency and bandwidth of a reduction are fitted to sizes from 8 bytes to 8
MB. The estimate takes the latency of a tree and the bandwidth of a ring:
time(n) = 2 ceil(log2 n) latency + 2 (n - 1) / n * bytes / bandwidth.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from awtpn.bench.machine import hardware
from awtpn.bench.step import CLASSES, make_batches, packed_step
from awtpn.distributed.engines.base import replicated_tensors
from awtpn.distributed.replicas import find_divergent_replicas
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from shards.safe_io.markdown import table

DIM, BATCH, CHECK_EVERY = 256, 32, 100
NODES, GPUS = (8, 64, 512), 8
# A step on a GPU is far shorter than on this CPU. 1 ms is a lower limit, the worst case for synchronization.
GPU_STEP_S = 1e-3
# One InfiniBand port per GPU, as NCCL reaches it: latency per hop in s, bandwidth in bytes/s.
FABRIC = (8e-6, 20e9)


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Median time of `action` over all repeats, on this rank."""
    times = []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def fit_line(sizes: list[int], times: list[float]) -> tuple[float, float]:
    """(latency s, bandwidth bytes/s) of time = latency + bytes / bandwidth: from the ends of the range."""
    bandwidth = (sizes[-1] - sizes[0]) / max(times[-1] - times[0], 1e-9)
    return times[0], bandwidth


def estimated_s(ranks: int, size: int, latency: float, bandwidth: float) -> float:
    """Estimated seconds of a reduction of `size` bytes."""
    return 2 * math.ceil(math.log2(ranks)) * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    counts = torch.zeros(8 + CLASSES, dtype=torch.int64)
    sums = torch.zeros(CLASSES, DIM + 1)
    model = AWTPN(
        ModelConfig(shared_dim=DIM), {"audio": 1024, "video": 512}, [str(c) for c in range(CLASSES)]
    )
    tensors = replicated_tensors(model)
    batches = make_batches(BATCH // dist.get_world_size(), "cpu")
    train = packed_step(DIM, "cpu", lambda: torch.autocast("cpu", enabled=False))
    train(batches[0])
    step = seconds(lambda: [train(batch) for batch in batches], 5) / len(batches)
    parts = {
        "batch counts (every step)": seconds(lambda: dist.all_reduce(counts), 200),
        "class sums (every step, EMA)": seconds(lambda: dist.all_reduce(sums), 200),
        f"comparison of prototypes (1 step in {CHECK_EVERY})": seconds(
            lambda: find_divergent_replicas(tensors, None), 20
        )
        / CHECK_EVERY,
    }
    sizes = [8 << (2 * i) for i in range(11)]
    buffers = [torch.zeros(size // 4) for size in sizes]
    line = fit_line(sizes, [seconds(lambda b=b: dist.all_reduce(b), 30) for b in buffers])
    if dist.get_rank() == 0:
        print(
            f"{date.today()}, {hardware('cpu')}, 2 ranks over gloo, one machine, torch {torch.__version__}\n"
        )
        print(f"step of {BATCH} utterances, D {DIM}: {1e3 * step:.1f} ms; ", end="")
        print(f"one reduction: {1e6 * line[0]:.0f} us + bytes / {line[1] / 1e9:.2f} GB/s\n")
        rows = [[name, f"{1e6 * c:.0f} us", f"{100 * c / step:.2f} %"] for name, c in parts.items()]
        print(table(["part", "per step", "share of step"], rows, "lr"))
        print(
            "\nEstimated (network assumed, not measured): batch counts and class sums,\n"
            "K prototypes of width D, "
            f"GPU steps of {1e3 * GPU_STEP_S:.0f} ms (the worst case),"
        )
        print(f"a fabric of {1e6 * FABRIC[0]:.0f} us a hop and {FABRIC[1] / 1e9:.0f} GB/s.\n")
        rows = []
        for nodes in NODES:
            cells = []
            for dim, k in ((256, 1), (8192, 4)):
                size = CLASSES * k * (dim + 1) * 4
                cost = estimated_s(nodes * GPUS, size, *FABRIC) + estimated_s(
                    nodes * GPUS, counts.numel() * 8, *FABRIC
                )
                cells += [f"{1e6 * cost:.0f} us", f"{100 * cost / (GPU_STEP_S + cost):.1f} %"]
            rows.append([f"{nodes} x {GPUS}", *cells])
        print(table(["nodes x GPUs", "D 256, K 1", "share", "D 8192, K 4", "share"], rows, "lr"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
