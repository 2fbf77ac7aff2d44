"""Cross-modal terms over pairs of modalities: the mean over pairs, each with its own counts and negatives."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ALONE, CLASSES, THREE_DIMS, batch, small_model, utterances
from torch import Tensor

from awtpn.distributed.batch_layout import Layout
from awtpn.learning.losses import total_loss
from awtpn.learning.settings import TERMS, LossConfig
from awtpn.model.task import Task
from awtpn.training.global_batch import GlobalBatchInfo, micro_batch_losses, reduce_batch_counts
from shards import FeatureBatch

NAMES = list(THREE_DIMS)
CROSS = [list(TERMS).index(term) for term in ("intra", "inter", "contrast")]


def agree(
    whole: FeatureBatch, config: LossConfig, modalities: list[str] = NAMES, accumulation: int = 1
) -> GlobalBatchInfo:
    return reduce_batch_counts(
        whole,
        config,
        ALONE,
        task=Task("classification", CLASSES),
        class_weights=None,
        modalities=modalities,
        layout=Layout(whole.num_places, whole.num_places // accumulation, accumulation),
        seed=3,
        step=7,
        stop=False,
    )


def terms_of(whole: FeatureBatch, config: LossConfig, modalities: list[str], accumulation: int = 1) -> Tensor:
    model = small_model(dims={m: THREE_DIMS[m] for m in modalities})
    for name in THREE_DIMS:  # the same weights of a modality, whatever others there are
        if name in model.ses:
            generator = torch.Generator().manual_seed(len(name) * 7 + ord(name[0]))
            with torch.no_grad():
                weight = model.ses[name].weight
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
                model.ses[name].bias.zero_()
    info = agree(whole, config, modalities, accumulation)
    total, first = torch.zeros(len(TERMS), dtype=torch.float64), 0
    for micro in whole.split(accumulation):
        total += micro_batch_losses(
            model(micro.features),
            micro,
            range(first, first + len(micro)),
            info,
            config,
            None,
            whole.num_places,
        ).detach()
        first += len(micro)
    return total


def random_batch(pattern: list[tuple[int, ...]], seed: int = 0) -> FeatureBatch:
    rng = np.random.default_rng(seed)
    label = rng.integers(len(CLASSES), size=len(pattern)).tolist()
    return batch(utterances(pattern, seed, dims=THREE_DIMS), label, 16, THREE_DIMS)


PATTERNS = st.lists(st.tuples(*[st.integers(0, 3)] * 3).filter(any), min_size=1, max_size=16)


@settings(max_examples=40, deadline=None)
@given(pattern=PATTERNS, negatives=st.sampled_from(["group", "global"]), seed=st.integers(0, 99))
def test_the_terms_are_means_over_pairs_with_their_own_counts(
    pattern: list[tuple[int, ...]], negatives: str, seed: int
) -> None:
    whole = random_batch(pattern, seed)
    config = LossConfig(negatives=negatives, negative_group=4, margin_contrast=5.0)  # type: ignore[arg-type]
    info = agree(whole, config)
    present = {m: whole.features[m].lengths > 0 for m in NAMES}
    for pair in combinations(NAMES, 2):
        both = present[pair[0]] & present[pair[1]]
        assert info.normalizers.both[pair] == max(1, int(both.sum()))
        drawn = info.negatives[pair]
        for of_draw, count in zip(drawn, info.normalizers.negative[pair].values(), strict=True):
            found = torch.from_numpy(of_draw >= 0)
            assert count == max(1, int((both & found).sum()))
            # A negative has both modalities and another class.
            other = torch.from_numpy(of_draw)[found]
            assert both[other].all()
            assert (whole.label[other] != whole.label[found]).all()
    # Without negatives, which pairs draw differently, a term of three is the mean of those of the pairs.
    three = terms_of(whole, config, NAMES)
    intra = [terms_of(whole, config, list(pair))[CROSS[0]] for pair in combinations(NAMES, 2)]
    torch.testing.assert_close(three[CROSS[0]], torch.stack(intra).mean())
    assert three.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(pattern=PATTERNS, accumulation=st.sampled_from([2, 4]))
def test_micro_batches_add_up_whatever_is_missing(pattern: list[tuple[int, ...]], accumulation: int) -> None:
    whole = random_batch(pattern)
    config = LossConfig(negative_group=4, margin_contrast=5.0)
    torch.testing.assert_close(
        terms_of(whole, config, NAMES, accumulation), terms_of(whole, config, NAMES), rtol=1e-10, atol=1e-12
    )


def test_the_first_pair_draws_what_two_modalities_draw() -> None:
    whole = random_batch([(2, 1, 1)] * 16)
    three, two = agree(whole, LossConfig()), agree(whole, LossConfig(), NAMES[:2])
    pair = (NAMES[0], NAMES[1])
    assert np.array_equal(three.negatives[pair], two.negatives[pair])
    drawn = [of_pair.tolist() for of_pair in three.negatives.values()]
    assert drawn[0] != drawn[1] != drawn[2], "pairs draw independently"


def test_weights_of_pairs() -> None:
    whole = random_batch([(2, 1, 1)] * 16)
    pairs = ["-".join(pair) for pair in combinations(NAMES, 2)]
    none = dict.fromkeys(pairs, 0.0)
    alone = [terms_of(whole, LossConfig(pair_weights=none | {pair: 1.0}), NAMES) for pair in pairs]
    weighted = terms_of(whole, LossConfig(pair_weights={pairs[0]: 2.0, pairs[2]: 0.0}), NAMES)
    expected = (2 * alone[0] + alone[1]) / 3
    torch.testing.assert_close(weighted[CROSS], expected[CROSS])
    equal = terms_of(whole, LossConfig(), NAMES)
    torch.testing.assert_close(equal[CROSS], (sum(alone) / 3)[CROSS])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"video-audio": 1.0}, "the pairs are audio-video, audio-text, video-text"),
        ({"audio-video": -1.0}, r"loss\.pair_weights\.audio-video must not be negative"),
        (dict.fromkeys(["audio-video", "audio-text", "video-text"], 0.0), "all 0"),
    ],
)
def test_impossible_weights_of_pairs_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(pair_weights=weights).check_pairs(NAMES)


@pytest.mark.parametrize("negatives", ["group", "global"])
def test_every_encoder_gets_a_gradient_from_the_cross_modal_terms(negatives: str) -> None:
    whole = random_batch([(2, 1, 1), (1, 0, 2), (2, 2, 0), (0, 1, 1)] * 4)
    model = small_model(dims=THREE_DIMS)
    config = LossConfig(negatives=negatives, negative_group=4, lambda_align=0, eta_ce=0, eta_mse=0)  # type: ignore[arg-type]
    info = agree(whole, config)
    terms = micro_batch_losses(
        model(whole.features), whole, range(len(whole)), info, config, None, whole.num_places
    )
    total_loss(terms, config).backward()
    for name in NAMES:
        gradient = model.ses[name].weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
