"""Model cards: what is known stands there, what is not is said, and nobody's folders are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from support import CLASSES, THREE_DIMS, small_model

from awtpn.metrics.classification import summarize
from awtpn.metrics.confidence_intervals import bootstrap_confusion
from awtpn.model.sharing.model_card import render_card

CONFUSION = np.array([[30, 5, 1], [4, 20, 6], [0, 9, 25]])


def card(**more: Any) -> dict[str, Any]:
    return small_model().card() | more


def sections(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_results_stand_in_front_matter_and_text() -> None:
    figures = summarize(CONFUSION, CLASSES)
    front, body = sections(
        render_card(card(dataset="meld", results={"val": {}, "test": figures}, licence="mit"), "my-model")
    )
    assert front["library_name"] == "awtpn"
    assert front["license"] == "mit"
    assert front["datasets"] == ["meld"]
    (entry,) = front["model-index"]
    assert entry["name"] == "my-model"
    (result,) = entry["results"]
    assert result["dataset"]["split"] == "test"
    assert {m["name"]: m["value"] for m in result["metrics"]} == {
        name: round(figures[name], 4) for name in ("w-ACC", "w-F1", "UA", "macro-F1")
    }
    interval = bootstrap_confusion(CONFUSION)["w-F1"]
    span = f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
    assert f"| w-F1 | {100 * figures['w-F1']:.2f} | {span} | 70.42 |" in body
    assert "On 100 test utterances of meld" in body
    for word in ("## Intended use", "## Limits", "AI Act", "reliability weights", "calm, happy, sad"):
        assert word in body


def test_validation_figures_are_called_that() -> None:
    front, body = sections(render_card(card(results={"val": summarize(CONFUSION, CLASSES)})))
    assert "the figures are optimistic" in body
    assert front["model-index"][0]["results"][0]["dataset"]["split"] == "val"


def test_what_is_not_known_is_said() -> None:
    front, body = sections(render_card(card()))
    assert "it has not been evaluated" in body
    assert "How its features were made is not recorded" in body
    assert "license" not in front
    assert "model-index" not in front


def test_the_demo_is_no_dataset_of_the_hub() -> None:
    results = {"test": summarize(CONFUSION, CLASSES)}
    made_up = card(dataset="the built-in demo", provenance={"format": "demo"}, results=results)
    front, body = sections(render_card(made_up))
    assert "datasets" not in front
    assert "Trained on the built-in demo." in body


@pytest.mark.parametrize(
    ("modalities", "task", "told"),
    [
        (["audio"], "audio-classification", "for emotion recognition: features of audio (6 features per"),
        (["audio", "video"], "audio-classification", "audio (6 features per step) and video (5 features"),
        (["text", "pose"], "text-classification", "for multimodal emotion recognition: features of text (4"),
        (["audio", "video", "text"], "audio-classification", "video (5 features per step) and text (4 f"),
        (["pose"], "other", "for emotion recognition: features of pose (3 features per step), one shared"),
    ],
)
def test_modalities_are_told(modalities: list[str], task: str, told: str) -> None:
    dims = {name: (THREE_DIMS | {"pose": 3})[name] for name in modalities}
    results = {"test": summarize(CONFUSION, CLASSES)}
    front, body = sections(render_card(small_model(dims=dims).card() | {"results": results}))
    kind = ["multimodal"] if len(modalities) > 1 else []
    assert front["tags"] == ["emotion-recognition", *kind, *modalities, "prototypes", "safetensors"]
    assert front["model-index"][0]["results"][0]["task"]["type"] == task
    assert told in body
    for name in modalities:
        assert f"# {name}: [steps, {dims[name]}] float" in body


def test_nobodys_folders_are_told() -> None:
    provenance = {
        "source": "/home/someone/secret/f.npz",
        "command": "awtpn pack /home/someone",
        "encoder": "e",
    }
    body = render_card(card(provenance=provenance))
    assert "someone" not in body
    assert "f.npz" not in body
    assert '"encoder": "e"' in body
