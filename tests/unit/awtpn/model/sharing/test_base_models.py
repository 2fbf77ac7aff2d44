"""What a model card says of the encoders within a model, and what of them is public."""

from __future__ import annotations

import json
from typing import Any

import yaml
from support import THREE_DIMS, small_model

from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.sharing.model_card import render_card
from awtpn.model.sharing.privacy import public_card

MARK = "private"
HASH = "0123456789abcdef" * 4
SOUND = {"kind": "waveform", "rate": 16000.0, "shape": [1600], "jpeg_quality": None}
PICTURES = {"kind": "frames", "rate": 10.0, "shape": [224, 224, 3], "jpeg_quality": 90}


def record(
    model: str, tune: str, recording: dict[str, Any], settings: dict[str, Any], **more: Any
) -> dict[str, Any]:
    known = {"sha256": HASH, "model_type": "wav2vec2", "layer": 9, "step_seconds": 0.1}
    config = EncoderSettings(model, tune=tune).record()
    return {"config": config, "settings": known | settings, "recording": recording, **more}


def card_of(records: dict[str, Any]) -> dict[str, Any]:
    dims = {name: THREE_DIMS[name] for name in ("audio", "video", "text")}
    return small_model(dims=dims).card() | {"encoders": records, "dataset": "talks"}


HUB = record(
    "facebook/wav2vec2-base",
    "lora",
    SOUND,
    {"id": "facebook/wav2vec2-base", "revision": "f" * 40},
    licence="apache-2.0",
)
FOLDER = record(
    f"/home/{MARK}/vit", "last-2-layers", PICTURES, {"id": "vit", "path": f"/home/{MARK}/vit", "note": MARK}
)


def test_base_models_are_told_with_their_licenses() -> None:
    text = render_card(card_of({"audio": HUB, "video": FOLDER}), "mine")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == ["facebook/wav2vec2-base"]
    assert "license" not in yaml.safe_load(front), "that of these weights is for their maker to say"
    for told in (
        "audio (6 features per step, by an encoder of the model)",
        "text (4 features per step)",
        "# audio: int16 [samples], sound at 16000 Hz; None where it is missing",
        "# video: uint8 [pictures, 224, 224, 3], 10 RGB pictures per second; None where it is missing",
        "# text: [steps, 4] float, any number of steps; None where it is missing",
        f"| audio | facebook/wav2vec2-base, revision `{'f' * 40}` | LoRA, rank 8 | 9 | apache-2.0 |",
        "| video | vit, a model in a folder | the last 2 layers | 9 | not known |",
        "`model.safetensors` holds only what was trained of them; the base models are needed, too.",
        "The licenses of the base models apply to what was made from them.",
        "Give the kind of features that the model was trained on",
    ):
        assert told in body
    unknown = {name: value for name, value in HUB.items() if name != "licence"}
    assert "| 9 | see its page |" in render_card(card_of({"audio": unknown}))


def test_of_a_whole_export_the_base_models_are_told() -> None:
    base = {"id": "facebook/wav2vec2-base", "revision": "f" * 40, "sha256": HASH, "tune": "full"}
    whole = record(
        "encoders/audio",
        "frozen",
        SOUND,
        {"id": "audio"},
        folder="encoders/audio",
        base=base | {"path": f"/home/{MARK}"},
        licence="mit",
    )
    text = render_card(card_of({"audio": whole}))
    assert f"| audio | facebook/wav2vec2-base, revision `{'f' * 40}` | all weights | 9 | mit |" in text
    assert "The folder `encoders` holds them with the trained weights." in text
    assert "- `encoders/audio`: the encoder of audio, which transformers loads, too" in text
    shown = public_card(card_of({"audio": whole}))["encoders"]["audio"]
    assert shown["base"] == base
    assert shown["folder"] == shown["config"]["model"] == "encoders/audio"


def test_folders_of_base_models_are_not_told() -> None:
    card = card_of({"audio": HUB, "video": FOLDER})
    shown = public_card(card)
    assert MARK not in json.dumps(shown)
    assert shown["encoders"]["audio"] == HUB
    assert shown["encoders"]["video"]["config"] == FOLDER["config"] | {"model": "vit"}
    assert shown["encoders"]["video"]["recording"] == PICTURES
    assert public_card(shown) == shown


def test_a_license_is_no_markup() -> None:
    text = render_card(card_of({"audio": HUB | {"licence": "x|y\n# <script>\x1b"}}))
    assert "<script>" not in text
    assert "\n# <" not in text
    assert "\x1b" not in text
