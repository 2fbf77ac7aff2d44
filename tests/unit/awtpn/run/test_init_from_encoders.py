"""`run.init_from` with encoders: a model of features goes on end to end, and answers as before at first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_in_models_support import extracted
from encoders_support import AUDIO
from finetuned_support import KINDS, TUNES, answers, base_models, finetuned, saved, utterances
from support import CLASSES

from awtpn.inference.export import export
from awtpn.inference.predictor import Predictor
from awtpn.model.base import EmotionModel
from awtpn.model.models import build_model
from awtpn.model.settings import ModelConfig
from awtpn.run.init_from import init_from
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.format.feature_space import RECORDED, extraction_provenance

FRAMES = {"id": "frames", "version": 1, "fps": 10.0, "side": 32, "largest_side": 64, "faces": "none"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return base_models(tmp_path_factory.mktemp("bases"))


def of_features(bases: dict[str, Path], classes: list[str] = CLASSES, **dims: int) -> EmotionModel:
    """A model of what the base models make of recordings, with statistics."""
    made: dict[str, Any] = {
        "audio": open_audio_encoder(str(bases["audio"])),
        "video": open_video_encoder(str(bases["video"])),
    }
    wide = {m: encoder.dim for m, encoder in made.items()} | dims
    torch.manual_seed(5)
    model = build_model(ModelConfig(shared_dim=8, dropout=0.0, modalities=list(wide)), wide, classes)  # type: ignore[arg-type]
    for modality, dim in wide.items():
        model.set_statistics(modality, torch.randn(dim), torch.rand(dim) + 0.5)
    model.provenance = extraction_provenance(made)
    model.provenance["features"]["video"]["settings"][RECORDED] = FRAMES
    return model.eval()


@pytest.fixture(scope="module")
def features(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A run on features, and what it answers for those of `utterances()`."""
    model = of_features(bases)
    given = []
    for each in utterances():
        assert each["audio"] is not None
        [sound] = extracted("audio", bases["audio"], [each["audio"]])
        pictures = None
        if each["video"] is not None:
            [pictures] = extracted("video", bases["video"], [each["video"]])
        given.append({"audio": sound, "video": pictures})
    found = Predictor(model).predict(given)
    run = tmp_path_factory.mktemp("features")
    return saved(model, run), np.array([list(each.probabilities.values()) for each in found])


@pytest.mark.parametrize("tune", ["frozen", "lora", "full", "last-2-layers"])
def test_a_model_of_features_goes_on_end_to_end(
    features: tuple[Path, np.ndarray], bases: dict[str, Path], tune: str
) -> None:
    folder, expected = features
    model = finetuned(bases, dict.fromkeys(KINDS, tune), moved=False)
    assert np.abs(answers(model) - expected).max() > 1e-3
    copied = init_from(folder, model)
    assert copied.everything
    assert copied.statistics == ["audio", "video"]
    assert copied.line == f"run.init_from: weights from {folder}: audio, video, prototypes and classifier"
    np.testing.assert_allclose(answers(model), expected, atol=1e-5)


def test_features_beside_recordings_keep_their_statistics(bases: dict[str, Path], tmp_path: Path) -> None:
    before = of_features(bases, text=4)
    folder = saved(before, tmp_path)
    model = finetuned({"audio": bases["audio"]}, moved=False)
    dims = {"audio": 32, "video": 32, "text": 4}
    config = ModelConfig(shared_dim=8, dropout=0.0, modalities=list(dims))  # type: ignore[arg-type]
    both = build_model(config, dims, CLASSES, encoders=dict(model.encoders.items()))  # type: ignore[arg-type]
    copied = init_from(folder, both)
    assert copied.everything
    assert copied.statistics == ["audio"]
    for name, tensor in before.state_dict().items():
        assert torch.equal(both.state_dict()[name], tensor), name


def test_other_labels_get_new_prototypes(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = saved(of_features(bases, ["calm", "loud"]), tmp_path)
    copied = init_from(folder, finetuned(bases, moved=False))
    assert not copied.everything
    assert copied.line.endswith("audio, video; random ones: prototypes and classifier")


def told(folder: Path, model: EmotionModel) -> str:
    with pytest.raises(ValueError, match=r"run\.init_from") as caught:
        init_from(folder, model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_encoders_are_refused_by_name(
    features: tuple[Path, np.ndarray], bases: dict[str, Path], tmp_path: Path
) -> None:
    folder, _ = features
    found = told(folder, finetuned(bases, layer=2))
    assert (
        f"the features of audio of {folder} are of an encoder with layer 3, and encoder.audio has 2" in found
    )
    assert "give the same model, layer and step_seconds" in found
    found = told(folder, finetuned({"audio": bases["audio"]}, step_seconds=0.25))
    assert "an encoder with step_seconds 0.1, and encoder.audio has 0.25" in found
    other = AUDIO["wav2vec2"](tmp_path / "other", num_hidden_layers=4)  # type: ignore[call-arg]
    assert "are of an encoder with sha256" in told(folder, finetuned({"audio": other}))
    model = finetuned({"video": bases["video"]})
    model.provenance["features"]["video"]["settings"]["faces"] = {"detector": "yunet"}
    assert "was trained on whole pictures, and the recordings of this run are faces" in told(folder, model)


def test_a_model_with_encoders_goes_on(bases: dict[str, Path], tmp_path: Path) -> None:
    first = finetuned(bases)
    folder = saved(first, tmp_path / "first")
    second = finetuned(bases, moved=False)
    assert np.abs(answers(second) - answers(first)).max() > 1e-4
    assert init_from(folder, second).everything
    np.testing.assert_allclose(answers(second), answers(first), atol=1e-6)
    found = told(folder, finetuned(bases, TUNES | {"audio": "full"}))
    assert (
        "trained its encoder of audio by lora: give the same encoder.audio.tune, or merge it first" in found
    )
    found = told(folder, finetuned(bases, lora_rank=2))
    assert found.endswith("in this run: give both the same encoder.audio.lora_rank")


def test_a_merged_model_goes_on_in_any_way(bases: dict[str, Path], tmp_path: Path) -> None:
    first = finetuned(bases)
    saved(first, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", merge=True)
    own = {m: tmp_path / "out" / "encoders" / m for m in bases}
    second = finetuned(own, {"audio": "full", "video": "lora"}, moved=False)
    assert init_from(tmp_path / "out", second).everything
    np.testing.assert_allclose(answers(second), answers(first), atol=1e-5)
    assert "of an encoder with sha256" in told(tmp_path / "out", finetuned(bases)), "it was trained since"
