"""A step whose gradients are no numbers to go by changes nothing, whatever clipping has made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from step_support import make_run
from support import batch, small_model, utterances
from torch import nn

from awtpn.config.schema import Config
from awtpn.learning.optimizer import (
    GuardedAdamW,
    learning_rate,
    make_optimizer,
    schedule_change,
    set_grad_norm,
)
from awtpn.learning.settings import OptimConfig
from awtpn.model.network import AWTPN
from awtpn.training.step import train_step
from awtpn.training.trainer import main as train

BATCH = batch(utterances([(4, 3), (2, 5)] * 4, dtype=torch.float32), [0, 1, 2, 0, 1, 2, 0, 1])


class Engine:
    """What Accelerate does for one process."""

    backward = staticmethod(torch.Tensor.backward)
    unscale_gradients = staticmethod(lambda: None)
    sync_gradients = True


def moments(model: AWTPN, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Weights, moments and counted steps."""
    of_adam = [t for p in model.parameters() for t in optimizer.state[p].values()]
    return [t.detach().clone() for t in [*model.parameters(), *of_adam]]


@pytest.mark.parametrize("factor", [1e30, math.inf, math.nan], ids=["norm overflows", "infinite", "NaN"])
def test_a_step_that_cannot_be_clipped_changes_nothing(factor: float) -> None:
    """Finite gradients of a norm beyond float32 are clipped to 0: weights and moments would decay."""
    config, model = Config(), small_model(dtype=torch.float32)
    optimizer = make_optimizer(model, config.optim)
    run = make_run(config, model, optimizer, Engine(), torch.device("cpu"), len(BATCH))
    train_step(run, BATCH, data_wait=0.0)
    before = moments(model, optimizer)

    bad = model.classifier.weight.register_hook(lambda gradient: gradient.sign() * factor)
    train_step(run, BATCH, data_wait=0.0)
    bad.remove()
    assert not torch.isfinite(run.pending[1]["grad_norm"])
    assert all(torch.equal(x, y) for x, y in zip(before, moments(model, optimizer), strict=True))

    train_step(run, BATCH, data_wait=0.0)
    assert torch.isfinite(run.pending[2]["grad_norm"])
    assert not any(torch.equal(x, y) for x, y in zip(before, moments(model, optimizer), strict=True))


def test_a_gradient_scaler_keeps_its_say() -> None:
    """fp16's scaler finds what is not finite, and skips; of the norm it knows nothing."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = GuardedAdamW([weight], lr=0.1, fused=True)
    for gradient, norm, moves in ((1.0, 1.0, True), (math.inf, 1.0, False), (1.0, math.inf, False)):
        before = weight.detach().clone()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        scaler.scale(weight.sum()).backward()
        weight.grad = torch.full_like(weight, 2 * gradient)
        scaler.unscale_(optimizer)
        set_grad_norm(optimizer, torch.tensor(norm))
        scaler.step(optimizer)
        assert torch.equal(weight, before) is not moves
        optimizer.zero_grad()
    assert not hasattr(optimizer, "found_inf")


def test_another_schedule_is_told_with_both_rates() -> None:
    config = OptimConfig(lr=1e-3, warmup_steps=0)
    last = learning_rate(config, 29, 30)
    assert schedule_change(config, last, 30, 30) is None, "nothing is left to do"
    assert schedule_change(config, learning_rate(config, 14, 30), 15, 30) is None, "an interrupted run"
    told = schedule_change(config, last, 30, 60)
    assert told is not None
    assert f"was {last:.3g} at step 30 and is 0.0005 at step 31: the cosine schedule now has 60 steps" in told
    assert schedule_change(OptimConfig(schedule="constant", lr=1e-3), 1e-3, 30, 60) is None
    lower = schedule_change(OptimConfig(schedule="constant", lr=1e-4), 1e-3, 30, 60)
    assert lower is not None, "another optim.lr is told of, too"
    assert schedule_change(config, None, 30, 60) is None
    assert schedule_change(config, last, 0, 60) is None


def test_a_run_that_is_extended_says_how_the_rate_jumps(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.train", corpus, "--run.dir", str(tmp_path / "run"), "--model.shared_dim", "8"]
    words += ["--train.global_batch_size", "16", "--optim.warmup_steps", "0", "--train.pictures", "never"]
    train([*words, "--train.epochs", "2"])
    assert "learning rate" not in capsys.readouterr().out
    train([*words, "--train.epochs", "4"])
    said = capsys.readouterr().out
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last, following = rates[len(rates) // 2 - 1 :][:2]
    assert following > 10 * last
    assert f"the learning rate was {last:.3g} at step 8 and is {following:.3g} at step 9" in said
    assert said.index("the learning rate was") < said.index("epoch 3")
