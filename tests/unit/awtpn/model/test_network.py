"""The network: missing modalities, several prototypes, precision, statistics, saving and loading."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import CLASSES, DIMS, features, same_bits_or_close, small_model, utterances

from awtpn.learning.losses import LossNormalizers, NegativePool, loss_terms, total_loss
from awtpn.learning.negatives import DRAWS
from awtpn.learning.settings import LossConfig
from awtpn.model.blocks import TPN, Standardize
from awtpn.model.files import CARD_FILE, WEIGHTS_FILE
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig

LENGTHS = [(4, 3), (1, 6), (5, 0), (2, 2), (0, 4)]
EXACT: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-13}


def test_an_utterance_without_a_modality_is_fused_from_the_other_alone() -> None:
    model, of = small_model(alpha_audio=0.3, beta_video=0.7), utterances(LENGTHS)
    output = model(features(of))
    audio, video = output.streams["audio"], output.streams["video"]
    assert audio.present.tolist() == [True, True, True, True, False]
    assert video.present.tolist() == [True, True, False, True, True]
    fused = 0.3 * audio.pooled + 0.7 * video.pooled
    fused[2], fused[4] = audio.pooled[2], video.pooled[4]
    torch.testing.assert_close(output.logits, model.classifier(fused), **EXACT)
    # It changes nothing for the others, and they nothing for it.
    complete = [0, 1, 3]
    torch.testing.assert_close(
        output.logits[complete], model(features([of[u] for u in complete])).logits, **EXACT
    )
    torch.testing.assert_close(output.logits[[2]], model(features([of[2]])).logits, **EXACT)


@pytest.mark.parametrize("awm", ["adaptive", "uniform"])
def test_weights_sum_to_one_within_each_utterance(awm: str) -> None:
    output = small_model(awm=awm)(features(utterances(LENGTHS)))
    for m, (name, stream) in enumerate(output.streams.items()):
        lengths = [of[m] for of in LENGTHS]
        sums = torch.stack([w.sum() for w in stream.weights.split(lengths)])
        expected = torch.tensor([float(n > 0) for n in lengths], dtype=torch.float64)
        torch.testing.assert_close(sums, expected, rtol=0, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


def test_uniform_weights_are_plain_averages() -> None:
    model, of = small_model(awm="uniform"), utterances([(3, 5), (1, 2)])
    assert not model.awm, "the ablation has no attention to learn"
    output = model(features(of))
    torch.testing.assert_close(
        output.streams["audio"].weights, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1], dtype=torch.float64)
    )
    for m in DIMS:
        h = torch.relu(torch.nn.functional.linear(of[0][m], model.ses[m].weight, model.ses[m].bias))
        torch.testing.assert_close(output.streams[m].pooled[0], h.mean(0), **EXACT)


def test_with_several_prototypes_the_nearest_of_a_class_counts() -> None:
    tpn = TPN(classes=2, per_class=3, dim=4, learnable=True).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tpn.prototypes.copy_(torch.randn(6, 4, generator=generator))
    h = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    square = (h[:, None] - tpn.prototypes[None]).square().sum(-1)  # [7, 6], class by class
    expected = 0.5 * torch.stack([square[:, :3].amin(1), square[:, 3:].amin(1)], 1)
    torch.testing.assert_close(tpn(h, 0.5), expected, rtol=1e-12, atol=1e-12)


def test_distances_never_fall_below_zero_and_stay_float32_under_bfloat16() -> None:
    tpn = TPN(classes=1, per_class=1, dim=64, learnable=True)
    with torch.no_grad():
        tpn.prototypes.copy_(100 * torch.rand(1, 64))
    distances = tpn(tpn.prototypes.detach().repeat(50, 1) + 1e-6 * torch.randn(50, 64), 1.0)
    assert (distances >= 0).all()
    assert tpn(torch.rand(2, 64, dtype=torch.bfloat16), 1.0).dtype == torch.float32


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_one_modality_models(modality: str) -> None:
    model, of = small_model(modalities=[modality]), utterances([(4, 3), (2, 5)])
    assert not any(
        name for name, _ in model.named_parameters() if ({"audio", "video"} - {modality}).pop() in name
    )
    packed = features(of)
    output = model({modality: packed[modality]})
    torch.testing.assert_close(output.logits, model.classifier(output.streams[modality].pooled), **EXACT)


def test_buffers_survive_half_precision() -> None:
    model = small_model(dtype=torch.float32, learnable=False)
    mean, std = torch.full((6,), -18.4321), torch.full((6,), 1e-3)
    model.set_statistics("audio", mean, std)
    table = model.tpn.prototypes.clone()
    model.bfloat16()
    assert model.ses["audio"].weight.dtype == torch.bfloat16
    assert torch.equal(model.standardise["audio"].mean, mean)
    assert torch.equal(model.standardise["audio"].std, std)
    assert torch.equal(model.tpn.prototypes, table)
    assert small_model(learnable=False).tpn.prototypes.dtype == torch.float64, "widening is allowed"


def test_standardise() -> None:
    standardise = Standardize(3)
    x = torch.tensor([[1.0, 5.0, -18.0], [3.0, 5.0, -19.0]])
    assert torch.equal(standardise(x), x), "the identity, exactly, until it has statistics"
    # The second feature never varies but for rounding: dividing by that would blow up what comes later.
    standardise.set_statistics(torch.tensor([2.0, 5.0, -18.5]), torch.tensor([1.0, 1e-9, 0.5]))
    torch.testing.assert_close(standardise(x), torch.tensor([[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]]))
    # Stored as float16 and standardized in float32: differences smaller than bfloat16's steps remain.
    half = standardise(torch.tensor([[2.0, 5.0, -18.5], [2.0, 5.0, -18.484375]], dtype=torch.float16))
    assert half.dtype == torch.float32
    assert half[1, 2] - half[0, 2] == pytest.approx(0.03125)


@pytest.mark.parametrize("awm", ["adaptive", "uniform"])
@pytest.mark.parametrize("modalities", [["audio", "video"], ["audio"]])
def test_an_empty_batch_reaches_every_parameter_with_gradient_zero(awm: str, modalities: list[str]) -> None:
    """A rank without utterances still takes part in every collective of the backward pass."""
    model = small_model(awm=awm, modalities=modalities)
    output = model(features([]))
    assert output.logits.shape == (0, len(CLASSES))
    none = torch.zeros(0, dtype=torch.int64)
    pairs = list(combinations(modalities, 2))
    ones = LossNormalizers(
        1, dict.fromkeys(DIMS, 1), dict.fromkeys(pairs, 1), dict.fromkeys(pairs, dict.fromkeys(DRAWS, 1.0)), 1
    )
    pools = {(a, v): NegativePool(output.streams[v].mean, dict.fromkeys(DRAWS, none)) for a, v in pairs}
    config = LossConfig()
    total = total_loss(loss_terms(output, none, pools, ones, config), config)
    assert total == 0
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_all_utterances_lacking_a_modality_still_reach_every_parameter() -> None:
    model = small_model()
    output = model(features(utterances([(3, 0), (2, 0)])))
    (output.logits.sum() + sum(s.distances.sum() for s in output.streams.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_model_survives_a_round_trip(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32, prototypes_per_class=2, modalities=["video"], beta_video=0.9)
    model.set_statistics("video", torch.arange(5.0), torch.full((5,), 2.0))
    (tmp_path / CARD_FILE).write_text(json.dumps(model.card()))
    save_file(model.state_dict(), tmp_path / WEIGHTS_FILE)
    loaded = AWTPN.from_pretrained(tmp_path)
    assert not loaded.training
    assert (loaded.classes, loaded.feature_dims) == (CLASSES, {"video": 5})
    assert loaded.config.record() == model.config.record()
    packed = features(utterances([(1, 4), (1, 2)], dtype=torch.float32))
    assert same_bits_or_close(loaded(packed).logits, model.eval()(packed).logits)


def test_what_is_no_model_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a run, checkpoint or export: none of .* has config\.json"):
        AWTPN.from_pretrained(tmp_path)
    model = small_model(dtype=torch.float32)
    (tmp_path / CARD_FILE).write_text(json.dumps(model.card()))
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        AWTPN.from_pretrained(tmp_path)
    save_file(model.state_dict(), tmp_path / WEIGHTS_FILE)
    for change, message in (
        ({"format": "other"}, "is not an AWTPN model"),
        ({"format_version": 3}, "format version 3; this code knows those up to 2"),
    ):
        (tmp_path / CARD_FILE).write_text(json.dumps(model.card() | change))
        with pytest.raises(ValueError, match=message):
            AWTPN.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"modalities": []}, "model.modalities"),
        ({"modalities": ["audio", "text"]}, "model.modalities"),
        ({"modalities": ["audio", "audio"]}, "model.modalities"),
        ({"shared_dim": 0}, "model.shared_dim"),
        ({"prototypes_per_class": 0}, "model.prototypes_per_class"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"distance_scale_video": 0.0}, "model.distance_scale_video"),
    ],
)
def test_impossible_models_are_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AWTPN(ModelConfig(**settings), DIMS, CLASSES)


def test_a_modality_that_the_data_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="names video, but the data has only audio"):
        AWTPN(ModelConfig(), {"audio": 6}, CLASSES)
