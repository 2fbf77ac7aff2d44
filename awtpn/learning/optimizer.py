"""AdamW and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn

from awtpn.learning.averaging import update_averages
from awtpn.learning.settings import OptimConfig
from awtpn.model.base import ENCODERS, EmotionModel
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.tuning import lr_scales

# Learning rates whose relative difference is smaller are the same up to rounding.
SAME_LR = 1e-3
LR_SCALE = "lr_scale"  # of a group of the optimizer

_plain_step = unwrap(torch.optim.AdamW.step)  # see GuardedAdamW.add_param_group


class GuardedAdamW(torch.optim.AdamW):
    """Fused AdamW that skips a step whose gradients, or their norm, are not finite.

    The decision stays on the device. Reduced gradients are the same on every rank, so all ranks skip
    together. (DeepSpeed's ZeRO optimizers make this decision themselves, before they call this one.)
    """

    # PyTorch wraps these methods for torch.compile, and the wrappers import its whole compiler at their first
    # call: half a second before the first step. We compile the model only, so the plain methods will do.
    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)

    gradient_norm: Tensor | None = None
    """Norm of the next step's gradients before clipping. If it overflows, clipping turns them into zeros."""
    found_inf: Tensor
    """1.0 if a step is to be skipped, else 0.0; there only within a step, or set by a GradScaler."""
    average_decay: float = 0.0
    """Of the averaged weights that each step updates (`learning.averaging`); 0: there are none."""

    def step(self, closure: Any = None) -> Any:
        norm, self.gradient_norm = self.gradient_norm, None
        scaled = hasattr(self, "found_inf")  # set by a GradScaler, which has checked the gradients already
        if norm is not None:
            # A norm of all gradients is finite only if each of them is.
            unusable = (~norm.isfinite()).float()
            self.found_inf = torch.maximum(self.found_inf, unusable) if scaled else unusable
        elif not scaled:
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            largest = torch.stack([n.float() for n in torch._foreach_norm(gradients, math.inf)])
            self.found_inf = (~largest.isfinite().all()).float()
        try:
            with torch.no_grad():
                loss = _plain_step(self, closure)
            if self.average_decay:
                weights = [p for group in self.param_groups for p in group["params"]]
                update_averages(self.state, weights, self.average_decay, skipped=self.found_inf)
            return loss
        finally:
            if not scaled:  # the scaler deletes its own attribute
                del self.found_inf


def set_grad_norm(optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
    """Give GuardedAdamW the gradient norm measured before clipping, for its next step."""
    if isinstance(optimizer, GuardedAdamW):
        optimizer.gradient_norm = norm


def make_optimizer(model: nn.Module, config: OptimConfig, ema_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; with `ema_decay` > 0 it also averages them over its steps.

    Encoders have learning rates and weight decays of their own (`encoder.*.lr`, `lr_decay`, `weight_decay`):
    a group of the optimizer for each combination, with `lr_scale`, its share of the schedule's rate.
    """
    settings = encoder_rates(model, config) if isinstance(model, EmotionModel) else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = settings.get(name, (1.0, config.weight_decay))
            groups.setdefault(key, []).append(parameter)
    optimizer = GuardedAdamW(
        [
            {"params": parameters, "lr": config.lr * scale, "weight_decay": decay, LR_SCALE: scale}
            for (scale, decay), parameters in groups.items()
        ],
        lr=config.lr,
        fused=True,
    )
    optimizer.average_decay = ema_decay
    return optimizer


def encoder_rates(model: EmotionModel, config: OptimConfig) -> dict[str, tuple[float, float]]:
    """Of each of the encoders' weights its learning rate as a share of `optim.lr`, and its weight decay."""
    found = {}
    for modality, encoder in model.encoders.items():
        assert isinstance(encoder, Encoder)
        own = encoder.config
        decay = config.weight_decay if own.weight_decay is None else own.weight_decay
        for name, scale in lr_scales(encoder).items():
            found[f"{ENCODERS}{modality}.{name}"] = (own.peak_lr / config.lr * scale, decay)
    return found


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (0-based) of `total_steps`.

    A function, not a scheduler object: it has no state to save, and cannot be stepped once per rank.
    """
    rising = config.steps_of_warmup(total_steps)
    warmup = min(1.0, (step + 1) / (rising + 1))
    if config.schedule == "constant":
        return config.lr * warmup
    progress = min(1.0, max(0.0, (step - rising) / max(1, total_steps - rising)))
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * progress))


def schedule_change(config: OptimConfig, last_lr: float | None, step: int, total_steps: int) -> str | None:
    """A warning if a resumed run continues with another schedule than it had; None otherwise.

    A schedule depends on the length of the run: a rate that had fallen to nearly 0 is high again when the
    run is extended.

    Args:
        last_lr: learning rate of step `step - 1` (0-based); None if unknown.
        step: the next step (0-based), of `total_steps` now.
    """
    if not last_lr or not 0 < step < total_steps:
        return None
    same = learning_rate(config, step - 1, total_steps)
    if abs(same - last_lr) <= SAME_LR * max(same, last_lr):
        return None
    next_lr = learning_rate(config, step, total_steps)
    return (
        f"warning: the learning rate was {last_lr:.3g} at step {step} and is {next_lr:.3g} at step "
        f"{step + 1}: the {config.schedule} schedule now has {total_steps} steps, with a peak of "
        f"{config.lr:g}. To continue at a lower rate, stop and set optim.lr"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of a step, of which encoders' weights have shares of their own."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_SCALE, 1.0)
