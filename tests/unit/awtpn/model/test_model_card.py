"""Model cards: what is known stands there, what is not is said, and nobody's folders are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml
from support import CLASSES, small_model

from awtpn.metrics.classification import summarize
from awtpn.metrics.confidence_intervals import bootstrap_confusion
from awtpn.model.model_card import render_card

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
