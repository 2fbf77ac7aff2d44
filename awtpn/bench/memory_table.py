"""`awtpn doctor --memory CONFIG`: the estimated memory per rank, by engine and ZeRO stage."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from awtpn.bench.memory_estimate import Workload, largest_steps, peak, phase_bytes, saving_bytes
from awtpn.config.command_line import parse_command_line
from awtpn.config.command_parser import KEYS, CommandParser
from awtpn.config.program import AWTPN, started_as
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout, make_layout
from awtpn.distributed.engines import engines_for
from awtpn.distributed.engines.deepspeed_config import ZERO, Buckets, parse_buckets, read_buckets
from awtpn.model.settings import ModelConfig
from awtpn.run.data import check_features_only
from awtpn.run.demos import dataset_url
from shards.format.split_names import find_split
from shards.safe_io.markdown import bold, table
from shards.tools.info import Lengths, info

PARTS = (
    "weights",
    "master weights",
    "optimizer states",
    "averaged weights",
    "gradients",
    "buckets",
    "gathered weights",
    "update",
    "activations",
    "batches",
    "libraries",
)
DOCTOR_MEMORY = started_as(AWTPN, "doctor --memory")
FEATURE_BYTES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class Data:
    """Sizes and lengths of a corpus.

    Attributes:
        feature_dims: features per time step, by modality.
        feature_bytes: per stored feature value.
        classes: number of classes.
        mean_steps, deviation, longest: mean, standard deviation and maximum of the time steps per utterance,
            by modality; an utterance without the modality counts as 0.
    """

    feature_dims: dict[str, int]
    feature_bytes: int
    classes: int
    mean_steps: dict[str, float]
    deviation: dict[str, float]
    longest: dict[str, int]


def report(words: Sequence[str]) -> str:
    """The text for `--memory WORDS`: a configuration file, options, and overrides `--section.key VALUE`.

    Raises:
        ValueError: the data cannot be read and `--steps` is not given, or DeepSpeed's file has settings that
            are not estimated, or the model is a baseline; names the fix.
        SystemExit: an unknown key.
    """
    parser = make_parser()
    options = parser.parse_args(list(words))
    deepspeed = ["--deepspeed", options.deepspeed] if options.deepspeed else []
    config, launch = parse_command_line(
        ["--config", options.config, *deepspeed, *options.passed_on], DOCTOR_MEMORY, also=parser.options
    )
    if config.model.name != "awtpn":
        raise ValueError(
            f"model.name is {config.model.name}, and only AWTPN's memory is estimated: leave out model.name, "
            "or train a step and look at system/memory_gib in TensorBoard"
        )
    file = launch.deepspeed_file
    buckets = read_buckets(Path(file)) if file else parse_buckets(ZERO)
    data = data_from_options(options, config.model) if options.steps else data_from_corpus(config)
    on_gpu = options.device == "cuda"
    lines = []
    for ranks in options.ranks:
        lines += ["", *rows(config, data, ranks, buckets, on_gpu)]
    return "\n".join([*heading(options.config, config, data, on_gpu), *lines])


def make_parser() -> CommandParser:
    parser = CommandParser(prog=DOCTOR_MEMORY.name, allow_abbrev=False)
    parser.passes_on = KEYS
    parser.add_argument("config", metavar="CONFIG", help="the run's configuration file")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--device", choices=["cpu", "cuda"], default=_device(), help="where it will run")
    parser.add_argument("--deepspeed", metavar="FILE", help="DeepSpeed configuration, for its bucket sizes")
    parser.add_argument(
        "--steps", nargs="+", metavar="NAME=N", help="mean steps per utterance, instead of reading the data"
    )
    parser.add_argument("--features", nargs="+", metavar="NAME=N", help="with --steps: features per step")
    parser.add_argument("--classes", type=int, default=7, help="with --steps (default: 7)")
    return parser


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# --- The data ------------------------------------------------------------------------------------


def data_from_corpus(config: Config) -> Data:
    """Lengths and dims of the training split, from the manifest and the indexes.

    Raises:
        ValueError: there is no such dataset (names the options to use instead), it lacks a modality, or a
            modality holds recordings.
        OSError: the store cannot be reached.
    """
    data = config.data
    url = dataset_url(data.train, data.cache_dir)
    steps, features = (" ".join(f"{m}={n}" for m in config.model.modalities) for n in (60, 1024))
    fix = f"pack it, or give its sizes, such as --steps {steps} --features {features}"
    try:
        found = info(url, cache_dir=data.cache_dir, storage_options=data.storage_options)
    except ValueError as error:
        raise ValueError(f"{error}; {fix}") from None
    names = list(found.splits)
    split = found.splits[find_split("train", names) or names[0]]
    missing = [m for m in config.model.modalities if m not in found.manifest.modalities]
    if missing:
        raise ValueError(f"{found.url} has no {' and no '.join(missing)}: change model.modalities")
    chosen = {m: found.manifest.modalities[m] for m in config.model.modalities}
    check_features_only(chosen, found.manifest.modalities, found.url)
    return Data(
        feature_dims={m: modality.dim for m, modality in chosen.items()},
        feature_bytes=max(FEATURE_BYTES[modality.dtype] for modality in chosen.values()),
        classes=len(found.manifest.classes),
        mean_steps={m: split.steps[m] / split.utterances for m in chosen},
        deviation={m: deviation(split.lengths[m]) for m in chosen},
        longest={m: split.lengths[m].most for m in chosen},
    )


def deviation(lengths: Lengths) -> float:
    """Standard deviation of the lengths, from their histogram; one without the modality counts as 0."""
    middles = (np.array(lengths.edges[:-1]) + np.array(lengths.edges[1:]) - 1) / 2
    counts = np.array([lengths.missing, *lengths.counts], np.float64)
    values = np.array([0.0, *middles])
    if counts.sum() == 0:
        return 0.0
    mean = np.average(values, weights=counts)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))


def data_from_options(options: argparse.Namespace, model: ModelConfig) -> Data:
    """Data of `--steps`, `--features` and `--classes`, for a model of these modalities.

    Assumes float16 features, and lengths whose standard deviation is their mean and whose maximum is ten
    times their mean.

    Raises:
        ValueError: sizes of a modality are missing, or it is none of the model's; names the fix.
    """
    steps, dims = parse_pairs(options.steps, "--steps"), parse_pairs(options.features or [], "--features")
    if steps.keys() != dims.keys():
        raise ValueError(
            f"--steps names {sorted(steps)}, but --features {sorted(dims)}: give both for each modality"
        )
    if steps.keys() != model.modalities.keys():
        raise ValueError(
            f"--steps names {', '.join(steps)}, but model.modalities {', '.join(model.modalities)}: give the "
            f"sizes of all these, or --model.modalities {','.join(steps)}"
        )
    mean = {m: float(n) for m, n in steps.items()}
    return Data(dims, 2, options.classes, mean, mean, {m: 10 * n for m, n in steps.items()})


def parse_pairs(words: Sequence[str], option: str) -> dict[str, int]:
    """["text=30"] -> {"text": 30}."""
    found = {}
    for word in words:
        name, mark, number = word.partition("=")
        if not mark or not number.isdigit():
            raise ValueError(f"{option} takes NAME=NUMBER, such as text=30, not {word!r}")
        found[name] = int(number)
    return found


def make_workload(config: Config, layout: Layout, data: Data) -> Workload:
    """The model, and the data that a rank processes in an optimizer step."""
    model, micro = config.model, layout.micro_batch
    steps = {
        m: largest_steps(data.mean_steps[m], data.deviation[m], data.longest[m], micro, layout.accumulation)
        for m in model.modalities
    }
    per_utterance = sum(data.mean_steps[m] * data.feature_dims[m] for m in model.modalities)
    return Workload(
        feature_dims={m: data.feature_dims[m] for m in model.modalities},
        dim=model.shared_dim,
        classes=data.classes,
        steps=steps,
        batch_bytes=per_utterance * data.feature_bytes * micro * layout.accumulation,
        accumulation=layout.accumulation,
        prototypes_per_class=model.prototypes_per_class,
        adaptive=model.awm == "adaptive",
        learnable=config.prototypes.update == "gradient",
        dropout=model.dropout > 0,
        averaged=config.train.ema_decay > 0,
        statistics=config.model.statistics,
        # Sum of squared lengths: steps times E[n^2] / E[n] = E[n] + Var[n] / E[n].
        scores={
            m: of * (data.mean_steps[m] + data.deviation[m] ** 2 / max(data.mean_steps[m], 1.0))
            for m, of in steps.items()
        },
    )


# --- The table -----------------------------------------------------------------------------------


def heading(name: str, config: Config, data: Data, on_gpu: bool) -> list[str]:
    train = config.train
    micro = train.micro_batch_size or "the rank's share"
    what = (
        "memory that PyTorch allocates on each GPU (CUDA's own, some 0.5 GB, comes on top)"
        if on_gpu
        else "growth of each process on a CPU since its model was built (libraries, some 0.4 GB, come on top)"
    )
    lengths = ", ".join(f"{m} {n:.0f}" for m, n in data.mean_steps.items())
    return [
        f"{name}: shared_dim {config.model.shared_dim}, {train.precision}, global batch "
        f"{train.global_batch_size}, micro-batch {micro}; mean steps per utterance: {lengths}",
        f"Estimated {what}, at its peak in training, in MB.",
    ]


def rows(config: Config, data: Data, ranks: int, buckets: Buckets, on_gpu: bool) -> list[str]:
    """Markdown: a row per engine for one number of ranks, or why this number is not possible."""
    try:
        layout = make_layout(config.train.global_batch_size, config.train.micro_batch_size, ranks)
    except ValueError as error:
        return [f"{ranks} ranks: {error}"]
    work = make_workload(config, layout, data)
    engines = engines_for(ranks)
    found = {
        e: phase_bytes(work, e, ranks, config.train.precision, on_gpu=on_gpu, buckets=buckets)
        for e in engines
    }
    return [
        f"{ranks} rank{'s' * (ranks > 1)}: {work.parameters:,} parameters, accumulation "
        f"{layout.accumulation}, largest micro-batch {', '.join(f'{m} {n:,}' for m, n in work.steps.items())}"
        f" steps; saving takes {saving_bytes(work, engines[-1]) / 1e6:,.0f} MB more on rank 0's host",
        "",
        engine_table(found),
    ]


def engine_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row per engine: the parts in its peak phase, without columns that are empty for all engines."""
    worst = {engine: peak(of) for engine, of in found.items()}
    at_peak = {engine: found[engine][phase] for engine, (phase, _) in worst.items()}
    shown = [part for part in PARTS if any(part in parts for parts in at_peak.values())]
    rows = []
    for engine, (phase, total) in worst.items():
        cells = [f"{at_peak[engine].get(part, 0.0) / 1e6:,.0f}" for part in shown]
        rows.append([engine, *cells, bold(f"{total / 1e6:,.0f}"), phase])
    return table(["engine", *shown, "peak", "in"], rows, f"l{'r' * (len(shown) + 1)}l")
