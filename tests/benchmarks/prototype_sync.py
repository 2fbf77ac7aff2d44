"""What keeping one prototype table on all ranks costs: measured, and on paper for clusters.

    torchrun --standalone --nproc-per-node 2 tests/benchmarks/prototype_sync.py

Measured over two ranks: a training step at the published size, the reduction of facts before it
(`reduce_batch_counts`), the reduction of class sums (prototypes moved by class means; by gradient they travel
with all other gradients), and the comparison of tables (every `prototypes.check_every` steps). The latency
and bandwidth of a reduction are fitted to sizes from 8 bytes to 8 MB, and put into the model of a ring
within reach of a tree: time(n) = 2 ceil(log2 n) latency + 2 (n - 1) / n * bytes / bandwidth.
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

DIM, BATCH, CHECK_EVERY = 256, 32, 100
NODES, GPUS = (8, 64, 512), 8
# A step on a GPU is far shorter than here. 1 ms is what this model may take at best: the worst case for sync.
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


def on_paper(ranks: int, size: int, latency: float, bandwidth: float) -> float:
    return 2 * math.ceil(math.log2(ranks)) * latency + 2 * (ranks - 1) / ranks * size / bandwidth


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    facts = torch.zeros(8 + CLASSES, dtype=torch.int64)
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
        "facts of the step (every step)": seconds(lambda: dist.all_reduce(facts), 200),
        "class sums (every step, EMA)": seconds(lambda: dist.all_reduce(sums), 200),
        f"comparison of tables (1 step in {CHECK_EVERY})": seconds(
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
        print("| part | per step | share of step |\n|---|---|---|")
        for name, cost in parts.items():
            print(f"| {name} | {1e6 * cost:.0f} us | {100 * cost / step:.2f} % |")
        print(
            "\nOn paper (network assumed, not measured): facts and class sums, K prototypes of width D,\n"
            f"GPU steps of {1e3 * GPU_STEP_S:.0f} ms (the worst case),"
        )
        print(f"a fabric of {1e6 * FABRIC[0]:.0f} us a hop and {FABRIC[1] / 1e9:.0f} GB/s.\n")
        print("| nodes x GPUs | D 256, K 1 | share | D 8192, K 4 | share |\n|---|---|---|---|---|")
        for nodes in NODES:
            cells = []
            for dim, k in ((256, 1), (8192, 4)):
                size = CLASSES * k * (dim + 1) * 4
                cost = on_paper(nodes * GPUS, size, *FABRIC) + on_paper(
                    nodes * GPUS, facts.numel() * 8, *FABRIC
                )
                cells += [f"{1e6 * cost:.0f} us", f"{100 * cost / (GPU_STEP_S + cost):.1f} %"]
            print(f"| {nodes} x {GPUS} | " + " | ".join(cells) + " |")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
