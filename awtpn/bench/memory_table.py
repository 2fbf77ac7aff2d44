"""`awtpn doctor --memory CONFIG`: the estimated memory per rank, by engine and ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from awtpn.bench.encoder_memory.activations import peak_bytes
from awtpn.bench.encoder_memory.passes import DrawnPass, draw_passes, heaviest
from awtpn.bench.encoder_memory.shape import Shape
from awtpn.bench.memory_data import Data, data_from_corpus, data_from_options
from awtpn.bench.memory_estimate import Workload, largest_steps, peak, phase_bytes, saving_bytes
from awtpn.config.command_line import parse_command_line
from awtpn.config.command_parser import KEYS, CommandParser
from awtpn.config.program import AWTPN, started_as
from awtpn.config.schema import Config
from awtpn.distributed.batch_layout import Layout, make_layout
from awtpn.distributed.engines import engines_for
from awtpn.distributed.engines.deepspeed_config import ZERO, Buckets, parse_buckets, read_buckets
from shards.safe_io.markdown import bold, table

PARTS = (
    "weights",
    "layers above",
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
    data = data_from_options(options, config) if options.steps else data_from_corpus(config)
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
        "--steps",
        nargs="+",
        metavar="NAME=N",
        help="mean steps per utterance, instead of reading the data; "
        "with an encoder, tenths of a second of sound, or pictures",
    )
    parser.add_argument(
        "--features", nargs="+", metavar="NAME=N", help="with --steps: features per step, without an encoder"
    )
    parser.add_argument("--classes", type=int, default=7, help="with --steps (default: 7)")
    return parser


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# --- The work of a rank ---------------------------------------------------------------------------


def make_workload(config: Config, layout: Layout, data: Data, on_gpu: bool = False) -> Workload:
    """The model, and the data that a rank processes in an optimizer step.

    With encoders, a micro-batch is cut into passes; the work is that of the one which needs most memory.
    """
    model, micro = config.model, layout.micro_batch
    steps = {
        m: largest_steps(data.mean_steps[m], data.deviation[m], data.longest[m], micro, layout.accumulation)
        for m in model.modalities
    }
    # Sum of squared lengths: steps times E[n^2] / E[n] = E[n] + Var[n] / E[n].
    squares = {m: data.mean_steps[m] + data.deviation[m] ** 2 / max(data.mean_steps[m], 1.0) for m in steps}
    passes, largest = layout.accumulation, DrawnPass(steps, {})
    if data.shapes:
        drawn = draw_passes(data.shapes, {m: data.quantiles[m] for m in model.modalities}, micro)
        passes *= max(map(len, drawn))
        largest = heaviest(drawn, lambda each: _activations(data.shapes, each, config, on_gpu))
    per_utterance = sum(data.mean_steps[m] * data.step_bytes[m] for m in model.modalities)
    return Workload(
        feature_dims={m: data.feature_dims[m] for m in model.modalities},
        dim=model.shared_dim,
        classes=data.classes,
        steps=largest.steps,
        batch_bytes=per_utterance * micro * layout.accumulation,
        accumulation=layout.accumulation,
        prototypes_per_class=model.prototypes_per_class,
        adaptive=model.awm == "adaptive",
        learnable=config.prototypes.update == "gradient",
        dropout=model.dropout > 0,
        averaged=config.train.ema_decay > 0,
        statistics=config.model.statistics,
        scores={m: of * squares[m] for m, of in largest.steps.items()},
        passes=passes,
        encoders={m: (data.shapes[m], of) for m, of in largest.windows.items()},
    )


def _activations(shapes: Mapping[str, Shape], drawn: DrawnPass, config: Config, on_gpu: bool) -> float:
    encoders = [(shapes[m], of) for m, of in drawn.windows.items()]
    return peak_bytes(encoders, config.train.precision != "fp32", False, on_gpu)[1]


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
        *(encoder_line(m, shape) for m, shape in data.shapes.items()),
    ]


def encoder_line(modality: str, shape: Shape) -> str:
    """An encoder, how it is trained, and what its passes hold."""
    settings, counts = shape.settings, shape.counts
    budget = f"{settings.pass_seconds:g} s" if shape.is_sound else f"{settings.pass_pictures} pictures"
    return (
        f"encoder.{modality}: {shape.kind}, {shape.layers} layers of {shape.layer.dim}, tune "
        f"{settings.tune}, {counts.trained:,} of {counts.all:,} parameters trained, passes of {budget}, "
        f"{'with' if settings.checkpointing else 'without'} checkpointing"
    )


def rows(config: Config, data: Data, ranks: int, buckets: Buckets, on_gpu: bool) -> list[str]:
    """Markdown: a row per engine for one number of ranks, or why this number is not possible."""
    try:
        layout = make_layout(config.train.global_batch_size, config.train.micro_batch_size, ranks)
    except ValueError as error:
        return [f"{ranks} ranks: {error}"]
    work = make_workload(config, layout, data, on_gpu)
    engines = engines_for(ranks)
    found = {
        e: phase_bytes(work, e, ranks, config.train.precision, on_gpu=on_gpu, buckets=buckets)
        for e in engines
    }
    kind = f", {work.passes} passes, largest pass" if work.encoders else ", largest micro-batch"
    return [
        f"{ranks} rank{'s' * (ranks > 1)}: {work.parameters:,} parameters, accumulation "
        f"{layout.accumulation}{kind} {', '.join(f'{m} {n:,}' for m, n in work.steps.items())}"
        f" steps; checkpoints take {saving_bytes(work, engines[-1]) / 1e6:,.0f} MB more on rank 0's host, "
        + ("for the whole run" if config.train.async_checkpoint else "while they are saved"),
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
