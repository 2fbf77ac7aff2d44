"""What an engine is (`Engine`), and its functions where weights and optimizer are plain torch's.

`single` and `ddp` use almost all of these functions. `deepspeed` has its own where ZeRO keeps tensors in
partitions.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn

from awtpn.distributed.host_copies import HostCopies
from awtpn.learning import averaging
from awtpn.learning.averaging import AVERAGE
from awtpn.learning.optimizer import set_grad_norm
from awtpn.model.base import ENCODERS, EmotionModel

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
STATES = (*MOMENTS, AVERAGE)  # what the optimizer may hold of a tensor, besides its step
AVAILABLE = (
    "the engines here are none, DDP and DeepSpeed; take one of configs/accelerate, and shard what a GPU "
    "cannot hold with --train.zero_stage 3"
)


@dataclass(frozen=True)
class MemoryUse:
    """What decides how much memory a rank needs under an engine, for `awtpn doctor --memory`."""

    stage: int = 0
    """Of ZeRO: 1 partitions Adam's moments and float32 weights; 2 gradients, too; 3 all weights, too."""
    half_weights: bool = False
    """In half precision the model itself is cast; otherwise autocast casts weights in each forward."""
    flat_buckets: bool = False
    """Gradients are copied into flat buffers for the reduction."""
    gradient_copy: bool = False
    """The buffers of the reduction hold one more copy of all gradients, for the whole run."""
    libraries: float = 30e6
    """Bytes of modules, buffers of gloo and code pages that the first step loads; on the host."""


Accumulate = Callable[[Accelerator, nn.Module, bool], AbstractContextManager[None]]
State = tuple[dict[str, Tensor], dict[str, Tensor], float]
"""Full float32 weights, Adam's moments and averages by parameter name, and Adam's step.

An entry of the second is named by parameter and kind, such as "classifier.bias.exp_avg" or
"classifier.bias.average".
"""


# --- Start ---------------------------------------------------------------------------------------


def make_accelerator(
    precision: str, on_gpu: bool, ranks: int, wait: timedelta, settings: Mapping[str, Any] | None = None
) -> Accelerator:
    """Join the other ranks and start the engine.

    Args:
        precision: "no", "bf16" or "fp16".
        on_gpu: train on the GPU.
        ranks: started by the launcher.
        wait: how long a collective waits for a rank before it fails.
        settings: the engine's own, where it has any.

    Raises:
        ValueError: Accelerate was told to use an engine that is not among ours.
    """
    accelerator = join_ranks(on_gpu, wait, precision)
    found = accelerator.distributed_type
    if found != "NO" and not found.startswith("MULTI_"):
        raise ValueError(f"Accelerate would train by {found}: {AVAILABLE}")
    # Accelerate divides losses by it, and the environment may set it. Our losses are already shares of the
    # global batch's.
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def join_ranks(on_gpu: bool, wait: timedelta, precision: str | None = None) -> Accelerator:
    """Accelerate without DeepSpeed, whatever its launcher says. `precision` None takes the launcher's."""
    ignore_deprecations()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    return Accelerator(cpu=not on_gpu, mixed_precision=precision, kwargs_handlers=handlers(on_gpu, wait))


def ignore_deprecations() -> None:
    """Hide what these libraries warn of in each other's calls, once per rank: a user can change nothing."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"accelerate\.|torch\.distributed\.")


def handlers(on_gpu: bool, wait: timedelta) -> list[Any]:
    """Accelerate's settings of the process group and of DDP."""
    # On a CPU, Accelerate with DeepSpeed reports a world of 1 on every rank unless it is told the backend.
    # Where no launcher started ranks there is no process group, and naming a backend would fail.
    backend = "gloo" if "LOCAL_RANK" in os.environ and not on_gpu else None
    return [
        InitProcessGroupKwargs(backend=backend, timeout=wait),
        # Buffers are broadcast once, at the start; later every rank updates them in the same way.
        DistributedDataParallelKwargs(broadcast_buffers=False),
    ]


def wrap(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, precision: str
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model and optimizer, wrapped by the engine."""
    # Accelerate can also wrap the data loader and the schedule. It would then divide batches over ranks a
    # second time, and step the schedule once per rank.
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
    return wrapped, wrapped_optimizer


def unwrap(model: nn.Module) -> EmotionModel:
    """The model inside DDP or DeepSpeed."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, EmotionModel)
    return inner


def unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Torch's AdamW, inside the wrappers of Accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


# --- Step ----------------------------------------------------------------------------------------


def clip_and_step(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
) -> Any:
    """Clip the gradients to a norm of `max_norm` (0: not at all), update the weights, clear the gradients.

    Returns:
        The norm before clipping, on the device.
    """
    # These are the two calls of Accelerator.clip_grad_norm_. That method first imports DTensor, which takes a
    # third of a second.
    accelerator.unscale_gradients()
    # Infinity clips nothing and still yields the norm.
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    set_grad_norm(unwrap_optimizer(optimizer), norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm


class WeightSlice(NamedTuple):
    """Where a parameter's elements are in a tensor that the optimizer updates: those that this rank holds."""

    tensor: Tensor
    """Of any shape; `start` counts in its flattened form."""
    start: int
    length: int


def weight_slices(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, WeightSlice]:
    """By name of each trained parameter the part that this rank updates; no collective.

    If the engine has `partitions_weights`, each element is in the slice of one rank, otherwise of every rank.
    """
    return {name: WeightSlice(p, 0, p.numel()) for name, p in trained_parameters(unwrap(model))}


def trained_parameters(model: EmotionModel) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that the optimizer updates."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


# --- State ---------------------------------------------------------------------------------------


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool, copies: HostCopies | None = None
) -> State:
    """Full float32 weights, moments and averages by parameter name, and Adam's step; every rank calls.

    Ranks with `keep` False take part in the collectives and get nothing, so that only one rank's host memory
    holds the result.

    Args:
        copies: hold the result, in their memory; call their `wait` before you read it. Default: new memory.
    """
    state: Mapping[Any, Any] = unwrap_optimizer(optimizer).state
    return collect_state(
        model, optimizer, keep, copies, lambda p: p, lambda p, moment: state.get(p, {}).get(moment)
    )


def collect_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: bool,
    copies: HostCopies | None,
    full_weight: Callable[[Any], Tensor],
    full_moment: Callable[[Any, str], Tensor | None],
) -> State:
    """`gather_state`, where `full_weight` and `full_moment` give a parameter's whole tensors."""
    inner, host = unwrap(model), copies or HostCopies()
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for name, parameter in saved_parameters(inner):
        full = full_weight(parameter)
        if keep:
            weights[name] = host.add(name, full, full.shape, torch.float32)
        for moment in STATES:
            value = full_moment(parameter, moment)
            if keep and value is not None:
                kind = f"{name}.{moment}"
                moments[kind] = host.add(kind, value, full.shape, torch.float32)
    if keep:
        buffers = [(name, buffer) for name, buffer in inner.named_buffers() if inner.is_saved(name)]
        weights |= {name: host.add(name, buffer, buffer.shape, None) for name, buffer in buffers}
    if copies is None:
        host.wait()
    adam_step = max((float(state["step"]) for state in adam_states(optimizer)), default=0.0)
    return weights, moments, adam_step


def saved_parameters(model: EmotionModel) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that a checkpoint holds; not an encoder's that are not trained."""
    trained = model.trained_of_encoders()
    named = model.named_parameters()
    return [(name, p) for name, p in named if not name.startswith(ENCODERS) or name in trained]


def set_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    adam_step: float,
) -> None:
    """Put what `gather_state` returned into a wrapped model, which must hold these weights already.

    Every rank calls.
    """
    for name, parameter in saved_parameters(unwrap(model)):
        set_moments(optimizer, parameter, name, moments, adam_step)


def set_moments(
    optimizer: torch.optim.Optimizer,
    parameter: Tensor,
    name: str,
    moments: Mapping[str, Tensor],
    adam_step: float,
) -> None:
    """Set Adam's state of a tensor and its average, where `moments` has any of that name."""
    if f"{name}.{MOMENTS[0]}" in moments:
        given = {kind: moments.get(f"{name}.{kind}") for kind in STATES}
        state = {kind: tensor.to(parameter.device) for kind, tensor in given.items() if tensor is not None}
        state["step"] = torch.tensor(adam_step, device=parameter.device)
        unwrap_optimizer(optimizer).state[parameter] = state


def adam_states(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Adam's state of each tensor that it has updated."""
    return [state for state in unwrap_optimizer(optimizer).state.values() if "step" in state]


def averages_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer, wrapped or not, keeps averages of the weights."""
    return getattr(unwrap_optimizer(optimizer), "average_decay", 0.0) > 0


def swap_averages(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Exchange the model's weights and their averages, in place; every rank calls.

    A second call restores both to the bit. Without averages nothing changes.
    """
    averaging.swap_averages(unwrap_optimizer(optimizer).state)


def loss_scale(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The state of fp16's search for a loss scale; empty where losses are not scaled.

    Returns:
        "scale", and "steady": the steps since it last changed or a gradient overflowed.
    """
    scaler = getattr(optimizer, "scaler", None)  # torch's, held by Accelerate
    state = scaler.state_dict() if scaler is not None else {}
    return {"scale": state["scale"], "steady": state["_growth_tracker"]} if state else {}


def set_loss_scale(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, float]) -> None:
    """Restore what `loss_scale` of any engine returned; does nothing where losses are not scaled."""
    scaler = getattr(optimizer, "scaler", None)
    if saved and scaler is not None and (state := scaler.state_dict()):
        scaler.load_state_dict(state | {"scale": saved["scale"], "_growth_tracker": int(saved["steady"])})


# --- Replicas ------------------------------------------------------------------------------------


def replicated_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that must be the same on every rank: all of them."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def gather_parameter(parameter: Tensor) -> Tensor:
    """A whole parameter or buffer as float32 on the host; a collective under ZeRO-3, so every rank calls."""
    return parameter.detach().float().cpu().clone()


# --- The engine ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """The functions and properties of an engine; the rest of the code calls it only through these.

    If nothing else is said, the functions take the model and the optimizer that `wrap` returned. The default
    of each function is the one for plain torch, above.
    """

    accumulate: Accumulate
    """(accelerator, model, last): a context around forward and backward of one micro-batch.

    Gradients are reduced over ranks once per step, with the `last` micro-batch.
    """
    loss_factor: Callable[[int, int], int]
    """(ranks, accumulation): what a micro-batch's loss is multiplied by before backward.

    A micro-batch's loss is a share of the global batch's loss, so gradients must be summed over micro-batches
    and ranks. An engine that averages them instead needs a factor: the number that it divides by.
    """
    memory: MemoryUse
    make_accelerator: Callable[..., Accelerator] = make_accelerator
    wrap: Callable[..., tuple[nn.Module, torch.optim.Optimizer]] = wrap
    clip_and_step: Callable[[Accelerator, nn.Module, torch.optim.Optimizer, float], Any] = clip_and_step
    weight_slices: Callable[[nn.Module, torch.optim.Optimizer], dict[str, WeightSlice]] = weight_slices
    partitions_weights: bool = False
    """Each rank updates a part of the weights; otherwise every rank updates all of them."""
    gather_state: Callable[..., State] = gather_state
    set_state: Callable[..., None] = set_state
    swap_averages: Callable[[nn.Module, torch.optim.Optimizer], None] = swap_averages
    loss_scale: Callable[[nn.Module, torch.optim.Optimizer], dict[str, float]] = loss_scale
    set_loss_scale: Callable[..., None] = set_loss_scale
    replicated_tensors: Callable[[nn.Module], dict[str, Tensor]] = replicated_tensors
    """Of an AWTPN, wrapped or not."""
    gather_parameter: Callable[[Tensor], Tensor] = gather_parameter
    splits_micro_batches: bool = False
    """On a CPU, threads may compute the gradients of a micro-batch's pieces."""
    keeps_freed_memory: bool = True
    """On a CPU, freed memory is kept for the next step: faster, but takes more memory."""
    fp16_on_cpu: bool = False
    """The engine can train in fp16 on a CPU."""
