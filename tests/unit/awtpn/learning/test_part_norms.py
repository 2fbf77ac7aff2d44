"""Norms by part of the model are those of its tensors, whatever pieces of them the optimizer updates."""

from __future__ import annotations

import math

import pytest
import torch
from support import CLASSES, DIMS, features, small_model, utterances
from torch import nn

from awtpn.learning.optimizer import make_optimizer, set_grad_norm
from awtpn.learning.part_norms import PartNorms, Slice, norms_by_tag, part_of
from awtpn.learning.settings import OptimConfig
from awtpn.model.baselines import NETWORKS
from awtpn.model.models import build_model
from awtpn.model.settings import ModelConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("ses.audio.weight", "branch_audio"),
        ("awm.video.query", "branch_video"),
        ("tpn.prototypes", "prototypes"),
        ("classifier.bias", "head"),
        ("statistics.audio.weight", "head"),
        ("encoders.audio.model.layers.0.weight", "encoder_audio"),
        ("network.pools.video.gru.weight", "branch_video"),
        ("network.norm.weight", "joint"),
    ],
)
def test_names_have_their_parts(name: str, part: str) -> None:
    assert part_of(name, ["audio", "video"], ("classifier.", "statistics.")) == part


@pytest.mark.parametrize("name", ["awtpn", *NETWORKS])
def test_every_model_has_branches_and_a_head(name: str) -> None:
    model = build_model(ModelConfig(name=name, shared_dim=8), DIMS, CLASSES)
    parts = {part_of(n, list(DIMS), model.heads) for n, _ in model.named_parameters()}
    assert "head" in parts
    assert parts <= {"branch_audio", "branch_video", "prototypes", "head", "joint"}
    assert {"branch_audio", "branch_video"} <= parts


def flat_parts(model: nn.Module) -> tuple[nn.Parameter, dict[str, Slice], dict[str, slice]]:
    """All weights in one flat tensor, as ZeRO's partition on a single rank, with padding at its end."""
    named = dict(model.named_parameters())
    flat = nn.Parameter(torch.cat([*(p.detach().flatten() for p in named.values()), torch.full((3,), 9.0)]))
    slices: dict[str, Slice] = {}
    places, start = {}, 0
    for name, p in named.items():
        slices[name], places[name] = (flat, start, p.numel()), slice(start, start + p.numel())
        start += p.numel()
    return flat, slices, places


@pytest.mark.parametrize("form", ["tensors", "flat"])
def test_norms_are_those_of_all_tensors_of_a_part(form: str) -> None:
    model = small_model(dtype=torch.float32)
    named = dict(model.named_parameters())
    model(features(utterances([(3, 2), (4, 1)], dtype=torch.float32))).logits.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}

    def part(name: str) -> str:
        return part_of(name, list(DIMS), model.heads)

    parts = sorted({part(name) for name in named})
    slices: dict[str, Slice] = {name: (p, 0, p.numel()) for name, p in named.items()}
    optimizer = make_optimizer(model, OptimConfig())
    if form == "flat":
        flat, slices, places = flat_parts(model)
        flat.grad = torch.zeros_like(flat)
        for name, gradient in gradients.items():
            flat.grad[places[name]] = gradient.flatten()
        optimizer.param_groups[0]["params"] = [flat]
    measured = PartNorms(optimizer, slices, part, parts)
    optimizer.step()
    assert measured.take() is None, "only where asked"

    before = {name: slices[name][0].detach().clone() for name in named}
    measured.begin(CPU)
    optimizer.step()
    squares = measured.take()
    assert squares is not None
    assert measured.take() is None
    # As if the gradients had been twice as long before they were clipped.
    total = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    found = norms_by_tag(parts, squares.flatten().tolist(), 2 * total)
    for which in parts:
        own = [n for n in named if part(n) == which]
        expected = math.sqrt(sum(float(gradients[n].double().square().sum()) for n in own if n in gradients))
        assert found[f"grad_norm/{which}"] == pytest.approx(2 * expected, rel=1e-6)
        after = [slices[n][0].detach().flatten()[slices[n][1] :][: slices[n][2]] for n in own]
        expected = math.sqrt(sum(float(w.double().square().sum()) for w in after))
        assert found[f"weight_norm/{which}"] == pytest.approx(expected, rel=1e-6)
    assert any((slices[n][0].detach() != before[n]).any() for n in named), "after the step"


def test_a_step_that_is_not_finite_has_no_norms() -> None:
    model = small_model(dtype=torch.float32)
    optimizer = make_optimizer(model, OptimConfig())
    slices: dict[str, Slice] = {name: (p, 0, p.numel()) for name, p in model.named_parameters()}
    measured = PartNorms(optimizer, slices, lambda _: "all", ["all"])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.inf)
    set_grad_norm(optimizer, torch.tensor(math.inf))
    measured.begin(CPU)
    optimizer.step()
    squares = measured.take()
    assert squares is not None
    assert norms_by_tag(["all"], squares.flatten().tolist(), math.inf) == {}
    # An engine that skips a step does not call the optimizer.
    measured.begin(CPU)
    skipped = measured.take()
    assert skipped is not None
    assert norms_by_tag(["all"], skipped.flatten().tolist(), 1.0) == {}
