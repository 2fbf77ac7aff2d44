"""DeepSpeed's configuration, completed from the run's; contradictions are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from awtpn.config.schema import Config, Launch
from awtpn.distributed.accelerate_launch import who_says
from awtpn.distributed.batch_layout import Layout
from shards.safe_io.bounded_json import read_json
from shards.safe_io.json_text import find_not_finite
from shards.storage.local_path import local_path

DEFAULT_ZERO_STAGE = 2
# Used without a DeepSpeed file; the files in configs/deepspeed have the same values. DeepSpeed's own defaults
# are for models of billions of parameters: at stage 3 they would keep all our weights gathered, and 1 GB of
# buffers.
ZERO: dict[str, Any] = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 150_000_000,
    "stage3_max_reuse_distance": 150_000_000,
}


@dataclass(frozen=True)
class Buckets:
    """DeepSpeed's buffers, in elements: `zero_optimization.*` of its configuration; its own defaults."""

    reduce: int = 500_000_000
    prefetch: int = 50_000_000
    live: int = 1_000_000_000
    overlap_comm: bool = False


def deepspeed_settings(
    config: Config, launch: Launch, layout: Layout, environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """DeepSpeed's configuration, or None if neither launcher nor run asks for DeepSpeed.

    The run's configuration has precedence. Keys of a DeepSpeed file that are absent or `auto` are filled from
    it; another explicit value there, or in Accelerate's flags, is refused.

    Raises:
        ValueError: lists every key in conflict, with both values.
    """
    by_accelerate = environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    file = launch.deepspeed_file
    if file is None and by_accelerate:
        file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
        file = None if file == "none" else file
    if not (file or by_accelerate or launch.by_deepspeed_launcher or config.train.zero_stage is not None):
        return None

    settings: dict[str, Any] = _read_deepspeed_file(file) if file else {"zero_optimization": dict(ZERO)}
    where = file or who_says("use_deepspeed")
    flags: dict[str, Any] = {}
    if by_accelerate and not file:
        flags = _accelerate_flags(environment)
    stage: Any = config.train.zero_stage
    if stage is None:
        stage = flags.get(
            "zero_optimization.stage", settings.get("zero_optimization", {}).get("stage", "auto")
        )
        stage = DEFAULT_ZERO_STAGE if stage == "auto" else stage
    # DeepSpeed wants a product: of ranks with unequal shares, that with the largest one.
    ranks = int(environment.get("WORLD_SIZE", "1"))
    whole = layout.global_batch if layout.even else layout.micro_batch * layout.accumulation * ranks
    required = {
        "train_batch_size": (whole, "train.global_batch_size"),
        "train_micro_batch_size_per_gpu": (layout.micro_batch, "train.micro_batch_size"),
        "gradient_accumulation_steps": (layout.accumulation, "global batch / (micro-batch x ranks)"),
        "gradient_clipping": (float(config.optim.grad_clip), "optim.grad_clip"),
        "bf16.enabled": (config.train.precision == "bf16", "train.precision"),
        "fp16.enabled": (config.train.precision == "fp16", "train.precision"),
        "zero_optimization.stage": (stage, "train.zero_stage"),
    }
    conflicts = []
    for key, (value, origin) in required.items():
        *sections, last = key.split(".")
        section = settings
        for name in sections:
            section = section.setdefault(name, {})
        for found in (section.get(last, "auto"), flags.get(key, "auto")):
            if found != "auto" and found != value:
                conflicts.append(f"{key} is {found} in {where}, but {value} by {origin}")
        section[last] = value
    for name in ("optimizer", "scheduler"):
        if name in settings:
            conflicts.append(f"{name} is set in {where}, but belongs to the run's optim.* keys")
    if config.train.precision == "fp16" and stage == 0:
        # Its optimizer divides gradients by a loss scale, but its backward does not multiply losses by it.
        raise ValueError(
            "DeepSpeed's ZeRO stage 0 scales no losses in fp16, and would hardly train: "
            "use --train.zero_stage 1 or higher, train without DeepSpeed, or in bf16"
        )
    if conflicts:
        raise ValueError("the DeepSpeed configuration contradicts the run's:\n- " + "\n- ".join(conflicts))
    # Otherwise DeepSpeed refuses optimizers that are not its own; ours is torch's AdamW.
    settings["zero_allow_untested_optimizer"] = True
    return settings


def _read_deepspeed_file(file: str) -> dict[str, Any]:
    try:
        settings = read_json(local_path(file, "--deepspeed"))
    except OSError as error:
        raise ValueError(f"cannot read the DeepSpeed configuration {file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the DeepSpeed configuration {file} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the DeepSpeed configuration {file} is not a JSON object")
    if (found := find_not_finite(settings)) is not None:
        raise ValueError(f"the DeepSpeed configuration {file}: {found[0]} is {found[1]}; write a number")
    for name, example in {"zero_optimization": "stage", "bf16": "enabled", "fp16": "enabled"}.items():
        if not isinstance(settings.get(name, {}), dict):
            raise ValueError(
                f"{name} in the DeepSpeed configuration {file} must be a mapping such as "
                f'{{"{example}": "auto"}}, not {json.dumps(settings[name])}'
            )
    return settings


def _accelerate_flags(environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings that `accelerate launch --use_deepspeed` takes as flags, instead of a DeepSpeed file."""
    flags: dict[str, Any] = {}
    if stage := environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"):
        flags["zero_optimization.stage"] = int(stage)
    clipping = environment.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
    if clipping not in ("auto", "none"):
        flags["gradient_clipping"] = float(clipping)
    accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if accumulation.isdigit() and int(accumulation) > 1:  # 1 is Accelerate's default
        flags["gradient_accumulation_steps"] = int(accumulation)
    for kind in ("OPTIMIZER", "PARAM"):
        if environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{kind}_DEVICE", "none") != "none":
            raise ValueError(
                f"Accelerate's flags ask for offloading the {kind.lower()}: use a DeepSpeed file instead"
            )
    return flags


def read_buckets(file: Path) -> Buckets:
    """The buffer sizes of a DeepSpeed configuration.

    Raises:
        ValueError: it cannot be read, or offloads, which is not estimated.
    """
    try:
        zero = read_json(file).get("zero_optimization", {})
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the DeepSpeed configuration {file}: {error}") from None
    for key in ("offload_optimizer", "offload_param"):
        if zero.get(key, {}).get("device", "none") != "none":
            raise ValueError(f"{file} sets zero_optimization.{key}, which is not estimated: leave it out")
    return parse_buckets(zero)


def parse_buckets(zero: Mapping[str, Any]) -> Buckets:
    """The buffer sizes of `zero_optimization` settings; DeepSpeed's defaults for missing or "auto" ones."""
    default = Buckets()
    sizes = {
        name: default_size if zero.get(key, "auto") == "auto" else int(zero[key])
        for name, key, default_size in (
            ("reduce", "reduce_bucket_size", default.reduce),
            ("prefetch", "stage3_prefetch_bucket_size", default.prefetch),
            ("live", "stage3_max_live_parameters", default.live),
        )
    }
    return Buckets(**sizes, overlap_comm=zero.get("overlap_comm") is True)
