"""DeepSpeed's configuration: filled from the run's, refused where it contradicts it; and its CPU op."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from awtpn.config.schema import Config, Launch
from awtpn.distributed.accelerate_launch import who_says
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.engine_state import float32_masters, unwrap_optimizer
from awtpn.learning.optimizer import set_grad_norm
from shards.safe_io.bounded_json import read_json
from shards.safe_io.json_text import find_not_finite
from shards.storage.local_path import local_path

DEFAULT_ZERO_STAGE = 2
# Where no DeepSpeed file says otherwise; those in configs/deepspeed say the same. DeepSpeed's own sizes suit
# models of billions: they would keep all weights of ours gathered at stage 3, and 1 GB of buffers.
ZERO: dict[str, Any] = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 150_000_000,
    "stage3_max_reuse_distance": 150_000_000,
}


def deepspeed_settings(
    config: Config, launch: Launch, layout: Layout, environment: Mapping[str, str]
) -> dict[str, Any] | None:
    """DeepSpeed's configuration, or None where nobody asked for DeepSpeed.

    The run's configuration rules. `auto` or absent keys of a DeepSpeed file are filled from it; another
    explicit value there, or in Accelerate's flags, is refused.

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
    required = {
        "train_batch_size": (layout.global_batch, "train.global_batch_size"),
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
        # Its optimizer divides gradients by a loss scale that its backward has not multiplied losses by.
        raise ValueError(
            "DeepSpeed's ZeRO stage 0 scales no losses in fp16, and would hardly train: "
            "use --train.zero_stage 1 or higher, train without DeepSpeed, or in bf16"
        )
    if conflicts:
        raise ValueError("the DeepSpeed configuration contradicts the run's:\n- " + "\n- ".join(conflicts))
    # Any optimizer: ours is torch's AdamW, made by awtpn.learning.optimizer.
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
    """What `accelerate launch --use_deepspeed` says by flags instead of a DeepSpeed file."""
    flags: dict[str, Any] = {}
    if stage := environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"):
        flags["zero_optimization.stage"] = int(stage)
    clipping = environment.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
    if clipping not in ("auto", "none"):
        flags["gradient_clipping"] = float(clipping)
    accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if accumulation.isdigit() and int(accumulation) > 1:  # 1 is what Accelerate says when nobody did
        flags["gradient_accumulation_steps"] = int(accumulation)
    for kind in ("OPTIMIZER", "PARAM"):
        if environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{kind}_DEVICE", "none") != "none":
            raise ValueError(
                f"offloading the {kind.lower()} by Accelerate's flags: put it in a DeepSpeed file"
            )
    return flags


def load_communication_op() -> None:
    """Compile (once per machine) or load DeepSpeed's CPU communication op, one process at a time.

    DeepSpeed would do so itself, under a lock file of torch's. A process killed meanwhile leaves that file
    behind, and every later run waits for it forever; our lock ends with its process.

    Raises:
        ValueError: the folder for compiled operators cannot be written; names the variable that moves it.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm.torch import build_shm_op
    from torch.utils.cpp_extension import _get_build_directory

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    try:
        folder = Path(_get_build_directory(builder.name, verbose=False))
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        root = os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions"
        raise ValueError(
            f"DeepSpeed's communication op cannot be compiled into {root} ({error.strerror}): set the "
            "environment variable TORCH_EXTENSIONS_DIR to a folder that can be written"
        ) from None
    with lock:
        lock.release()  # of the two acquisitions; the block holds the other
        (folder / "lock").unlink(missing_ok=True)
        build_shm_op()


def patch_zero0(engine: Any, optimizer: torch.optim.Optimizer, precision: str) -> None:
    """Undo what DeepSpeed does otherwise at stage 0 than at all others.

    In float32 it clips as torch does, but forgets the norm, which every other engine tells. In half precision
    its optimiser tries a step while it is made: weights have decayed and Adam has counted one.
    """
    if precision == "fp32":
        largest = engine.gradient_clipping() or math.inf  # infinity clips nothing and still yields the norm

        def clip() -> None:
            engine._global_grad_norm = nn.utils.clip_grad_norm_(engine.module.parameters(), largest)
            set_grad_norm(unwrap_optimizer(optimizer), engine._global_grad_norm)

        engine.gradient_clipping = lambda: largest
        engine.clip_fp32_gradients = clip
        return
    for half, master in float32_masters(engine).items():
        master.data.copy_(half.data)
    unwrap_optimizer(optimizer).state.clear()
