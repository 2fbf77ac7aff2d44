"""Checkpoints of models with encoders: what they hold, what they need, and which are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders_support import AUDIO, wav2vec_like
from finetuned_support import TUNES, answers, base_models, finetuned, saved

from awtpn.inference.export import export
from awtpn.inference.predictor import Predictor
from awtpn.model.base import EmotionModel
from awtpn.model.files import CARD_FILE, STATE_FILE, WEIGHTS_FILE, fingerprint, read_weights
from awtpn.model.models import load_model

Record = dict[str, Any]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return base_models(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="module")
def model(bases: dict[str, Path]) -> EmotionModel:
    return finetuned(bases)


@pytest.fixture(scope="module")
def kept(model: EmotionModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    return saved(model, tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint."""
    return Path(shutil.copytree(kept, tmp_path / "step-00000001"))


def rewrite(folder: Path, change: Callable[[Record], Any]) -> None:
    """Change a checkpoint's card, and its recorded hash, as somebody does who forges a card."""
    card = json.loads((folder / CARD_FILE).read_text())
    change(card)
    (folder / CARD_FILE).write_text(json.dumps(card))
    state = json.loads((folder / STATE_FILE).read_text())
    state["files"][CARD_FILE] = fingerprint(folder / CARD_FILE)
    (folder / STATE_FILE).write_text(json.dumps(state))


def refusal(call: Callable[[], Any]) -> str:
    """The message of a refusal, which has one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what the caller looks at)
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_holds_what_is_trained_and_no_more(
    model: EmotionModel, kept: Path, bases: dict[str, Path]
) -> None:
    assert sorted(path.name for path in kept.iterdir()) == sorted(
        [CARD_FILE, WEIGHTS_FILE, STATE_FILE, "optimizer.safetensors"]
    )
    stored = read_weights(kept / WEIGHTS_FILE)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in stored if name.startswith("encoders.")} == {
        name for name in trained if name.startswith("encoders.")
    }
    of_audio = [name for name in stored if name.startswith("encoders.audio.")]
    of_video = [name for name in stored if name.startswith("encoders.video.")]
    assert len(of_audio) == 3 * 2 * 2, "layers, projections, and two matrices each"
    assert all(".lora_" in name for name in of_audio)
    assert all(".2." in name or ".layernorm." in name for name in of_video), "the last layer and the norm"
    bytes_trained = sum(t.nbytes for t in model.saved_state().values())
    assert bytes_trained <= (kept / WEIGHTS_FILE).stat().st_size < bytes_trained + 16_000
    assert bytes_trained < sum((base / "model.safetensors").stat().st_size for base in bases.values()) / 2
    record = json.loads((kept / CARD_FILE).read_text())["encoders"]["audio"]
    assert record["config"]["tune"] == "lora"
    assert record["settings"]["id"] == "base-audio"
    assert len(record["settings"]["sha256"]) == 64


def test_it_answers_as_before(model: EmotionModel, kept: Path) -> None:
    loaded = load_model(kept)
    assert loaded.card() == model.card() | {"dataset": "talks"}
    np.testing.assert_allclose(answers(loaded), answers(model), atol=1e-6)
    before = {m: e.config.model for m, e in model.encoders.items()}  # type: ignore[union-attr]
    untuned = finetuned(before, dict.fromkeys(TUNES, "frozen"))
    assert np.abs(answers(untuned) - answers(model)).max() > 1e-4, "what is trained matters"


def test_another_base_model_is_refused(
    kept: Path, folder: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    other = AUDIO["hubert"](tmp_path / "other")
    told = refusal(lambda: load_model(kept, {"audio": other}))
    assert f"audio: {other} is not the model that this one was trained from" in told
    assert "another sha256" in told
    # Somebody who changes the hash, too, has weights of other shapes.
    wide = wav2vec_like("Wav2Vec2", hidden_size=64)(tmp_path / "wide")
    sha256 = finetuned({"audio": wide}).card()["encoders"]["audio"]["settings"]["sha256"]
    rewrite(folder, lambda card: card["encoders"]["audio"]["settings"].update(sha256=sha256))
    assert "makes 64 features, and the model takes 32" in refusal(lambda: load_model(folder, {"audio": wide}))
    deep = wav2vec_like("Wav2Vec2", num_hidden_layers=4)(tmp_path / "deep")
    settings = finetuned({"audio": deep}).card()["encoders"]["audio"]["settings"]
    rewrite(folder, lambda card: card["encoders"]["audio"]["settings"].update(settings))
    told = refusal(lambda: load_model(folder, {"audio": deep}))
    assert f"is missing in {WEIGHTS_FILE}, and" in told
    assert "it is of another base model" in told


def test_a_base_model_that_is_gone_is_named(
    model: EmotionModel, folder: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    gone, here = tmp_path / "gone", tmp_path / "here"
    shutil.copytree(bases["audio"], here)
    rewrite(folder, lambda card: card["encoders"]["audio"]["settings"].update(path=str(gone)))
    told = refusal(lambda: load_model(folder))
    assert f"trained from 'base-audio', the folder {gone}, which is not there" in told
    assert "--audio FOLDER" in told
    moved = Predictor.from_pretrained(folder, encoders={"audio": here}).model
    np.testing.assert_allclose(answers(moved), answers(model), atol=1e-6)
    assert moved.card()["encoders"]["audio"]["settings"]["id"] == "base-audio", "whatever the folder's name"
    assert "no such folder" in refusal(lambda: load_model(folder, {"audio": gone}))


FORGED: dict[str, tuple[Callable[[Record], Any], str]] = {
    "no records": (lambda e: e.update(audio=3), "encoders.audio must be a record with config"),
    "another modality": (lambda e: e.update(text=e["audio"]), "encoders must be records of audio and video"),
    "no config": (lambda e: e["audio"].pop("config"), "encoders.audio.config is not a mapping"),
    "config of text": (lambda e: e["audio"].update(config="x"), "encoders.audio.config is not a mapping"),
    "no model": (lambda e: e["audio"]["config"].update(model=3), "encoders.audio.config.model cannot be 3"),
    "rank of text": (lambda e: e["audio"]["config"].update(lora_rank="8"), "lora_rank cannot be '8'"),
    "rank beyond bounds": (
        lambda e: e["audio"]["config"].update(lora_rank=1 << 30),
        "lora_rank must be from",
    ),
    "absurd rank": (
        lambda e: e["audio"]["config"].update(lora_rank=1 << 16),
        "lora_rank 65536 by the card and 8",
    ),
    "rank of another": (
        lambda e: e["audio"]["config"].update(lora_rank=4),
        "lora_rank 4 by the card and 8 in",
    ),
    "tune": (lambda e: e["audio"]["config"].update(tune="exec"), "encoder.audio.tune is 'exec'"),
    "tuned otherwise": (lambda e: e["audio"]["config"].update(tune="full"), "it is of another base model"),
    "more layers": (
        lambda e: e["video"]["config"].update(tune="last-2-layers"),
        "it is of another base model",
    ),
    "layers beyond": (lambda e: e["video"]["config"].update(tune="last-999-layers"), "has 3 layers up to"),
    "layer": (lambda e: e["video"]["config"].update(layer=99), "layer=99"),
    "another layer": (
        lambda e: e["audio"]["settings"].update(layer=1),
        "has layer 3, and by its settings in",
    ),
    "layer of text": (
        lambda e: e["audio"]["settings"].update(layer="1"),
        "must have a layer and step_seconds",
    ),
    "step": (lambda e: e["audio"]["config"].update(step_seconds=1e-5), "step_seconds"),
    "step NaN": (
        lambda e: e["audio"]["config"].update(step_seconds=float("nan")),
        "step_seconds cannot be nan",
    ),
    "no hash": (lambda e: e["audio"]["settings"].pop("sha256"), "must have an id, and a sha256"),
    "hash": (lambda e: e["audio"]["settings"].update(sha256="0" * 64), "files have another sha256"),
    "id": (lambda e: e["audio"]["settings"].update(id=["x"]), "must have an id, and a sha256"),
    "path": (lambda e: e["audio"]["settings"].update(path=3), "encoders.audio.settings.path cannot be 3"),
    "elsewhere": (
        lambda e: e["audio"].update(folder="../../etc"),
        "folder must be encoders/audio, not '../..",
    ),
    "a folder of none": (lambda e: e["audio"].update(folder="encoders/audio"), "get all of the export"),
    "base": (lambda e: e["audio"].update(base={"id": "x"}), "base must be a record with id, sha256 and tune"),
    "licence": (lambda e: e["audio"].update(licence=["mit"]), "encoders.audio.licence cannot be"),
    "recording": (lambda e: e["audio"].update(recording=[1]), "encoders.audio.recording is not a mapping"),
    "pictures as sound": (
        lambda e: e["audio"].update(recording=e["video"]["recording"]),
        "is of frames, not",
    ),
    "huge pictures": (
        lambda e: e["video"]["recording"].update(shape=[1 << 20, 1 << 20, 3]),
        "encoders.video: shape is",
    ),
    "larger pictures": (
        lambda e: e["video"]["recording"].update(shape=[64, 64, 3]),
        "takes pictures of 32 x 32",
    ),
    "rate": (lambda e: e["audio"]["recording"].update(rate=8000.0), "takes sound at 16000 Hz"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_records_are_refused(folder: Path, name: str, tmp_path: Path) -> None:
    change, told = FORGED[name]
    rewrite(folder, lambda card: change(card["encoders"]))
    found = refusal(lambda: load_model(folder))
    assert told in found
    assert len(found) < 600
    if found.startswith(str(folder / CARD_FILE)):  # what the card alone tells is found by all that read it
        refusal(lambda: export(folder, tmp_path / "out"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("records", [[], "audio", 3, {"audio": None}])
def test_what_are_no_records_is_refused(folder: Path, records: Any) -> None:
    rewrite(folder, lambda card: card.update(encoders=records))
    assert "encoders" in refusal(lambda: load_model(folder))


def test_an_encoder_of_no_modality_of_the_model_is_refused(folder: Path) -> None:
    rewrite(folder, lambda card: card["feature_dims"].pop("video"))
    assert "encoders has video, which feature_dims lacks" in refusal(lambda: load_model(folder))


SIZES: dict[str, Record] = {
    "layers": {"num_hidden_layers": 10**9},
    "width": {"hidden_size": 1 << 20, "intermediate_size": 1 << 20},
    "beyond counting": {"hidden_size": 1 << 40, "intermediate_size": 1 << 40},
    "no number": {"hidden_size": "many"},
}


@pytest.mark.parametrize("name", SIZES)
def test_a_base_model_of_absurd_size_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """Weights that a file lacks would be made at random, and take the memory."""
    from shards.extraction.encoders.hf import locate

    base = AUDIO["wav2vec2"](tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | SIZES[name]))
    sha256 = locate(str(base), None, "audio").origin["sha256"]
    rewrite(folder, lambda card: card["encoders"]["audio"]["settings"].update(sha256=sha256))
    told = refusal(lambda: load_model(folder, {"audio": base}))
    assert "config.json" in told
