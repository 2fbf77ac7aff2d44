"""Model cards: what is known stands there, what is not is said, and nobody's folders are told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from support import CLASSES, THREE_DIMS, small_model

from awtpn.metrics.bootstrap_values import bootstrap_labels, bootstrap_values
from awtpn.metrics.classification import summarize
from awtpn.metrics.confidence_intervals import bootstrap_confusion
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.model.sharing.card_results import Measured
from awtpn.model.sharing.model_card import render_card
from awtpn.model.task import Task

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


# --- Values and labels ---------------------------------------------------------------------------

VALENCE = Task("regression", ["valence", "dominance"], [[-3, 3], [1, 5]], levels=5)
SENTIMENT = Task("regression", ["sentiment"], [[-3, 3]], levels=7, head="linear")
LABELS = Task("multilabel", ["loud", "bright"])
RNG = np.random.default_rng(0)


def values_of(task: Task) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Truth, predictions and figures."""
    truth = RNG.uniform(1, 3, (40, len(task.names)))
    predicted = truth + RNG.normal(0, 0.5, truth.shape)
    return truth, predicted, summarize_values(truth, predicted, task.names, task.ranges)


def test_a_card_of_values() -> None:
    truth, predicted, figures = values_of(VALENCE)
    _, _, validated = values_of(VALENCE)
    measured = Measured(bootstrap_values(truth, [predicted], VALENCE.ranges), {"valence": 0.875})
    made = small_model(task=VALENCE).card() | {
        "dataset": "talks",
        "results": {"val": validated, "test": figures, "checkpoint": {"step": 1}},
    }
    front, body = sections(render_card(made, "m", measured))
    assert front["tags"] == [
        *("emotion-recognition", "multimodal", "audio", "video", "regression", "prototypes", "safetensors")
    ]
    assert front["metrics"] == ["mae", "pearsonr"]
    [result] = front["model-index"][0]["results"]
    assert result["task"] == {"type": "other", "name": "multimodal estimation of emotional values"}
    assert [(m["type"], m["name"], m["value"]) for m in result["metrics"]] == [
        ("mae", "MAE", round(figures["MAE"], 4)),
        ("pearsonr", "Corr", round(figures["Corr"], 4)),
    ]
    interval = measured.intervals["MAE"]
    assert f"| MAE | {figures['MAE']:.4f} | {interval.low:.4f} to {interval.high:.4f} |" in body
    row, half = figures["per_dimension"]["valence"], validated["per_dimension"]["valence"]["interval"]
    cells = " | ".join(f"{row[key]:.4f}" for key in ("MAE", "Corr", "CCC"))
    assert f"| valence | -3 to 3 | {cells} | +-{half:.4f} | 87.5 % | 40 |" in body
    assert "| not measured | 40 |" in body, "of dominance"
    assert "95 % intervals: percentile bootstrap over 40 utterances, 2,000 resamples, seeded" in body
    for told in (
        "It predicts 2 values of an utterance, by the mean of 5 levels: valence (-3 to 3), dominance (1 to",
        "One model has one task",
        "1 prototype per level of a value",
        "answer.values, answer.intervals, answer.weights",
        "On 40 test utterances of talks. MAE: mean absolute error",
        "Means over dimensions",
        "or slightly less",
    ):
        assert told in body
    assert "Acc" not in body
    assert "known classes" not in body


def test_a_card_of_one_sentiment_without_intervals() -> None:
    _, _, figures = values_of(SENTIMENT)
    front, body = sections(render_card(small_model(task=SENTIMENT).card() | {"results": {"val": figures}}))
    names = [m["name"] for m in front["model-index"][0]["results"][0]["metrics"]]
    assert names == ["MAE", "Corr", "Acc-2", "F1-2", "Acc-2-has0", "F1-2-has0", "Acc-3", "Acc-5", "Acc-7"]
    assert f"| Acc-7 | {100 * figures['Acc-7']:.2f} |\n" in body
    assert "They have no intervals, which need the predictions" in body
    assert "the figures are optimistic" in body
    assert "It predicts 1 value of an utterance, by a linear layer: sentiment (-3 to 3)." in body


def test_a_card_of_labels() -> None:
    truth, probability = RNG.integers(0, 2, (40, 2)).astype(float), RNG.uniform(0, 1, (40, 2))
    figures = summarize_labels(truth, probability, LABELS.names)
    measured = Measured(bootstrap_labels(truth, [probability]), {})
    made = small_model(task=LABELS).card() | {"results": {"test": figures}}
    front, body = sections(render_card(made, "m", measured))
    assert "multi-label-classification" in front["tags"]
    assert front["metrics"] == ["accuracy", "f1", "recall"]
    [result] = front["model-index"][0]["results"]
    assert result["task"]["type"] == "audio-classification"
    assert {m["name"]: m["type"] for m in result["metrics"]} == {
        "F1": "f1",
        "w-F1": "f1",
        "UA": "recall",
        "subset accuracy": "accuracy",
    }
    interval = measured.intervals["WA"]
    span = f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
    assert f"| WA | {100 * figures['WA']:.2f} | {span} |" in body
    row = figures["per_label"]["loud"]
    cells = " | ".join(f"{100 * row[key]:.2f}" for key in ("WA", "F1", "precision", "recall", "AP"))
    assert f"| loud | {cells} | {row['positives']} | 40 |" in body
    for told in (
        "which of 2 labels an utterance has, or none: loud, bright. One model has one task",
        "known labels",
    ):
        assert told in body


def test_figures_that_are_not_defined_are_called_that() -> None:
    """Constant predictions have no correlation; a label that all have has no figures."""
    truth = np.arange(6.0).reshape(3, 2)
    figures = summarize_values(truth, np.ones((3, 2)), VALENCE.names, VALENCE.ranges)
    front, body = sections(render_card(small_model(task=VALENCE).card() | {"results": {"test": figures}}))
    assert [m["name"] for m in front["model-index"][0]["results"][0]["metrics"]] == ["MAE"]
    assert "| Corr | undefined |" in body
    assert "| undefined | undefined | not known | not measured | 3 |" in body
    figures = summarize_labels(np.ones((3, 2)), np.ones((3, 2)), LABELS.names)
    _, body = sections(render_card(small_model(task=LABELS).card() | {"results": {"test": figures}}))
    assert "| mAP | undefined |" in body
    assert "| loud | undefined |" in body


def test_results_of_another_task_are_no_results() -> None:
    for task, results in ((VALENCE, summarize(CONFUSION, CLASSES)), (None, values_of(SENTIMENT)[2])):
        _, body = sections(render_card(small_model(task=task).card() | {"results": {"test": results}}))
        assert "it has not been evaluated" in body


def test_classes_of_a_column() -> None:
    task = Task("classification", ["anna", "ben", "eve"], column="speaker")
    results = {"test": summarize(CONFUSION, task.names)}
    front, body = sections(render_card(small_model(task=task).card() | {"results": results}))
    assert "It tells apart 3 classes of speaker: anna, ben, eve. One model has one task" in body
    assert "1 prototype per class" in body
    assert front["model-index"][0]["results"][0]["metrics"][0]["name"] == "w-ACC"


def test_names_of_dimensions_are_no_markup() -> None:
    hostile = "x|y\n# <script>\x1b"
    task = Task("regression", [hostile], [[0, 1]], levels=3)
    figures = summarize_values(np.array([[0.2], [0.4]]), np.array([[0.3], [0.3]]), [hostile], task.ranges)
    text = render_card(small_model(task=task).card() | {"results": {"test": figures}})
    assert "<script>" not in text
    assert "\n# x" not in text
    assert "\x1b" not in text
