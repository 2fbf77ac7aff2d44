"""Benchmark of `awtpn doctor --scaling`: predicted steps and reductions beside those of CPU ranks.

    python tests/benchmarks/scaling.py --out tests/benchmarks/results

Rounds run in turn: computing on 1 rank, an all-reduce alone on 1, 2 and 4 ranks, and whole steps on 2 ranks,
each rank with one thread. From the first two come a rank's speed (steps of 8 and 32 utterances) and the link
(all-reduces of 8 bytes and of the largest size on 2 ranks). All else is predicted from these by
`awtpn.bench.scaling`, and compared: other batch sizes, other sizes and numbers of ranks, and the step of 2
ranks whose utterances differ in length. Nothing overlaps: the gradients are reduced after backward.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from awtpn.bench.machine import describe  # noqa: E402
from awtpn.bench.memory_estimate import Workload  # noqa: E402
from awtpn.bench.scaling.collectives import Collective  # noqa: E402
from awtpn.bench.scaling.measured import fit  # noqa: E402
from awtpn.bench.scaling.network import Network, collective_s  # noqa: E402
from awtpn.bench.scaling.predict import Machine, predict  # noqa: E402
from awtpn.bench.scaling.shares import PassCost, network_cost  # noqa: E402
from awtpn.bench.step import CLASSES, DIMS, make_batches, make_model, packed_loss  # noqa: E402
from awtpn.learning.optimizer import make_optimizer  # noqa: E402
from awtpn.learning.settings import LossConfig, OptimConfig  # noqa: E402
from shards.safe_io.markdown import table  # noqa: E402

DIM = 256
BATCHES = (8, 16, 24, 32)
SHARE = 16  # utterances of each of two ranks in a step

GRADIENTS = 4 * Workload(DIMS, 256, CLASSES, dict.fromkeys(DIMS, 0), 0.0).parameters  # bytes
SIZES = (8, 64 << 10, 1 << 20, GRADIENTS, 16 << 20)
REPEATS = 7
WORK = Workload(DIMS, DIM, CLASSES, dict.fromkeys(DIMS, 0), 0.0)


def cost_of(batch: dict[str, Any]) -> PassCost:
    return network_cost({m: batch["packed"][m].host_lengths for m in DIMS}, WORK)


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


# --- What a rank runs ----------------------------------------------------------------------------


def computing() -> dict[str, list[float]]:
    """Seconds of steps of each batch size, on one rank."""
    step = rank_step()
    found = {}
    for size in BATCHES:
        batch = make_batches(size, "cpu")[0]
        step(batch)
        found[str(size)] = [sum(step(batch)) for _ in range(REPEATS)]
    return found


def reductions() -> dict[str, list[float]]:
    """Seconds of an all-reduce of each size, of the slowest rank."""
    found = {}
    for size in SIZES if dist.get_world_size() > 1 else SIZES[3:4]:
        tensor = torch.ones(size // 4)
        dist.all_reduce(tensor)
        times = []
        for _ in range(3 * REPEATS):
            dist.barrier()
            times.append(slowest(seconds_of(lambda tensor=tensor: dist.all_reduce(tensor))))
        found[str(size)] = times
    return found


def steps() -> dict[str, list[float]]:
    """Seconds of whole steps of all ranks, by the step's number; the slowest rank's."""
    step, found = rank_step(), {}
    for number, batch in enumerate(shares(dist.get_rank())):
        step(batch)
        times = []
        for _ in range(REPEATS):
            dist.barrier()
            times.append(slowest(sum(step(batch))))
        found[str(number)] = times
    return found


def slowest(seconds: float) -> float:
    tensor = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def shares(rank: int) -> list[dict[str, Any]]:
    """A rank's batches: of each step SHARE utterances, others than those of the other rank."""
    return make_batches(SHARE, "cpu")[rank::2]


def rank_step() -> Callable[[dict[str, Any]], tuple[float, float]]:
    """A training step whose gradients are reduced over all ranks: seconds of computing and of reducing."""
    torch.manual_seed(0)
    model, losses = make_model(DIM, "cpu"), LossConfig()
    optimizer = make_optimizer(model, OptimConfig())
    parameters = list(model.parameters())

    def step(batch: dict[str, Any]) -> tuple[float, float]:
        start = time.perf_counter()
        packed_loss(model(batch["packed"]), batch["label"], losses).backward()
        reducing = seconds_of(lambda: reduce_gradients(parameters)) if dist.get_world_size() > 1 else 0.0
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start - reducing, reducing

    return step


def reduce_gradients(parameters: list[nn.Parameter]) -> None:
    gradients = [p.grad for p in parameters if isinstance(p.grad, Tensor)]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, own in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(own.view_as(gradient))


TASKS: dict[str, Callable[[], dict[str, list[float]]]] = {
    "computing": computing,
    "reductions": reductions,
    "steps": steps,
}


def work(task: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = TASKS[task]()
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def run_ranks(task: str, ranks: int) -> dict[str, list[float]]:
    """Run a task on so many processes of this machine; what rank 0 found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        joins = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in joins.items()}
        command = [sys.executable, __file__, "--task", task]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), outputs
    found: dict[str, list[float]] = json.loads(outputs[0].strip().rpartition("\n")[2])
    return found


# --- The comparison ------------------------------------------------------------------------------


def compare(
    computed: dict[int, float], reduced: dict[int, dict[int, float]], stepped: list[float]
) -> tuple[list[list[str]], Machine, Network]:
    """Rows of (what, measured, predicted, difference), and the figures that the predictions rest on.

    Args:
        computed: seconds of a step of one rank, by batch size.
        reduced: seconds of an all-reduce, by number of ranks and bytes.
        stepped: seconds of the steps of two ranks.
    """
    flops = {size: cost_of(make_batches(size, "cpu")[0]).both for size in computed}
    ends = min(computed), max(computed)
    rate, pass_s = fit([flops[size] for size in ends], [computed[size] for size in ends])
    machine = Machine(rate, pass_s, float("inf"), float("inf"), 0.0)
    network = fit_link(reduced[2])
    rows = []
    for size, seconds in computed.items():
        rows.append(
            row(f"computing, 1 rank, {size} utterances", seconds, flops[size] / rate + pass_s, size in ends)
        )
    for ranks, times in reduced.items():
        for size, seconds in times.items():
            predicted = collective_s(network, "all_reduce", size, ranks)
            given = ranks == 2 and size in (min(times), max(times))
            rows.append(row(f"all-reduce, {ranks} ranks, {size:,} bytes", seconds, predicted, given))
    for number, seconds in enumerate(stepped):
        costs = [[[cost_of(shares(rank)[number])]] for rank in range(2)]
        found = predict(
            [costs],
            [[1.0] * 2 * SHARE],
            machine,
            network,
            network,
            lambda _: [Collective("gradients", "all_reduce", GRADIENTS, 1)],
            0.0,
            each_pass=False,
            twice=False,
        )
        rows.append(row(f"step {number}, 2 ranks x {SHARE} utterances", seconds, found.seconds))
    return rows, machine, network


def fit_link(times: dict[int, float]) -> Network:
    """The link between this machine's ranks, from all-reduces of two: two hops, all bytes once."""
    small, large = min(times), max(times)
    inner = (large - small) / max(times[large] - times[small], 1e-9)
    hop = max(times[small] / 2, 1e-9)
    return Network(1 << 20, inner, inner, hop, hop)


def row(what: str, measured: float, predicted: float, given: bool = False) -> list[str]:
    off = "fitted" if given else f"{predicted / measured - 1:+.0%}" if measured > 0 else "-"
    return [what, f"{measured * 1e3:,.3f}", f"{predicted * 1e3:,.3f}", off]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--task", choices=list(TASKS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return work(options.task)
    for text in measure(options.rounds):
        print(text, flush=True)
        if options.out:  # after each round, so that a machine that is needed elsewhere leaves the others
            (options.out / f"scaling-{date.today()}.md").write_text(text)


def measure(rounds: int) -> Iterator[str]:
    """Run all rounds; Markdown after each of them."""
    about = describe("cpu", 1)
    runs: dict[tuple[str, int], list[dict[str, list[float]]]] = {}
    for number in range(rounds):
        for task, ranks in (
            ("computing", 1),
            ("reductions", 1),
            ("reductions", 2),
            ("reductions", 4),
            ("steps", 2),
        ):
            runs.setdefault((task, ranks), []).append(run_ranks(task, ranks))
        yield tables(about, runs, number + 1)


def tables(about: str, runs: dict[tuple[str, int], list[dict[str, list[float]]]], rounds: int) -> str:
    """The comparison, of the medians of all rounds and of the quickest repeats."""

    def chosen(task: str, ranks: int, of: Callable[[list[float]], float]) -> dict[int, float]:
        found = runs[task, ranks]
        return {int(key): of([seconds for one in found for seconds in one[key]]) for key in found[0]}

    lines = [
        "# Predicted scaling beside CPU ranks",
        "",
        "`python tests/benchmarks/scaling.py`",
        "",
        about,
        "",
    ]
    kinds: dict[str, Callable[[list[float]], float]] = {
        "Medians": statistics.median,
        "The quickest of all": min,
    }
    for title, of in kinds.items():
        reduced = {ranks: chosen("reductions", ranks, of) for ranks in (1, 2, 4)}
        stepped = list(chosen("steps", 2, of).values())
        rows, machine, network = compare(chosen("computing", 1, of), reduced, stepped)
        lines += [f"## {title} of {rounds} rounds", ""]
        lines += [
            f"A rank: {machine.flops_per_s / 1e9:,.1f} GFLOP/s, {machine.pass_s * 1e3:,.2f} ms a step. "
            f"The link: {network.inner / 1e9:,.2f} GB/s, {network.inner_latency * 1e6:,.0f} us a hop. "
            f"D {DIM}, float32, gradients of {GRADIENTS:,} bytes.",
            "",
            table(["what", "measured, ms", "predicted, ms", "off by"], rows, "lr"),
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
