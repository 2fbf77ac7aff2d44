"""The model card, README.md beside shared weights: description, use, results, training data, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np

from awtpn.metrics.classification import SUMMARY, paper_metrics
from awtpn.metrics.confidence_intervals import Interval, bootstrap_confusion
from awtpn.model.sharing.privacy import public_card
from shards.safe_io.markdown import block, code, inline, table
from shards.safe_io.printable import printable

LIBRARY = "awtpn"
# Modalities that the hub has a task of classification for.
HUB_TASKS = ("audio", "text", "video")
# Our metrics -> the hub's names for them; the hub knows only a fixed list.
METRICS = {"w-ACC": "accuracy", "w-F1": "f1", "UA": "recall", "macro-F1": "f1"}


def render_card(card: Mapping[str, Any], name: str = "AWTPN") -> str:
    """README.md of a model: YAML front matter for the hub, and text for readers.

    Args:
        card: of `AWTPN.card`, with `dataset`, `results`, `licence` and `graph` if known; only its public part
            is used.
        name: of the model.
    """
    card = public_card(card)
    sections = [
        front_matter(card, name),
        f"# {inline(name)}\n\n{summary(card)}",
        f"## Use\n\n{usage(card)}",
        f"## Results\n\n{results(card)}",
        f"## Training data\n\n{data(card)}",
        f"## Intended use\n\n{INTENDED_USE}",
        f"## Limits\n\n{LIMITS}",
        f"## Files\n\n{files(card)}",
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(card: Mapping[str, Any], name: str) -> str:
    """The YAML block between --- lines, made by huggingface_hub."""
    from huggingface_hub import EvalResult, ModelCardData

    role, figures = reported(card)
    synthetic = (card.get("provenance") or {}).get("format") == "demo"
    dataset = printable(card.get("dataset") or "unnamed")
    names = list(card["feature_dims"])
    kind = _kind(names)
    task = next((f"{name}-classification" for name in names if name in HUB_TASKS), "other")
    evaluations = [
        EvalResult(
            task_type=task,
            task_name=f"{kind}emotion recognition",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=role,
            metric_type=METRICS[figure],
            metric_name=figure,
            metric_value=round(figures[figure], 4),
        )
        for figure in SUMMARY
        if figures
    ]
    front = ModelCardData(
        library_name=LIBRARY,
        tags=["emotion-recognition", *kind.split(), *names, "prototypes", "safetensors"],
        license=card.get("licence"),
        datasets=None if synthetic else [dataset],  # the hub links to a dataset of this name
        metrics=sorted(set(METRICS.values())),
        model_name=printable(name),
        eval_results=evaluations or None,
    )
    return f"---\n{front.to_yaml()}\n---"


def reported(card: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The split to report ("test", else "val"), and its metrics; (None, {}) without results."""
    found = card.get("results") or {}
    role = next((r for r in ("test", "val") if r in found), None)
    return role, found[role] if role else {}


# --- Sections ------------------------------------------------------------------------------------


def summary(card: Mapping[str, Any]) -> str:
    model, dims = card["model"], card["feature_dims"]
    streams = _enumerate([f"{inline(name)} ({dim} features per step)" for name, dim in dims.items()])
    weights = "reliability weights by attention" if model["awm"] == "adaptive" else "plain averages over time"
    classes = ", ".join(map(inline, card["classes"]))
    return (
        f"An Adaptive Weighted Temporal Prototype Network for {_kind(dims)}emotion recognition: features of "
        f"{streams}, one shared space of {model['shared_dim']} dimensions, "
        f"{_count(model['prototypes_per_class'], 'prototype')} per emotion, {weights}.\n\n"
        f"It tells apart {len(card['classes'])} emotions: {classes}."
    )


def usage(card: Mapping[str, Any]) -> str:
    arrays = ", ".join(f'"{name}": {name}' for name in card["feature_dims"])
    shapes = "\n".join(
        f"# {name}: [steps, {dim}] float, any number of steps; None where it is missing"
        for name, dim in card["feature_dims"].items()
    )
    return (
        "```python\nfrom awtpn import Predictor\n\n"
        'predictor = Predictor.from_pretrained("USER/MODEL")  # or the folder that holds this file\n'
        f"{shapes}\n"
        f"answer = predictor.predict([{{{arrays}}}])[0]\n"
        "answer.label, answer.probabilities, answer.weights\n```\n\n"
        "Give the kind of features that the model was trained on, not standardized: the model standardizes "
        "them with the statistics of its training utterances."
    )


def results(card: Mapping[str, Any]) -> str:
    role, figures = reported(card)
    if not role:
        return "This model was exported without results: it has not been evaluated."
    intervals = bootstrap_confusion(np.array(figures["confusion_matrix"], np.int64))
    paper = paper_metrics(str(card.get("dataset") or "")) or {}
    split = (
        "test"
        if role == "test"
        else "validation (which was also used to choose the checkpoint, so the figures are optimistic)"
    )
    head = ["", "this model", "95 % interval"] + ["paper"] * bool(paper)
    rows = []
    for name in SUMMARY:
        cells = [name, f"{100 * figures[name]:.2f}", _span(intervals[name])]
        if paper:
            cells.append(f"{100 * paper[name]:.2f}" if name in paper else "not given")
        rows.append(cells)
    of_class = []
    for name, of in figures["per_class"].items():
        numbers = [f"{100 * of[key]:.2f}" for key in ("precision", "recall", "f1")]
        of_class.append([name, *numbers, f"{of['support']:,}"])
    dataset = inline(card.get("dataset") or "unnamed data")
    unknown = "" if card["results"].get("checkpoint") else f" {UNKNOWN_WEIGHTS}"
    return (
        f"On {figures['utterances']:,} {split} utterances of {dataset}, per cent.{unknown} "
        "w-ACC: utterances that are right; w-F1: F1 averaged by class size; UA: mean recall. Intervals: "
        f"{intervals['w-F1'].how}, without strata; they do not cover other speakers or recordings.\n\n"
        + table(head, rows)
        + "\n\n"
        + table(["class", "precision", "recall", "F1", "utterances"], of_class)
    )


def data(card: Mapping[str, Any]) -> str:
    """The training data, and how the dataset's manifest says its features were made."""
    trained = f"Trained on {inline(card.get('dataset') or 'data whose name is not recorded')}."
    provenance = card.get("provenance")
    if not provenance:
        return f"{trained} How its features were made is not recorded."
    listing = block(json.dumps(provenance, indent=1), "json")
    return f"{trained} How its features were made, from the dataset's manifest:\n\n{listing}"


def files(card: Mapping[str, Any]) -> str:
    lines = [
        "- `model.safetensors`: weights, prototypes, and the feature statistics (`standardise.*`)",
        "- `config.json`: shape of the network, class names in label order, provenance, results",
        "- `checksums.json`: size and SHA-256 of the others, checked on loading",
    ]
    lines += [f"- {code(name)}: {inline(what)}" for name, what in (card.get("graph") or {}).items()]
    return "\n".join(lines)


UNKNOWN_WEIGHTS = "Nothing records whether they were measured with exactly these weights."
INTENDED_USE = """Research on emotion recognition, and comparison with other methods on the same data. The
reliability weights show which time steps a prediction is based on; check them before you trust it."""

LIMITS = """- The model predicts the label that annotators or actors of the training data would give. It
  cannot know what a person feels, and people, cultures and situations differ in how they express emotions.
- Results measured on acted or scripted speech, a few speakers, one language or one kind of recording do not
  transfer to others. Evaluate on your own data first, and per group of speakers.
- Probabilities cover only the known classes; any other emotion is assigned to one of them.
- Features of another encoder, or of the same encoder with other settings, give confident predictions without
  any meaning.
- Not for decisions about people: hiring, policing, schooling, medical or credit decisions. Inferring emotions
  at work and in education is prohibited in the European Union (AI Act, Article 5)."""


def _kind(modalities: Sized) -> str:
    return "multimodal " if len(modalities) > 1 else ""


def _enumerate(texts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _span(interval: Interval) -> str:
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
