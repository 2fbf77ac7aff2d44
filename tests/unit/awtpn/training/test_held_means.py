"""Micro-batches of any size have the gradients and terms of one big batch; `test_layouts_agree` trains so."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from step_support import make_run
from support import CLASSES, DIMS, THREE_DIMS, batch, small_model, utterances
from torch import Tensor

from awtpn.config.schema import Config
from awtpn.learning.optimizer import make_optimizer
from awtpn.training.step import train_step

# Steps of (audio, video) of 12 utterances; some lack one.
LENGTHS = [(4, 3), (1, 6), (5, 0), (2, 2), (0, 4), (3, 3), (2, 5), (1, 1), (4, 0), (3, 2), (2, 2), (6, 1)]
LABELS = [0, 1, 2, 0, 0, 1, 2, 2, 1, 0, 1, 0]


def gradients(
    accumulation: int, dims: dict[str, int] = DIMS, **losses: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients by parameter and the loss terms of one step in float64, of 12 utterances for 16 places."""
    config = Config()
    config.optim.grad_clip = 0
    config.loss.margin_contrast = 5.0
    for name, value in losses.items():
        setattr(config.loss, name, value)
    model = small_model(dims=dims)
    config.model = model.config
    kept: dict[str, Tensor] = {}
    optimizer = make_optimizer(model, config.optim)
    accelerator = SimpleNamespace(
        backward=lambda loss: loss.backward(), unscale_gradients=lambda: None, no_sync=lambda _: nullcontext()
    )
    optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    run = make_run(config, model, optimizer, accelerator, torch.device("cpu"), 16, accumulation)
    lengths = [(*of, 2)[: len(dims)] for of in LENGTHS]
    whole = batch(utterances(lengths, dims=dims), LABELS, num_places=16, dims=dims)
    train_step(run, whole, data_wait=0.0)
    return kept, run.pending[0]["terms"]


@pytest.mark.parametrize("accumulation", [2, 4, 16])
@pytest.mark.parametrize(
    "losses",
    [
        {"negative_group": 16},
        {"negatives": "global"},
        {"negatives": "global", "inter_form": "reference", "lambda_inter": 3.0},
        {"negative_group": 16, "dims": THREE_DIMS, "pair_weights": {"audio-text": 2.0, "audio-video": 0.0}},
    ],
    ids=["groups", "global", "reference forms", "three modalities"],
)
def test_gradients_and_terms_are_those_of_one_big_batch(losses: dict[str, Any], accumulation: int) -> None:
    together, terms = gradients(1, **losses)
    apart, their_terms = gradients(accumulation, **losses)
    assert together.keys() == apart.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(apart[name], gradient, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(their_terms, terms, rtol=1e-6, atol=1e-7)  # terms are added in float32
    assert len(CLASSES) == 3
    assert all(term > 0 for term in terms), "each term is at work"


def test_without_the_cross_modal_terms_gradients_differ() -> None:
    """So the comparison above is about them."""
    with_terms, _ = gradients(4, negative_group=16)
    without, _ = gradients(4, negative_group=16, lambda_intra=0.0, lambda_inter=0.0, lambda_contrast=0.0)
    name = "ses.audio.weight"
    assert (with_terms[name] - without[name]).abs().max() > 1e-3
