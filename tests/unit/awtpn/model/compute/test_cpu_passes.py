"""What runs in few passes on CPUs equals the plain forms: forward to the bit, gradients to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from awtpn.model.compute import cpu_passes
from awtpn.model.compute.cpu_passes import (
    ReluTimes,
    SquaredDistances,
    StepSums,
    in_few_passes,
    mean_and_variance,
    row_blocks,
    standardized,
    utterance_blocks,
)
from awtpn.model.segments import segment_mean, segment_sum, utterance_of_step

BATCHES = [[5, 0, 40, 1, 17], [0, 0], [], [200], [3] * 30]


@pytest.fixture(autouse=True, params=[1 << 17, 64, 1], ids=["one block", "blocks", "rows"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_passes, "BLOCK", request.param)


def packed(lengths: Sequence[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random steps [T, width] in float64, their offsets, and the utterance of each."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    steps = int(offsets[-1])
    return torch.randn(steps, width, dtype=torch.float64), offsets, utterance_of_step(offsets, steps)


def same_gradients(ours: Sequence[Tensor], plain: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    torch.manual_seed(1)
    of_outputs = [torch.randn_like(o) for o in plain]
    for a, b in zip(
        torch.autograd.grad(list(ours), list(inputs), of_outputs),
        torch.autograd.grad(list(plain), list(inputs), of_outputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", BATCHES)
def test_standardized_features(lengths: list[int], dtype: torch.dtype) -> None:
    x = packed(lengths, 7)[0].to(dtype)
    mean, scale = torch.randn(7), torch.rand(7)
    plain = x.to(torch.promote_types(dtype, torch.float32), copy=True).sub_(mean).mul_(scale)
    ours = standardized(x, mean, scale)
    assert ours.dtype == plain.dtype
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("lengths", BATCHES)
def test_mean_and_variance_of_features(lengths: list[int]) -> None:
    x, offsets, utterance = packed(lengths, 7)
    mean, variance = mean_and_variance(x, offsets, utterance)
    assert torch.equal(mean, segment_mean(x, offsets, utterance))
    assert torch.equal(variance, segment_mean((x - mean[utterance]).square(), offsets, utterance))


@pytest.mark.parametrize("lengths", BATCHES)
def test_relu_times_factors(lengths: list[int]) -> None:
    leaf = packed(lengths, 6)[0].requires_grad_()
    factors = (torch.rand(leaf.shape) < 0.5).to(leaf.dtype).div_(1 - 0.5)
    ours, plain = ReluTimes.apply(leaf * 1.0, factors), torch.relu(leaf * 1.0) * factors
    assert torch.equal(ours, plain)
    same_gradients([ours], [plain], [leaf])


def test_relu_keeps_nan_and_where_all_is_dropped_nothing_learns() -> None:
    z = torch.tensor([[float("nan"), 1.0, -1.0]], requires_grad=True)
    assert ReluTimes.apply(z * 1.0, torch.ones(1, 3)).isnan().tolist() == [[True, False, False]]
    (gradient,) = torch.autograd.grad(ReluTimes.apply(z * 1.0, torch.zeros(1, 3))[:, 1:].sum(), z)
    assert gradient[:, 1:].tolist() == [[0, 0]]


@pytest.mark.parametrize("learnable", [True, False])
@pytest.mark.parametrize("lengths", BATCHES)
def test_squared_distances(lengths: list[int], learnable: bool) -> None:
    h = packed(lengths, 6)[0].requires_grad_()
    p = torch.randn(5, 6, dtype=h.dtype, requires_grad=learnable)
    plain = h.square().sum(1, keepdim=True) + p.square().sum(1) - 2 * h @ p.T
    ours = SquaredDistances.apply(h, p)
    assert torch.equal(ours, plain)
    same_gradients([ours], [plain], [h, p] if learnable else [h])


@pytest.mark.parametrize("lengths", BATCHES)
def test_sums_of_steps(lengths: list[int]) -> None:
    h, offsets, utterance = packed(lengths, 6)
    weights = torch.rand(len(h), dtype=h.dtype, requires_grad=True)
    h.requires_grad_()
    ours = StepSums.apply(h, weights, utterance, len(lengths))
    plain = segment_sum(weights[:, None] * h, offsets, utterance), segment_sum(h, offsets, utterance)
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(a, b)
    same_gradients(ours, plain, [h, weights])


@pytest.mark.parametrize("lengths", BATCHES)
def test_blocks_take_each_row_once(lengths: list[int]) -> None:
    x, offsets, _ = packed(lengths, 6)
    assert torch.equal(torch.cat([x[:0], *(x[rows] for rows in row_blocks(x))]), x)
    rows = [x[:0]]
    utterances = 0
    for of, steps in utterance_blocks(offsets.tolist(), 6):
        assert of.start == utterances
        assert steps.start == offsets[of.start]
        utterances = of.stop
        rows.append(x[steps])
    assert utterances == len(lengths)
    assert torch.equal(torch.cat(rows), x)


def test_half_precision_takes_the_plain_forms() -> None:
    assert in_few_passes(torch.zeros(1))
    assert in_few_passes(torch.zeros(1, dtype=torch.float64))
    assert not in_few_passes(torch.zeros(1, dtype=torch.bfloat16))
