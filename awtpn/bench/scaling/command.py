"""`awtpn doctor --scaling CONFIG`: what a step would take on so many GPUs, and where it stops scaling."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from awtpn.bench.memory_data import data_from_corpus, data_from_options
from awtpn.bench.memory_table import make_workload
from awtpn.bench.scaling.encoder_flops import encoder_cost
from awtpn.bench.scaling.network import Network
from awtpn.bench.scaling.predict import Machine
from awtpn.bench.scaling.shares import network_cost
from awtpn.bench.scaling.study import Study, layout_of
from awtpn.bench.scaling.tables import assumptions, collective_table, end_of_scaling, scaling_table
from awtpn.config.command_line import parse_command_line
from awtpn.config.command_parser import KEYS, CommandParser
from awtpn.config.program import AWTPN, started_as
from awtpn.config.schema import Config
from awtpn.run.demos import dataset_url, located_encoder
from shards.format.split_names import find_split
from shards.storage.store import open_dataset
from shards.tools.simulate import split_sizes, synthetic_sizes

DOCTOR_SCALING = started_as(AWTPN, "doctor --scaling")
MEASURED_BATCHES = (8, 64)


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
        *assumptions(study, origin),
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
