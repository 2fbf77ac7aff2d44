"""Weights, masters, moments and the loss scale out of whatever engine holds them, and back into it.

A model may be torch's own, DDP's, or DeepSpeed's, which keeps float32 masters and Adam's moments in
partitions of its own (stages 1 to 3), or beside the working copy (stage 0 in half precision). Outside this
file they are full float32 tensors under the parameters' names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from awtpn.model.network import AWTPN
from shards import Ragged

MOMENTS = ("exp_avg", "exp_avg_sq")


def is_deepspeed(model: nn.Module) -> bool:
    return type(model).__name__ == "DeepSpeedEngine"


def unwrap(model: nn.Module) -> AWTPN:
    """The AWTPN inside DDP or DeepSpeed."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, AWTPN)
    return inner


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, keep: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Full float32 weights, Adam moments by parameter name, and Adam's step; collective under ZeRO.

    Ranks with `keep` False join in and get nothing, so one rank's host memory holds the result.
    """
    inner = unwrap(model)
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    gather_weight, gather_moment = _gatherers(model, optimizer)
    for name, parameter in inner.named_parameters():
        full = gather_weight(parameter)
        if keep:
            weights[name] = full.detach().cpu().float().clone().contiguous()
        for moment in MOMENTS:
            value = gather_moment(parameter, moment)
            if keep and value is not None:
                moments[f"{name}.{moment}"] = (
                    value.detach().cpu().float().clone().view(full.shape).contiguous()
                )
    if keep:
        weights |= {name: buffer.detach().cpu().clone() for name, buffer in inner.named_buffers()}
    return weights, moments, _adam_step(optimizer)


def _gatherers(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Callable[[Any], Any], Callable[[Any, str], Any]]:
    if is_deepspeed(model) and _partitions(model):
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        stepped = bool(_states(optimizer))  # until then (fp16 leaves its first steps out) it has no moments
        return safe_get_full_fp32_param, safe_get_full_optimizer_state if stepped else lambda *_: None
    state: Mapping[Any, Any] = unwrap_optimizer(optimizer).state
    masters = float32_masters(model)
    return (
        lambda p: masters.get(p, p),
        lambda p, moment: state.get(masters.get(p, p), {}).get(moment),
    )


def float32_masters(model: nn.Module) -> dict[Tensor, Tensor]:
    """Per parameter the float32 copy that the optimiser updates: of DeepSpeed's stage 0 in half precision.

    Empty for every other engine: stages 1 to 3 keep theirs in partitions.
    """
    wrapper = getattr(model, "optimizer", None) if is_deepspeed(model) else None
    halves, masters = (getattr(wrapper, name, ()) for name in ("fp16_groups", "fp32_groups"))
    return {
        half: master
        for group, of_group in zip(halves, masters, strict=False)
        for half, master in zip(group, of_group, strict=True)
    }


def _partitions(model: nn.Module) -> bool:
    """The DeepSpeed engine keeps its state in partitions (stages 1 to 3)."""
    return any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in model.parameters())


def unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Torch's AdamW, under the wrappers of Accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _states(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Adam's per-tensor states."""
    return [state for state in unwrap_optimizer(optimizer).state.values() if "step" in state]


def _adam_step(optimizer: torch.optim.Optimizer) -> float:
    return max((float(state["step"]) for state in _states(optimizer)), default=0.0)


def set_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
    adam_step: float,
) -> None:
    """What `gather_state` gave, back into a wrapped model; every rank calls.

    Its working copy must hold these weights already.
    """
    inner = unwrap(model)
    if not (is_deepspeed(model) and _partitions(model)):
        masters = float32_masters(model)
        for name, parameter in inner.named_parameters():
            if parameter in masters:  # made from the working copy, which has lost its low bits
                masters[parameter].data.copy_(weights[name])
            if f"{name}.{MOMENTS[0]}" in moments:
                of_adam = {m: moments[f"{name}.{m}"].to(parameter.device) for m in MOMENTS}
                of_adam["step"] = torch.tensor(adam_step, device=parameter.device)
                unwrap_optimizer(optimizer).state[masters.get(parameter, parameter)] = of_adam
        return

    _step_that_changes_nothing(model, optimizer)
    for name, parameter in inner.named_parameters():
        # The working copy came from the same weights; the master was made from it and lost its low bits.
        _set_sharded(parameter, weights[name])
        for moment in MOMENTS:
            if f"{name}.{moment}" in moments:  # class means, that now are learnt, have none yet
                _set_sharded(parameter, moments[f"{name}.{moment}"], moment)
    for state in _states(optimizer):
        is_tensor = isinstance(state["step"], Tensor)
        state["step"] = torch.full_like(state["step"], adam_step) if is_tensor else adam_step


def _set_sharded(parameter: Any, full: Tensor, moment: str | None = None) -> None:
    """Restore a parameter's float32 master, or a moment of it, in ZeRO's partitions."""
    from deepspeed import utils

    full = full.to(parameter.device)
    if hasattr(parameter, "ds_id"):  # ZeRO-3
        # Its setter of full tensors fails where the ranks do not divide their elements: the last rank's
        # partition is padded, so each rank cuts out its own.
        size = parameter.ds_tensor.numel()
        first = torch.distributed.get_rank(parameter.ds_process_group) * size
        own = full.flatten()[first : first + size]
        own = torch.nn.functional.pad(own, (0, size - len(own)))
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, own)
        else:
            utils.safe_set_local_optimizer_state(parameter, own, moment)
    elif moment is None:
        utils.safe_set_full_fp32_param(parameter, full)
    else:
        utils.safe_set_full_optimizer_state(parameter, full, moment)


def loss_scale(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Where fp16's search for a loss scale stands; nothing where losses are not scaled.

    Returns:
        "scale"; "steady", the steps since it last changed or a gradient overflowed; and DeepSpeed's
        "hysteresis", the overflows that it still puts up with.
    """
    if (scaler := getattr(optimizer, "scaler", None)) is not None:  # torch's, held by Accelerate
        state = scaler.state_dict()
        return {"scale": state["scale"], "steady": state["_growth_tracker"]} if state else {}
    if (search := _deepspeed_search(model)) is None:
        return {}
    steady = search.cur_iter - search.last_overflow_iter - 1
    return {"scale": search.cur_scale, "steady": steady, "hysteresis": search.cur_hysteresis}


def set_loss_scale(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, float]) -> None:
    """What `loss_scale` gave, under this engine or another; other precisions take no notice."""
    if not saved:
        return
    if (scaler := getattr(optimizer, "scaler", None)) is not None:
        if state := scaler.state_dict():
            scaler.load_state_dict(state | {"scale": saved["scale"], "_growth_tracker": int(saved["steady"])})
    elif (search := _deepspeed_search(model)) is not None:
        search.cur_scale, search.cur_iter, search.last_overflow_iter = (
            saved["scale"],
            int(saved["steady"]),
            -1,
        )
        search.cur_hysteresis = int(saved.get("hysteresis", search.cur_hysteresis))


def _deepspeed_search(model: nn.Module) -> Any:
    """DeepSpeed's dynamic loss scaler (stages 1 to 3; `deepspeed_settings` refuses stage 0), or None."""
    wrapper = getattr(model, "optimizer", None) if is_deepspeed(model) else None
    scaler = getattr(wrapper, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None


def empty_features(model: AWTPN) -> dict[str, Ragged]:
    """Features of no utterances at all."""
    device = next(model.parameters()).device
    offsets = torch.zeros(1, dtype=torch.int32)
    return {
        m: Ragged(torch.zeros(0, dim, device=device), offsets.to(device), offsets)
        for m, dim in model.feature_dims.items()
    }


def _step_that_changes_nothing(engine: Any, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer's state come into being: zero gradients at learning rate 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    engine.set_gradient_accumulation_boundary(is_boundary=True)
    # An empty batch: every sum over it is 0, and reaches every parameter with gradient 0.
    output = engine(empty_features(unwrap(engine)))
    streams = output.streams.values()
    engine.backward(output.logits.sum() + sum(s.distances.sum() + s.weights.sum() for s in streams))
    engine.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
