"""The tables of `awtpn doctor --scaling`, and the list of what they assume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from awtpn.bench.encoder_memory.activations import Pass
from awtpn.bench.memory_table import encoder_line, make_workload
from awtpn.bench.scaling.network import collective_s
from awtpn.bench.scaling.predict import Machine, Step, efficiency, stops_at
from awtpn.bench.scaling.shares import STEPS, network_cost
from awtpn.bench.scaling.study import UPDATE_BYTES, Study, layout_of
from shards.safe_io.markdown import table

MOST_RANKS = 1 << 12  # to look for the end of scaling


def scaling_table(study: Study, batches: Mapping[int, int]) -> list[str]:
    """A row for each number of ranks and its global batch, or why there is none."""
    columns = ["ranks", "global batch", "per rank", "passes", "computing, ms", "straggler, ms", "update, ms"]
    columns += ["communication, ms", "of it exposed, ms", "waiting for data, ms", "step, ms", "utterances/s"]
    columns += ["straggler's share", "efficiency"]
    rows, refused = [], []
    for ranks, batch in batches.items():
        try:
            step = study.step(ranks, batch)
        except ValueError as error:
            refused += ["", f"{ranks:,} ranks: {error}"]
            continue
        parts = (step.computing, step.straggling, step.update, step.communication, step.exposed, step.waiting)
        rows.append(
            [
                f"{ranks:,}",
                f"{batch:,}",
                f"{batch // ranks:,}",
                f"{step.passes:.0f}",
                *(f"{seconds * 1e3:,.2f}" for seconds in (*parts, step.seconds)),
                f"{step.per_s:,.0f}",
                f"{step.straggling / step.seconds:.1%}",
                f"{efficiency(step, study.alone):.0%}",
            ]
        )
    return [*(table(columns, rows, "r").splitlines() if rows else []), *refused]


def end_of_scaling(study: Study, batch_of: Callable[[int], int]) -> str:
    """A sentence: from how many ranks, a power of two, the efficiency is below a half."""

    def at(ranks: int) -> Step | None:
        batch = batch_of(ranks)
        return study.step(ranks, batch) if batch % ranks == 0 and batch >= ranks else None

    kept = batch_of(2) == batch_of(4)
    most = batch_of(2) if kept else min(MOST_RANKS, 2 * int(study.sizes.utterances.sum()) // batch_of(2))
    found = stops_at(at, study.alone, most)
    if found is not None:
        return f"It stops scaling at {found[0]:,} ranks: efficiency {found[1]:.0%}, below a half."
    if kept:
        return f"Efficiency is a half or more up to {most:,} ranks; more have less than one utterance each."
    return f"Efficiency is a half or more up to {most:,} ranks, the most that were looked at."


def collective_table(study: Study, ranks: int, batch: int) -> list[str]:
    """A row for each collective of the step: bytes, calls, seconds."""
    layout = layout_of(study.config, batch, ranks)
    work = make_workload(study.config, layout, study.data, on_gpu=True)
    passes = round(study.step(ranks, batch).passes)
    rows = []
    for of in study.collectives(layout, work, study.engine(ranks), ranks, passes):
        network = study.host if of.on_host else study.network
        seconds = collective_s(network, of.kind, of.size, ranks, of.calls)
        figures = f"{of.size / 1e6:,.3f}", f"{of.calls:,.2f}", f"{seconds * 1e3:,.3f}"
        where = "hosts (gloo)" if of.on_host else "devices"
        rows.append([of.name, of.kind, where, *figures, of.beside])
    columns = ["collective", "kind", "between", "MB a step", "calls a step", "ms a step", "hidden by"]
    return table(columns, rows, "lllrrrl").splitlines()


def assumptions(study: Study, origin: str) -> list[str]:
    """Every assumption, and whether it was measured, given or computed."""
    config, machine, network, host = study.config, study.machine, study.network, study.host
    engine = study.engine(2)
    layout = layout_of(config, config.train.global_batch_size, 1)
    work = make_workload(config, layout, study.data, on_gpu=True)
    lengths = ", ".join(f"{m} {n:.0f}" for m, n in study.mean_steps.items())
    each = {m: [max(1, round(n))] for m, n in study.mean_steps.items()}
    lines = [
        "**Computed, not measured on a GPU.** Assumptions:",
        "",
        f"- Model: {work.weights:,} parameters, {work.parameters:,} of them trained, "
        f"{config.train.precision}, engine {engine}; mean time steps per utterance: {lengths}.",
        f"- Lengths and their balance: from the plan of {study.sizes.name}"
        f"{' (lengths drawn, as of speech)' if study.sizes.drawn else ''}, {STEPS} steps in the middle of an "
        "epoch; the modalities of an utterance are in proportion.",
        f"- Speed of a rank: {machine.flops_per_s / 1e12:,.3g} TFLOP/s ({origin}), and "
        f"{machine.pass_s * 1e3:.3g} ms for each pass besides. Backward is two thirds of a pass.",
        "- Optimizer: " + _update_line(machine),
        f"- Network: {network.ranks_per_node} ranks a node, {network.inner / 1e9:g} GB/s per rank within it, "
        f"{network.outer / 1e9:g} GB/s per node between nodes, in each direction; a hop takes "
        f"{network.inner_latency * 1e6:g} and {network.outer_latency * 1e6:g} us. Small sums on hosts "
        f"(gloo): {host.outer / 1e9:g} GB/s, {host.outer_latency * 1e6:g} us a hop. No other traffic.",
        f"- Overlap: collectives of gradients and weights run beside {machine.overlap:.0%} of the computing "
        "that can hide them; all others wait.",
        f"- Reading: {machine.read_per_s:,.0f} utterances/s per process, from page cache or local disk.",
        "- Efficiency: utterances/s, divided by the ranks times those of one that computes micro-batches "
        "of the run's size, and does nothing else.",
        "- Left out: validation, checkpoints, first download of shards, noise of the machines, failures.",
    ]
    if not study.encoders:
        flops = network_cost(each, replace(work, encoders={})).both
        lines.insert(3, f"- FLOPs of a mean utterance, forward and backward: {flops / 1e9:,.2f} GFLOP.")
    for m, (shape, cost) in study.encoders.items():
        sizes = shape.windows_of(each[m][0])
        flops = sum(cost.forward_flops(Pass(1, size)) for size in sizes)
        lines.insert(
            3,
            f"- {encoder_line(m, shape)}; {flops / 1e9:,.1f} GFLOP forward for a mean utterance, backward "
            f"{cost.backward:.2g} times that.",
        )
    return lines


def _update_line(machine: Machine) -> str:
    if math.isinf(machine.update_bytes_per_s):
        return "its update is in the time of a pass, as it was measured."
    speed = f"{machine.update_bytes_per_s / 1e9:,.0f} GB/s"
    return f"{UPDATE_BYTES} bytes for each weight that a rank updates, at {speed}."
