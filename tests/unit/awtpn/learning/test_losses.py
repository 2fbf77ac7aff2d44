"""The loss terms: by hand, by torch's own, and as shares that add up whatever the layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import ALONE, CLASSES, batch, same_bits_or_close, small_model, utterances
from torch import Tensor

from awtpn.distributed.batch_layout import Layout
from awtpn.learning.losses import LossNormalizers, NegativePool, loss_terms, total_loss
from awtpn.learning.settings import TERMS, LossConfig
from awtpn.model.network import ModalityOutput, ModelOutput
from awtpn.model.task import Task
from awtpn.training.global_batch import GlobalBatchInfo, micro_batch_losses, reduce_batch_counts
from shards import FeatureBatch


def stream(mean: list[list[float]], distances: list[list[float]], lengths: list[int]) -> ModalityOutput:
    offsets = torch.tensor([0, *np.cumsum(lengths)])
    size = len(lengths)
    means = torch.tensor(mean, dtype=torch.float64, requires_grad=True)
    return ModalityOutput(
        h=torch.zeros(sum(lengths), 2),
        distances=torch.tensor(distances, dtype=torch.float64),
        weights=torch.zeros(sum(lengths)),
        pooled=means,
        mean=means,
        statistics=torch.zeros(size, 0),
        present=torch.tensor([n > 0 for n in lengths]),
        offsets=offsets,
        utterance=torch.arange(size).repeat_interleave(torch.tensor(lengths)),
    )


PAIR = ("audio", "video")


def by_hand(config: LossConfig, **changes: Any) -> dict[str, float]:
    """Two utterances of labels 0 and 1; audio means (3,0), (0,2), video means (3,4), (0,1)."""
    audio = stream([[3, 0], [0, 2]], [[1, 4], [3, 2], [5, 1]], [2, 1])
    video = stream([[3, 4], [0, 1]], [[2, 3], [0, 6], [4, 4]], [1, 2])
    output = ModelOutput(
        torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64), {"audio": audio, "video": video}
    )
    whole: dict[str, Any] = {
        "utterances": 2,
        "present": {"audio": 2, "video": 2},
        "both": {PAIR: 2},
        "negative": {PAIR: {"inter": 2, "contrast": 2}},
        "class_weight": 2,
    }
    each_other = torch.tensor([1, 0])
    pools = {PAIR: NegativePool(video.mean, {"inter": each_other, "contrast": each_other})}
    terms = loss_terms(output, torch.tensor([0, 1]), pools, LossNormalizers(**(whole | changes)), config)
    return dict(zip(TERMS, terms.tolist(), strict=True))


def test_each_term_by_hand() -> None:
    terms = by_hand(LossConfig(align_form="reference", inter_form="margin", margin_contrast=5.0))
    # Audio: mean(1, 3) = 2 and 1; video: 2 and mean(6, 4) = 5.
    assert terms["align"] == pytest.approx((2 + 1) / 2 + (2 + 5) / 2)
    # Cosines: own 9/15 = 0.6 and 1; with the other's video 0 and 8/10.
    assert terms["intra"] == pytest.approx((0.4 + 0) / 2)
    assert terms["inter"] == pytest.approx(((1 - 0.6 + 0) + (1 - 1 + 0.8)) / 2)
    # Distances: own 4 and 1; to the other's video sqrt(10) and sqrt(13), of a margin of 5.
    far = (5 - math.sqrt(10)) + (5 - math.sqrt(13))
    assert terms["contrast"] == pytest.approx((4 + 1) / 2 + far / 2)
    p = math.exp(2) / (math.exp(2) + 1)
    assert terms["ce"] == pytest.approx((-math.log(p) + math.log(2)) / 2)
    assert terms["mse"] == pytest.approx((2 * (1 - p) ** 2 + 2 * 0.5**2) / 4)


def test_each_term_has_a_denominator_of_its_own() -> None:
    """What is absent from some utterances is averaged over those that have it."""
    plain = by_hand(LossConfig())
    only: dict[str, tuple[dict[str, Any], set[str]]] = {
        "utterances": ({"utterances": 4}, {"mse"}),
        "class weights": ({"class_weight": 4}, {"ce"}),
        "both streams": ({"both": {PAIR: 4}}, {"intra", "contrast"}),
        "a negative": ({"negative": {PAIR: {"inter": 4, "contrast": 2}}}, {"inter"}),
        "each modality": ({"present": {"audio": 4, "video": 4}}, {"align"}),
    }
    for what, (changes, halved) in only.items():
        found = by_hand(LossConfig(), **changes)
        for term in ("align", "intra", "inter", "contrast", "ce", "mse"):
            assert found[term] == pytest.approx(plain[term] / (2 if term in halved else 1)), (what, term)
    far = by_hand(LossConfig(margin_contrast=5.0), negative={PAIR: {"inter": 2, "contrast": 4}})["contrast"]
    assert far == pytest.approx(2.5 + (10 - math.sqrt(10) - math.sqrt(13)) / 4)


def test_the_other_forms_by_hand() -> None:
    terms = by_hand(LossConfig(align_form="prototypical", inter_form="reference", tau=0.5))

    def surprise(truth: float, other: float) -> float:
        return math.log(1 + math.exp(-0.5 * (other - truth)))

    audio = ((surprise(1, 4) + surprise(3, 2)) / 2 + surprise(1, 5)) / 2
    video = (surprise(2, 3) + (surprise(6, 0) + surprise(4, 4)) / 2) / 2
    assert terms["align"] == pytest.approx(audio + video)
    # The published signs: relu(m + own - other).
    assert terms["inter"] == pytest.approx(((1 + 0.6 - 0) + (1 + 1 - 0.8)) / 2)
    # At a margin of 1 both negatives are far enough.
    assert terms["contrast"] == pytest.approx((4 + 1) / 2)


def test_the_total_is_the_weighted_sum() -> None:
    config = LossConfig(**{weight: i + 1.0 for i, weight in enumerate(TERMS.values())})
    terms = 10.0 ** torch.arange(len(TERMS))
    assert total_loss(terms, config) == sum((i + 1) * 10**i for i in range(len(TERMS)))


def test_class_weights_are_those_of_torch() -> None:
    logits, label = torch.randn(9, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
    weights = torch.tensor([0.6, 1.5, 1.5], dtype=torch.float64)
    silent = stream([[0, 0]] * 9, [], [0] * 9)
    silent.distances = torch.zeros(0, 3, dtype=torch.float64)
    normalizers = LossNormalizers(9, {"audio": 1}, {}, {}, float(weights[label].sum()))
    output = ModelOutput(logits, {"audio": silent})
    terms = dict(zip(TERMS, loss_terms(output, label, {}, normalizers, LossConfig(), weights), strict=True))
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, label, weight=weights))
    torch.testing.assert_close(terms["mse"], F.mse_loss(logits.softmax(-1), F.one_hot(label, 3).double()))
    assert terms["intra"] == terms["inter"] == terms["contrast"] == 0, "one modality has no pair to compare"


def test_gradients_are_finite_where_both_means_are_equal() -> None:
    audio = stream([[1, 2], [0, 0]], [[1, 2], [1, 2]], [1, 1])
    video = stream([[1, 2], [0, 0]], [[1, 2], [1, 2]], [1, 1])
    output = ModelOutput(torch.zeros(2, 2, dtype=torch.float64), {"audio": audio, "video": video})
    # Each its own negative: both distances are 0, where a square root has no slope.
    own = torch.tensor([0, 1])
    pools = {PAIR: NegativePool(video.mean, {"inter": own, "contrast": own})}
    ones = LossNormalizers(2, {"audio": 2, "video": 2}, {PAIR: 2}, {PAIR: {"inter": 2, "contrast": 2}}, 2)
    loss_terms(output, torch.tensor([0, 1]), pools, ones, LossConfig()).sum().backward()
    for of in (audio, video):
        assert of.mean.grad is not None
        assert of.mean.grad.isfinite().all()


def settle(whole: FeatureBatch, config: LossConfig, accumulation: int, places: int) -> GlobalBatchInfo:
    return reduce_batch_counts(
        whole,
        config,
        ALONE,
        task=Task("classification", CLASSES),
        class_weights=np.array([0.5, 1.0, 2.0]),
        modalities=["audio", "video"],
        layout=Layout(places, places // accumulation, accumulation),
        seed=3,
        step=7,
        stop=False,
    )


def outcome(whole: FeatureBatch, config: LossConfig, accumulation: int) -> tuple[Tensor, list[Tensor]]:
    """The loss terms and their total's gradients, from `accumulation` micro-batches."""
    model = small_model()
    info = settle(whole, config, accumulation, whole.num_places)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    terms, first = torch.zeros(len(TERMS), dtype=torch.float64), 0
    for micro in whole.split(accumulation):
        shares = micro_batch_losses(
            model(micro.features),
            micro,
            range(first, first + len(micro)),
            info,
            config,
            weights,
            whole.num_places,
        )
        total_loss(shares, config).backward()
        terms += shares.detach()
        first += len(micro)
    return terms, [p.grad for p in model.parameters() if p.grad is not None]


def mixed_batch(size: int, places: int) -> FeatureBatch:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 7, (size, 2), generator=generator)
    lengths[::4, 1], lengths[2::5, 0] = 0, 0
    lengths[(lengths == 0).all(1)] = 2
    label = torch.randint(0, len(CLASSES), (size,), generator=generator)
    return batch(utterances(lengths.tolist()), label.tolist(), places)


@pytest.mark.parametrize("negatives", ["group", "global", "reference"])
def test_a_step_is_agreed_on_without_the_device(negatives: str) -> None:
    """The meta device holds no values: whoever asked one of it would fail."""
    whole = mixed_batch(12, places=16)
    config = LossConfig(negatives=negatives, negative_group=4)
    on_host, on_device = settle(whole, config, 1, 16), settle(whole.to("meta"), config, 1, 16)
    assert on_device.normalizers == on_host.normalizers
    assert on_device.fingerprint == on_host.fingerprint
    for name, rows in on_host.negatives.items():
        assert np.array_equal(on_device.negatives[name], rows)


@pytest.mark.parametrize("size", [32, 21], ids=["full batch", "partial batch"])
def test_shares_of_micro_batches_add_up_to_the_whole(size: int) -> None:
    config = LossConfig(negative_group=4)
    whole = mixed_batch(size, places=32)
    terms, gradients = outcome(whole, config, 1)
    assert (terms > 0).all(), "every term is at work"
    for accumulation in (2, 4, 8):
        shares, of_shares = outcome(whole, config, accumulation)
        torch.testing.assert_close(shares, terms, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(of_shares, gradients, rtol=1e-10, atol=1e-12)


def test_an_utterance_that_lacks_a_modality_or_a_negative_is_masked() -> None:
    """Changing what is masked changes no cross-modal term."""
    config = LossConfig(negative_group=4)
    of = utterances([(3, 2), (2, 3), (4, 0), (2, 2), (1, 2), (2, 1), (3, 3), (2, 2)])
    # The second group holds one class only: none of it has a negative, all of it has both streams.
    label = [0, 1, 2, 1, 2, 2, 2, 2]
    info = settle(batch(of, label), config, 1, 8)
    assert info.normalizers.both == {PAIR: 7}
    assert info.normalizers.negative == {PAIR: {"inter": 3, "contrast": 3}}
    assert (info.negatives[PAIR][:, 4:] == -1).all()

    def cross_modal(some: list[dict[str, Tensor]]) -> Tensor:
        whole = batch(some, label)
        return micro_batch_losses(
            small_model()(whole.features), whole, range(len(whole)), info, config, None, 8
        )

    before = cross_modal(of)
    changed = [dict(u) for u in of]
    changed[2]["audio"] = 5 + changed[2]["audio"]
    after = cross_modal(changed)
    assert same_bits_or_close(before[1:4], after[1:4])
    assert not same_bits_or_close(before[[0, 4, 5]], after[[0, 4, 5]])
    # Of the second group only intra and contrast's nearness to itself speak.
    changed = [dict(u) for u in of]
    changed[5]["audio"] = 5 + changed[5]["audio"]
    after = cross_modal(changed)
    assert same_bits_or_close(before[2], after[2])
    assert not same_bits_or_close(before[1], after[1])


def test_facts_of_a_step_count_what_is_there() -> None:
    whole = mixed_batch(21, places=32)
    info = settle(whole, LossConfig(negative_group=4), 1, 32)
    audio, video = (whole.features[m].lengths > 0 for m in ("audio", "video"))
    assert info.utterances == info.normalizers.utterances == 21
    assert info.normalizers.present == {"audio": int(audio.sum()), "video": int(video.sum())}
    assert info.normalizers.both == {PAIR: int((audio & video).sum())}
    weights = torch.tensor([0.5, 1.0, 2.0])
    assert info.normalizers.class_weight == pytest.approx(float(weights[whole.label].sum()))
    assert info.fingerprint == whole.fingerprint()


def test_an_empty_step_divides_by_nothing() -> None:
    info = settle(batch([], [], 8), LossConfig(), 1, 8)
    assert info.utterances == 0
    assert info.normalizers == LossNormalizers(
        1, {"audio": 1, "video": 1}, {PAIR: 1}, {PAIR: {"inter": 1, "contrast": 1}}, 1.0
    )


def test_global_negatives_come_from_the_whole_batch() -> None:
    config = LossConfig(negatives="global")
    of = utterances([(2, 2)] * 8)
    label = [0, 0, 0, 0, 1, 1, 1, 1]  # groups of four would have none
    info = settle(batch(of, label), config, 1, 8)
    assert info.normalizers.negative[PAIR]["inter"] == 8
    negative = info.negatives[PAIR][0]
    assert all(label[n] != label[i] for i, n in enumerate(negative))
    terms, _ = outcome(batch(of, label), config, 1)
    assert (terms[1:4] > 0).all()


@pytest.mark.parametrize("settings", [{"tau": 0.0}, {"negative_group": 1}])
def test_impossible_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"loss.{next(iter(settings))}"):
        LossConfig(**settings).validate()
