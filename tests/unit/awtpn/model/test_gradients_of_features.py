"""Gradients with respect to features, which encoders are trained by: finite for every network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import CLASSES, DIMS, features, utterances

from awtpn.model.baselines import NETWORKS
from awtpn.model.blocks import mean_and_deviation
from awtpn.model.models import build_model
from awtpn.model.segments import utterance_of_step
from awtpn.model.settings import ModelConfig

# (audio, video) steps; one step alone does not vary, and some lack one.
LENGTHS = [(3, 2), (1, 4), (5, 1), (0, 2), (2, 0), (1, 1)]


@pytest.mark.parametrize("name", ["awtpn", *NETWORKS])
def test_features_that_do_not_vary_have_finite_gradients(name: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"shared_dim": 8, "modalities": list(DIMS), "name": name}
    model = build_model(ModelConfig(**settings), DIMS, CLASSES).double()
    given = features(utterances(LENGTHS))
    given["video"].values[:2] = 0.5  # a still picture
    leaves = {m: ragged.values.clone().requires_grad_() for m, ragged in given.items()}
    output = model({m: replace(given[m], values=leaf) for m, leaf in leaves.items()})
    loss = output.logits.square().sum() + sum(s.distances.sum() for s in output.streams.values())
    loss.backward()
    for m, leaf in leaves.items():
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all(), m
        assert leaf.grad.any(), m


def test_the_gradient_of_a_deviation() -> None:
    x = torch.tensor([[1.0], [3.0], [2.0], [2.0], [5.0]], dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 2, 4, 4, 5])
    rows = mean_and_deviation(x, offsets, utterance_of_step(offsets, 5))
    assert rows.tolist() == [[2, 1], [2, 0], [0, 0], [5, 0]]
    rows[:, 1].sum().backward()
    assert x.grad is not None
    # (x - mean) / (steps * deviation), and 0 where nothing varies.
    assert x.grad.flatten().tolist() == [-0.5, 0.5, 0, 0, 0]
