"""Half precision stays in the projections and products: distances, softmaxes, losses and sums are float32."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from support import features, small_model, utterances
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from awtpn.learning.losses import LossNormalizers, NegativePool, loss_terms, total_loss
from awtpn.learning.negatives import DRAWS
from awtpn.learning.settings import LossConfig
from awtpn.model import attention
from awtpn.model.network import AWTPN, ModelOutput

LENGTHS = [(5, 3), (40, 30), (2, 2), (7, 1)]
LABEL = torch.tensor([0, 1, 2, 0])
HALF = (torch.bfloat16, torch.float16)
# By their names in aten: what adds up many values, or magnifies a small error in one.
DELICATE = {
    *("sum", "mean", "cumsum", "amax", "norm", "linalg_vector_norm", "segment_reduce", "index_add", "dot"),
    *("exp", "exp_", "log", "logsumexp", "_softmax", "_log_softmax", "reciprocal", "square", "sqrt", "div"),
    *("nll_loss_forward", "addcmul", "cosine_similarity"),
}
# How engines bring half precision about: Accelerate by autocast, DeepSpeed by casting the weights.
WAYS = {
    "autocast": (torch.float32, True),
    "weights": (torch.bfloat16, False),
}


class _Widths(TorchDispatchMode):
    """The delicate operations that were given half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: list[str] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if name in DELICATE and any(t.dtype in HALF for t in tree_iter(args) if isinstance(t, Tensor)):
            self.narrow.append(str(func))
        return func(*args, **(kwargs or {}))


PAIR = ("audio", "video")


def forward(way: str, config: LossConfig, **settings: Any) -> tuple[AWTPN, ModelOutput, Tensor, _Widths]:
    """A model's output and its loss terms, losses under autocast too, and what they were computed from."""
    dtype, autocast = WAYS[way]
    model = small_model(dtype=dtype, shared_dim=16, **settings)
    given, count = features(utterances(LENGTHS, dtype=torch.float16)), len(LENGTHS)
    normalizers = LossNormalizers(
        count, dict.fromkeys(PAIR, count), {PAIR: count}, {PAIR: dict.fromkeys(DRAWS, float(count))}, 1
    )
    with ExitStack() as stack:
        if autocast:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        widths = stack.enter_context(_Widths())
        output = model(given)
        row = torch.arange(count).roll(1)
        pools = {PAIR: NegativePool(output.streams["video"].mean, dict.fromkeys(DRAWS, row))}
        terms = loss_terms(output, LABEL, pools, normalizers, config, torch.ones(3))
        total_loss(terms, config)
    return model, output, terms, widths


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", ["recomputed", "bucketed", "uniform"])
@pytest.mark.parametrize("losses", ["defaults", "published"])
def test_nothing_delicate_is_computed_in_half_precision(
    way: str, form: str, losses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "choose_form", lambda *_, **__: form)
    config = LossConfig()
    if losses == "published":
        config = LossConfig(align_form="reference", inter_form="reference")
    awm = "uniform" if form == "uniform" else "adaptive"
    _, output, terms, widths = forward(way, config, awm=awm, prototypes_per_class=2)
    assert not widths.narrow
    assert {"sum", "_softmax", "index_add"} <= widths.seen, "the check sees what it is for"
    for stream in output.streams.values():
        assert stream.h.dtype == torch.bfloat16, "the projections are what half precision is for"
        wide = (stream.distances, stream.weights, stream.pooled, stream.mean)
        assert [x.dtype for x in wide] == [torch.float32] * 4
    assert output.logits.dtype == terms.dtype == total_loss(terms, config).dtype == torch.float32


def test_the_check_notices_half_precision() -> None:
    with _Widths() as widths:
        torch.ones(3, dtype=torch.bfloat16).softmax(0)
        torch.ones(3, dtype=torch.float16).sum()
        torch.ones(3).sum()
    assert widths.narrow == ["aten._softmax.default", "aten.sum.default"]


@pytest.mark.parametrize("way", WAYS)
def test_distances_are_as_exact_as_float32_allows(way: str) -> None:
    """|h - p|^2 of the steps as the projection rounded them; half precision would blur it to per cents."""
    model, output, _, _ = forward(way, LossConfig())
    table = model.tpn.prototypes.double()
    for modality, stream in output.streams.items():
        exact = (stream.h.double()[:, None] - table).square().sum(-1) * model.config.distance_scale(modality)
        torch.testing.assert_close(stream.distances.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_weights_sum_to_one_in_half_precision(way: str) -> None:
    _, output, _, _ = forward(way, LossConfig())
    for stream in output.streams.values():
        for weights in stream.weights.split(stream.offsets.diff().tolist()):
            assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_come_in_the_parameters_own_precision(way: str) -> None:
    model, _, terms, _ = forward(way, LossConfig())
    total_loss(terms, LossConfig()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype, name
        assert parameter.grad.isfinite().all(), name
