"""Any modalities: settings in a map, old keys, the fusion when some are missing, names that cannot be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import THREE_DIMS, features, same_bits_or_close, small_model, utterances

from awtpn.model.blocks import fusion_weights
from awtpn.model.network import AWTPN
from awtpn.model.settings import FORMER_MODEL, ModelConfig, select_modalities

PRESENT = st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6)


@given(present=PRESENT, given_weights=st.lists(st.sampled_from([0.0, 0.3, 0.7, 2.0]), min_size=3, max_size=3))
def test_weights_are_as_given_where_all_are_present_and_else_sum_to_one(
    present: list[list[bool]], given_weights: list[float]
) -> None:
    weights = fusion_weights(given_weights, torch.tensor(present).T, torch.float64)
    for of_utterance, has in zip(weights.T.tolist(), present, strict=True):
        assert all(w == 0 for w, there in zip(of_utterance, has, strict=True) if not there and not all(has))
        if all(has):
            assert of_utterance == given_weights
        elif any(has):
            of_present = [w for w, there in zip(given_weights, has, strict=True) if there]
            shares = [w for w, there in zip(of_utterance, has, strict=True) if there]
            assert sum(shares) == pytest.approx(1.0)
            total = sum(of_present)
            expected = [w / total for w in of_present] if total else [1 / len(of_present)] * len(of_present)
            assert shares == pytest.approx(expected)


def test_a_missing_modality_does_not_count_and_the_order_of_the_map_is_kept() -> None:
    model = small_model(dims=THREE_DIMS, modalities=["text", "audio", "video"])
    assert list(model.feature_dims) == list(model.config.modalities) == ["text", "audio", "video"]
    of = utterances([(3, 2, 4), (2, 0, 3), (0, 0, 5), (4, 1, 0)], dims=THREE_DIMS)
    output = model(features(of, THREE_DIMS))
    # An utterance alone in its batch gives the same logits.
    for i, one in enumerate(of):
        alone = model(features([one], THREE_DIMS)).logits[0]
        torch.testing.assert_close(output.logits[i], alone)
    # The only modality of the third has weight 1.
    expected = model.classifier(output.streams["text"].pooled[2])
    torch.testing.assert_close(output.logits[2], expected)


def test_settings_of_a_modality_are_used() -> None:
    of = features(utterances([(3, 2, 4), (2, 1, 3)], dims=THREE_DIMS), THREE_DIMS)
    plain = small_model(dims=THREE_DIMS)
    logits = plain(of).logits
    for settings in ({"weight": 0.9}, {"distance_scale": 0.1}):
        other = small_model(dims=THREE_DIMS, modalities={"audio": {}, "video": {}, "text": settings})
        assert not same_bits_or_close(other(of).logits, logits), settings
    same = small_model(
        dims=THREE_DIMS,
        modalities={"audio": {"weight": 1.0}, "video": {"weight": 1.0}, "text": {"weight": 1.0}},
    )
    assert same_bits_or_close(same(of).logits, logits)


def test_the_papers_symbols_are_the_weights_of_audio_and_video() -> None:
    by_symbol = ModelConfig(alpha_audio=0.4, beta_video=0.6, distance_scale_audio=0.5)
    by_map = ModelConfig(
        modalities={"audio": {"weight": 0.4, "distance_scale": 0.5}, "video": {"weight": 0.6}}  # type: ignore[dict-item]
    )
    assert by_symbol.record() == by_map.record()
    assert "alpha_audio" not in by_symbol.record()
    # Given together they must agree.
    ModelConfig(alpha_audio=0.4, modalities={"audio": {"weight": 0.4}}).validate()  # type: ignore[dict-item]
    with pytest.raises(
        ValueError, match=r"model\.alpha_audio is 0\.3 and model\.modalities\.audio\.weight is 0\.4"
    ):
        ModelConfig(alpha_audio=0.3, modalities={"audio": {"weight": 0.4}}).validate()  # type: ignore[dict-item]
    with pytest.raises(
        ValueError, match=r"distance_scale_video is 2 and model\.modalities\.video\.distance_scale"
    ):
        ModelConfig(
            distance_scale_video=2,
            modalities={"video": {"distance_scale": 1}},  # type: ignore[dict-item]
        ).validate()


def test_a_list_selects_and_keeps_settings() -> None:
    configured = {"audio": {"weight": 0.4}, "text": {"weight": 2.0}}
    assert select_modalities(configured, ["text", "video"]) == {"text": {"weight": 2.0}, "video": {}}
    assert select_modalities(configured, "audio") == {"audio": {"weight": 0.4}}


def test_a_card_of_an_earlier_version_is_the_model_that_was_trained() -> None:
    now = small_model(alpha_audio=0.9, beta_video=0.2, distance_scale_video=0.3, **FORMER_MODEL)
    card = now.card()
    old = card | {
        "format_version": 1,
        "model": {
            "shared_dim": 8,
            "dropout": 0.0,
            "prototypes_per_class": 1,
            "alpha_audio": 0.9,
            "beta_video": 0.2,
            "distance_scale_audio": 1.0,
            "distance_scale_video": 0.3,
            "modalities": ["audio", "video"],
            "awm": "adaptive",
        },
    }
    again = AWTPN.from_card(old)
    assert again.config.record() == now.config.record()
    assert again.card()["model"] == card["model"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"modalities": {"audio": {"weight": -1.0}}},
            r"model\.modalities\.audio\.weight must not be negative",
        ),
        ({"alpha_audio": -1.0}, r"model\.alpha_audio must not be negative"),
        (
            {"modalities": {"text": {"distance_scale": 0}}},
            r"modalities\.text\.distance_scale must be above 0",
        ),
        ({"modalities": ["a b"]}, "names 'a b', which no dataset can have"),
        ({"modalities": []}, "at least one modality"),
        ({"modalities": ["text", "text"]}, "names a modality twice"),
        ({"modality_dropout": 1.0}, r"modality_dropout must lie in \[0, 1\)"),
        ({"modality_dropout": {"text": 0.1}}, "names text, which is not among"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig(**settings).validate()  # type: ignore[arg-type]


def test_names_that_pytorch_uses_are_refused() -> None:
    with pytest.raises(ValueError, match="a name that PyTorch's modules use"):
        AWTPN(ModelConfig(modalities=["forward"]), {"forward": 3}, ["a", "b"])  # type: ignore[arg-type]
