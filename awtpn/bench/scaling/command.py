"""`awtpn doctor --scaling CONFIG`: what a step would take on so many GPUs, and where it stops scaling."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from awtpn.bench.encoder_memory.activations import Pass
from awtpn.bench.encoder_memory.shape import Shape
from awtpn.bench.memory_data import Data, data_from_corpus, data_from_options
from awtpn.bench.memory_estimate import Workload
from awtpn.bench.memory_table import encoder_line, make_workload
from awtpn.bench.scaling.collectives import Collective, holds_means, step_collectives
from awtpn.bench.scaling.encoder_flops import EncoderCost, encoder_cost
from awtpn.bench.scaling.network import Network, collective_s
from awtpn.bench.scaling.predict import Machine, Step, efficiency, predict, stops_at
from awtpn.bench.scaling.shares import STEPS, cost_of_ranks, network_cost, step_lengths
from awtpn.config.command_line import parse_command_line
from awtpn.config.command_parser import KEYS, CommandParser
from awtpn.config.program import AWTPN, started_as
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout, make_layout
from awtpn.distributed.engines import ENGINES
from awtpn.distributed.engines.deepspeed_config import ZERO, parse_buckets
from awtpn.run.demos import dataset_url, located_encoder
from shards.format.split_names import find_split
from shards.safe_io.markdown import table
from shards.storage.store import open_dataset
from shards.tools.simulate import SplitSizes, split_sizes, synthetic_sizes

DOCTOR_SCALING = started_as(AWTPN, "doctor --scaling")
# Bytes that AdamW reads and writes for a weight: the gradients' norm reads them once more; the update reads
# four float32 tensors and writes three.
UPDATE_BYTES = 32
MEASURED_BATCHES = (8, 64)
MOST_RANKS = 1 << 12  # to look for the end of scaling


@dataclass(frozen=True)
class Study:
    """All that the steps on any number of ranks have in common.

    Attributes:
        config: of the run.
        data: lengths and sizes.
        sizes: of the split that is planned.
        encoders: by modality the encoders and their FLOPs.
        machine, network, host: see `predict`.
    """

    config: Config
    data: Data
    sizes: SplitSizes
    encoders: Mapping[str, tuple[Shape, EncoderCost]]
    machine: Machine
    network: Network
    host: Network

    @functools.cached_property
    def mean_steps(self) -> dict[str, float]:
        """Stored time steps of a mean utterance, by modality of the model."""
        return {m: self.data.mean_steps[m] for m in self.config.model.modalities}

    def engine(self, ranks: int) -> str:
        stage = self.config.train.zero_stage
        if stage is not None:
            return f"zero{stage}"
        return "ddp" if ranks > 1 else "none"

    @functools.cached_property
    def alone(self) -> float:
        """Seconds of computing for an utterance on one rank, in micro-batches of the run's size."""
        batch = self.config.train.global_batch_size
        return self.step(1, batch).computing / batch

    def step(self, ranks: int, global_batch: int) -> Step:
        """The step on so many ranks, of `train.micro_batch_size` or what a rank has, if that is less.

        Raises:
            ValueError: the ranks do not divide the global batch.
        """
        layout = layout_of(self.config, global_batch, ranks)
        config, engine = self.config, self.engine(ranks)
        work = make_workload(config, layout, self.data, on_gpu=True)
        lengths = lengths_of(self.sizes, global_batch)
        costs = [
            cost_of_ranks(of, ranks, layout.accumulation, work, self.mean_steps, self.encoders)
            for of in lengths
        ]
        stage = ENGINES[engine].memory.stage
        twice = holds_means(config, layout)
        updated = work.parameters / (ranks if stage else 1)
        return predict(
            costs,
            [of.tolist() for of in lengths],
            self.machine,
            self.network,
            self.host,
            lambda passes: self.collectives(layout, work, engine, ranks, passes),
            UPDATE_BYTES * updated,
            each_pass=stage >= 2 and ranks > 1,
            twice=twice,
        )

    def collectives(
        self, layout: Layout, work: Workload, engine: str, ranks: int, passes: int
    ) -> list[Collective]:
        return step_collectives(self.config, layout, work, engine, ranks, parse_buckets(ZERO), passes)


@functools.lru_cache(maxsize=64)
def _lengths(name: str, global_batch: int, sizes: _ById) -> list[NDArray[np.float64]]:
    return step_lengths(sizes.of, global_batch)


@dataclass(frozen=True, eq=False)
class _ById:
    """Lets a cache hold sizes, which have no hash of their own."""

    of: SplitSizes


_SEEN: dict[int, _ById] = {}


def lengths_of(sizes: SplitSizes, global_batch: int) -> list[NDArray[np.float64]]:
    """`step_lengths`, kept: it does not depend on the ranks."""
    return _lengths(sizes.name, global_batch, _SEEN.setdefault(id(sizes), _ById(sizes)))


def layout_of(config: Config, global_batch: int, ranks: int) -> Layout:
    """The layout of so many ranks: the run's micro-batch, or all that a rank has if that is less."""
    share = global_batch // ranks
    micro = config.train.micro_batch_size
    return make_layout(global_batch, min(micro, share) if micro else None, ranks)


# --- The report ----------------------------------------------------------------------------------


def report(words: Sequence[str]) -> str:
    """The text for `--scaling WORDS`: a configuration file, options, and overrides `--section.key VALUE`.

    Raises:
        ValueError: the data cannot be read and `--steps` is not given, a baseline, or an option that does not
            fit; names the fix.
        SystemExit: an unknown key.
    """
    parser = make_parser()
    options = parser.parse_args(list(words))
    config, _ = parse_command_line(
        ["--config", options.config, *options.passed_on], DOCTOR_SCALING, also=parser.options
    )
    if config.model.name != "awtpn":
        raise ValueError(
            f"model.name is {config.model.name}, and only AWTPN's step is predicted: leave out model.name"
        )
    study, origin = make_study(config, options)
    micro = config.train.micro_batch_size or config.train.global_batch_size // min(options.ranks)
    kept = config.train.global_batch_size
    most = max(options.ranks)
    lines = [
        f"# Predicted scaling: {options.config}",
        "",
        *assumptions(study, options, origin),
        "",
        f"## The global batch stays at {kept:,}",
        "",
        *scaling_table(study, dict.fromkeys(options.ranks, kept)),
        "",
        end_of_scaling(study, lambda ranks: kept),
        "",
        f"## The global batch grows with the ranks: {micro} utterances per rank",
        "",
        *scaling_table(study, {ranks: micro * ranks for ranks in options.ranks}),
        "",
        end_of_scaling(study, lambda ranks: micro * ranks),
        "",
        f"## Collectives of a step on {most:,} ranks, global batch {micro * most:,}",
        "",
        *collective_table(study, most, micro * most),
        "",
    ]
    return "\n".join(lines)


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


def assumptions(study: Study, options: argparse.Namespace, origin: str) -> list[str]:
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


# --- Options -------------------------------------------------------------------------------------


def make_parser() -> CommandParser:
    parser = CommandParser(prog=DOCTOR_SCALING.name, allow_abbrev=False)
    parser.passes_on = KEYS
    parser.add_argument("config", metavar="CONFIG", help="the run's configuration file")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512], help="default: 8 64 512")
    data = parser.add_argument_group("data, instead of that of the configuration")
    data.add_argument(
        "--steps",
        nargs="+",
        metavar="NAME=N",
        help="mean steps per utterance; with an encoder, tenths of a second of sound, or pictures",
    )
    data.add_argument(
        "--features", nargs="+", metavar="NAME=N", help="with --steps: features per step, without an encoder"
    )
    data.add_argument("--classes", type=int, default=7, help="with --steps (default: 7)")
    data.add_argument(
        "--synthetic",
        default="1000000x1000",
        metavar="UTTERANCESxSHARDS",
        help="with --steps: the dataset to plan (default: 1000000x1000)",
    )
    device = parser.add_argument_group("a rank's device (default: an H100 or H200, computed)")
    device.add_argument("--measure", action="store_true", help="measure its speed on this machine")
    device.add_argument("--us_per_utterance", type=float, metavar="X", help="for a mean utterance, measured")
    device.add_argument("--tflops", type=float, default=989.0, help="peak, TFLOP/s (default: 989, bf16)")
    device.add_argument(
        "--utilization", type=float, default=0.3, help="share of the peak that a step reaches (default: 0.3)"
    )
    device.add_argument("--pass_ms", type=float, default=2.0, help="of a pass besides its FLOPs (default: 2)")
    device.add_argument(
        "--memory_gb_s", type=float, default=3350.0, help="of the device's memory (default: 3350)"
    )
    device.add_argument("--read", type=float, metavar="N", help="utterances/s that a process reads")
    device.add_argument(
        "--read_gb_s", type=float, default=4.0, help="without --read: GB/s that a process reads (default: 4)"
    )
    network = parser.add_argument_group("network")
    network.add_argument("--ranks_per_node", type=int, default=8, help="default: 8")
    network.add_argument(
        "--inner_gb_s", type=float, default=300.0, help="of a rank in its node (default: 300)"
    )
    network.add_argument("--outer_gb_s", type=float, default=300.0, help="of a node to others (default: 300)")
    network.add_argument("--inner_us", type=float, default=3.0, help="of a hop in a node (default: 3)")
    network.add_argument("--outer_us", type=float, default=8.0, help="of a hop between nodes (default: 8)")
    network.add_argument("--host_gb_s", type=float, default=5.0, help="of gloo between hosts (default: 5)")
    network.add_argument("--host_us", type=float, default=50.0, help="of a hop of gloo (default: 50)")
    network.add_argument(
        "--overlap",
        type=float,
        default=0.5,
        help="share of the computing that hides collectives (default: 0.5)",
    )
    return parser


def make_study(config: Config, options: argparse.Namespace) -> tuple[Study, str]:
    """What options and data say, and where the device's speed is from.

    Raises:
        ValueError: an option is out of its range, or does not fit the model.
    """
    check_options(options)
    if options.steps:
        data, sizes = data_from_options(options, config), synthetic_sizes(options.synthetic)
    else:
        data = data_from_corpus(config)
        url = dataset_url(config.data.train, config.data.cache_dir)
        store, manifest, split = open_dataset(url, config.data.cache_dir, config.data.storage_options)
        names = list(manifest.splits)
        sizes = split_sizes(store, manifest, split or find_split("train", names) or names[0])
    encoders = {
        m: (shape, encoder_cost(m, located_encoder(config.encoder[m], m, config.data.cache_dir), shape))
        for m, shape in data.shapes.items()
    }
    rate, pass_s, memory = (
        options.tflops * 1e12 * options.utilization,
        options.pass_ms / 1e3,
        options.memory_gb_s,
    )
    origin = f"computed: {options.utilization:.0%} of a peak of {options.tflops:g}"
    if options.us_per_utterance or options.measure:
        if encoders:
            raise ValueError(
                "--measure and --us_per_utterance are for models without encoders: give --tflops and "
                "--utilization"
            )
        if options.measure:
            rate, pass_s, origin = measured_speed(config)
            memory = math.inf
        else:
            layout = layout_of(config, config.train.global_batch_size, 1)
            each = {m: [max(1, round(data.mean_steps[m]))] for m in config.model.modalities}
            work = make_workload(config, layout, data, on_gpu=True)
            rate = network_cost(each, work).both / options.us_per_utterance * 1e6
            origin = f"given: {options.us_per_utterance:g} us for a mean utterance"
    per_utterance = sum(data.mean_steps[m] * data.step_bytes[m] for m in config.model.modalities)
    read = options.read or options.read_gb_s * 1e9 / per_utterance
    network = Network(
        options.ranks_per_node,
        options.inner_gb_s * 1e9,
        options.outer_gb_s * 1e9,
        options.inner_us / 1e6,
        options.outer_us / 1e6,
    )
    link, hop = options.host_gb_s * 1e9, options.host_us / 1e6
    host = Network(options.ranks_per_node, link, link, hop, hop)
    machine = Machine(rate, pass_s, memory * 1e9, read, options.overlap)
    return Study(config, data, sizes, encoders, machine, network, host), origin


def measured_speed(config: Config) -> tuple[float, float, str]:
    import torch

    from awtpn.bench.machine import hardware
    from awtpn.bench.scaling.measured import measure_device
    from awtpn.bench.step import Setting

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "fp32" if config.train.precision == "fp32" else "bf16"
    setting = Setting(device, precision, torch.get_num_threads())
    rate, pass_s = measure_device(setting, config.model.shared_dim, MEASURED_BATCHES, 3)
    sizes = " and ".join(map(str, MEASURED_BATCHES))
    return rate, pass_s, f"measured here, {hardware(device)}, {precision}, steps of {sizes} utterances"


POSITIVE = ("tflops", "utilization", "memory_gb_s", "read_gb_s", "inner_gb_s", "outer_gb_s", "host_gb_s")
NOT_NEGATIVE = ("pass_ms", "inner_us", "outer_us", "host_us")


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError, naming the option, for a figure that cannot be."""
    given = vars(options)
    for name in POSITIVE + tuple(n for n in ("read", "us_per_utterance") if given[n] is not None):
        if not 0 < given[name] < math.inf:
            raise ValueError(f"--{name} must be above 0, not {given[name]:g}")
    for name in NOT_NEGATIVE:
        if not 0 <= given[name] < math.inf:
            raise ValueError(f"--{name} must not be negative, but is {given[name]:g}")
    if not 0 <= options.overlap <= 1:
        raise ValueError(f"--overlap must lie in [0, 1], not {options.overlap:g}")
    if min(options.ranks, default=0) < 1 or options.ranks_per_node < 1:
        raise ValueError("--ranks and --ranks_per_node must be at least 1")
