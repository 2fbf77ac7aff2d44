"""The model card, README.md beside shared weights: description, use, results, training data, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sized
from typing import Any

from awtpn.model.baselines import NETWORKS
from awtpn.model.sharing.card_results import (
    USUAL_METRICS,
    Measured,
    hub_figures,
    reported,
    results,
)
from awtpn.model.sharing.hub import HUB_ID
from awtpn.model.sharing.privacy import public_card
from awtpn.model.task import Task, task_of_card
from shards.format.recording import WAVEFORM
from shards.safe_io.markdown import Markdown, block, code, inline, table
from shards.safe_io.printable import listed, printable

LIBRARY = "awtpn"
# Formats of features that no recording was read for.
MADE_UP = ("demo", "synthetic")
# Modalities that the hub has a task of classification for.
HUB_TASKS = ("audio", "text", "video")
TASK_NAMES = {
    "classification": "emotion recognition",
    "multilabel": "recognition of several emotions at once",
    "regression": "estimation of emotional values",
}
TASK_TAGS = {"classification": [], "multilabel": ["multi-label-classification"], "regression": ["regression"]}


def render_card(card: Mapping[str, Any], name: str | None = None, measured: Measured | None = None) -> str:
    """README.md of a model: YAML front matter for the hub, and text for readers.

    Args:
        card: of `EmotionModel.card`, with `dataset`, `results`, `licence` and `graph` if known; only its
            public part is used.
        name: of the model; default: that of its network.
        measured: of the reported results; without it values and labels have no confidence intervals.
    """
    card = public_card(card)
    task, network = task_of_card(card), network_of(card)
    name = name or ("AWTPN" if network == "awtpn" else network)
    use = f"{INTENDED_USE} {CHECK_WEIGHTS}" if network == "awtpn" else INTENDED_USE
    sections = [
        front_matter(card, name, task),
        f"# {inline(name)}\n\n{summary(card, task)}",
        f"## Use\n\n{usage(card, task)}",
        f"## Results\n\n{results(card, measured)}",
        f"## Training data\n\n{data(card)}",
        *([f"## Base models\n\n{base_models(card)}"] if card.get("encoders") else []),
        f"## Intended use\n\n{use}",
        f"## Limits\n\n{LIMITS.format(of_task=LIMIT_OF_TASK[task.type])}",
        f"## Files\n\n{files(card, task)}",
    ]
    return "\n\n".join(sections) + "\n"


def front_matter(card: Mapping[str, Any], name: str, task: Task) -> str:
    """The YAML block between --- lines, made by huggingface_hub."""
    from huggingface_hub import EvalResult, ModelCardData

    role, figures = reported(card)
    synthetic = (card.get("provenance") or {}).get("format") in MADE_UP
    dataset = printable(card.get("dataset") or "unnamed")
    names = list(card["feature_dims"])
    kind = _kind(names)
    # The hub has no task of values but of tables.
    of_hub = None if task.type == "regression" else next((name for name in names if name in HUB_TASKS), None)
    evaluations = [
        EvalResult(
            task_type=f"{of_hub}-classification" if of_hub else "other",
            task_name=f"{kind}{TASK_NAMES[task.type]}",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=role,
            metric_type=metric,
            metric_name=figure,
            metric_value=value,
        )
        for metric, figure, value in hub_figures(figures)
    ]
    front = ModelCardData(
        library_name=LIBRARY,
        tags=[
            "emotion-recognition",
            *kind.split(),
            *names,
            *TASK_TAGS[task.type],
            "prototypes" if network_of(card) == "awtpn" else network_of(card),
            "safetensors",
        ],
        license=card.get("licence"),
        base_model=models_of_hub(card) or None,
        datasets=None if synthetic else [dataset],  # the hub links to a dataset of this name
        metrics=USUAL_METRICS[task.type],
        model_name=printable(name),
        eval_results=evaluations or None,
    )
    return f"---\n{front.to_yaml()}\n---"


# --- Sections ------------------------------------------------------------------------------------


def network_of(card: Mapping[str, Any]) -> str:
    """The `model.name` of a card."""
    return str(card["model"].get("name", "awtpn"))


def summary(card: Mapping[str, Any], task: Task) -> str:
    model, dims = card["model"], card["feature_dims"]
    within = card.get("encoders") or {}
    streams = listed(
        [
            f"{inline(name)} ({dim} features per step{', by an encoder of the model' * (name in within)})"
            for name, dim in dims.items()
        ]
    )
    if (network := network_of(card)) != "awtpn":
        return (
            f"A {network} model for {_kind(dims)}emotion recognition: {NETWORKS[network].about}, of features "
            f"of {streams}, {model['shared_dim']} wide. It is a baseline for AWTPN: it was trained by the "
            f"cross-entropy alone, and has no prototypes and no reliability weights.\n\n{recognized(task)}"
        )
    weights = "reliability weights by attention" if model["awm"] == "adaptive" else "plain averages over time"
    prototyped = PROTOTYPES_OF[task.type] if task.column is None else "class"
    return (
        f"An Adaptive Weighted Temporal Prototype Network for {_kind(dims)}emotion recognition: features of "
        f"{streams}, one shared space of {model['shared_dim']} dimensions, "
        f"{_count(model['prototypes_per_class'], 'prototype')} per {prototyped}, {weights}.\n\n"
        f"{recognized(task)}"
    )


def recognized(task: Task) -> str:
    """What the model recognizes, in one or two sentences."""
    names = ", ".join(map(inline, task.names))
    if task.is_classes:
        return f"It tells apart {len(task.names)} emotions: {names}."
    if task.type == "classification":
        told = f"It tells apart {len(task.names)} classes of {inline(task.column)}: {names}."
    elif task.type == "multilabel":
        told = (
            f"It recognizes which of {_count(len(task.names), 'label')} an utterance has, or none: {names}."
        )
    else:
        bounds = zip(task.names, task.ranges or (), strict=True)
        spans = ", ".join(f"{inline(name)} ({low:g} to {high:g})" for name, (low, high) in bounds)
        how = f"the mean of {task.levels} levels" if task.head == "levels" else "a linear layer"
        told = f"It predicts {_count(len(task.names), 'value')} of an utterance, by {how}: {spans}."
    return f"{told} One model has one task: for anything else, train another model."


def usage(card: Mapping[str, Any], task: Task) -> str:
    arrays = ", ".join(f'"{name}": {name}' for name in card["feature_dims"])
    within = card.get("encoders") or {}
    forms = {name: f"[steps, {dim}] float, any number of steps" for name, dim in card["feature_dims"].items()}
    forms |= {name: recorded_form(record["recording"]) for name, record in within.items()}
    shapes = "\n".join(f"# {name}: {form}; None where it is missing" for name, form in forms.items())
    clips = "" if not within else 'answer = predictor.predict_recordings(["clip.mp4"])[0]  # or of a file\n'
    return (
        "```python\nfrom awtpn import Predictor\n\n"
        'predictor = Predictor.from_pretrained("USER/MODEL")  # or the folder that holds this file\n'
        f"{shapes}\n"
        f"answer = predictor.predict([{{{arrays}}}])[0]\n{clips}"
        f"{ANSWERS[task.type]}{', answer.weights' if network_of(card) == 'awtpn' else ''}\n```\n\n"
        f"{WHAT_TO_GIVE if within.keys() < card['feature_dims'].keys() else RECORDINGS_TO_GIVE}"
    )


def recorded_form(recording: Mapping[str, Any]) -> str:
    """The array that an encoder within the model takes."""
    rate, shape = recording["rate"], recording["shape"]
    if recording["kind"] == WAVEFORM:
        return f"int16 [samples], sound at {rate:g} Hz"
    return f"uint8 [pictures, {shape[0]}, {shape[1]}, 3], {rate:g} RGB pictures per second"


def base_models(card: Mapping[str, Any]) -> str:
    """What the encoders within the model were made from, how they were tuned, and their licenses."""
    rows, merged = [], False
    for name, record in card["encoders"].items():
        base = record.get("base") or {**record["settings"], "tune": record["config"]["tune"]}
        merged = merged or "base" in record
        where = f"{inline(base['id'])}"
        if base.get("revision"):
            where += f", revision {code(base['revision'])}"
        else:
            where += ", a model in a folder"
        licence = record.get("licence") or ("see its page" if base.get("revision") else "not known")
        layer = record["settings"]["layer"]
        rows.append((name, Markdown(where), tuned(base["tune"], record["config"]), layer, licence))
    listing = table(("of", "base model", "tuned", "layer", "its license"), rows)
    held = "`model.safetensors` holds only what was trained of them; the base models are needed, too."
    if merged:
        held = "The folder `encoders` holds them with the trained weights."
    return (
        f"The model has encoders, which make features of recordings.\n\n{listing}\n\n{held} The licenses of "
        "the base models apply to what was made from them."
    )


def tuned(tune: str, config: Mapping[str, Any]) -> str:
    """How an encoder was trained, in words."""
    if tune == "lora":
        return f"LoRA, rank {config['lora_rank']}"
    if tune in ("frozen", "full"):
        return "not at all" if tune == "frozen" else "all weights"
    number = tune.split("-")[1] if tune.count("-") == 2 else tune
    return "the last layer" if number == "1" else f"the last {number} layers"


def models_of_hub(card: Mapping[str, Any]) -> list[str]:
    """The hub ids of the base models."""
    bases = [record.get("base") or record["settings"] for record in (card.get("encoders") or {}).values()]
    return [printable(base["id"]) for base in bases if base.get("revision") and HUB_ID.fullmatch(base["id"])]


def data(card: Mapping[str, Any]) -> str:
    """The training data, and how the dataset's manifest says its features were made."""
    trained = f"Trained on {inline(card.get('dataset') or 'data whose name is not recorded')}."
    provenance = card.get("provenance")
    encoded = (card.get("encoders") or {}).keys() == card["feature_dims"].keys()
    what = "recordings" if encoded else "features"
    if not provenance:
        return f"{trained} How its {what} were made is not recorded."
    listing = block(json.dumps(provenance, indent=1), "json")
    return f"{trained} How its {what} were made, from the dataset's manifest:\n\n{listing}"


def files(card: Mapping[str, Any], task: Task) -> str:
    names = "class names in label order" if task.type == "classification" else "task"
    weights = "weights, prototypes," if network_of(card) == "awtpn" else "weights"
    lines = [
        f"- `model.safetensors`: {weights} and the feature statistics (`standardise.*`)",
        f"- `config.json`: shape of the network, {names}, provenance, results",
        "- `checksums.json`: size and SHA-256 of the others, checked on loading",
    ]
    lines += [
        f"- {code(record['folder'])}: the encoder of {inline(name)}, which transformers loads, too"
        for name, record in (card.get("encoders") or {}).items()
        if "folder" in record
    ]
    lines += [f"- {code(name)}: {inline(what)}" for name, what in (card.get("graph") or {}).items()]
    return "\n".join(lines)


PROTOTYPES_OF = {
    "classification": "emotion",
    "multilabel": "state of a label (present, absent)",
    "regression": "level of a value",
}
ANSWERS = {
    "classification": "answer.label, answer.probabilities",
    "multilabel": "answer.labels, answer.probabilities",
    "regression": "answer.values, answer.intervals",
}
LIMIT_OF_TASK = {
    "classification": "Probabilities cover only the known classes; any other emotion is assigned to one of "
    "them.",
    "multilabel": "Probabilities cover only the known labels; of any other emotion the answer tells nothing.",
    "regression": """Prediction intervals are made of the validation utterances and are as wide for every
  utterance. They hold 90 % of the true values of such utterances, or slightly less; of others it is not
  known how many.""",
}
WHAT_TO_GIVE = """Give the kind of features that the model was trained on, not standardized: the model \
standardizes them with the statistics of its training utterances."""
RECORDINGS_TO_GIVE = (
    """Give recordings as they are, neither standardized nor padded: the model prepares them."""
)
INTENDED_USE = "Research on emotion recognition, and comparison with other methods on the same data."
CHECK_WEIGHTS = """The
reliability weights show which time steps a prediction is based on; check them before you trust it."""

LIMITS = """- The model predicts what annotators or actors of the training data would answer. It
  cannot know what a person feels, and people, cultures and situations differ in how they express emotions.
- Results measured on acted or scripted speech, a few speakers, one language or one kind of recording do not
  transfer to others. Evaluate on your own data first, and per group of speakers.
- {of_task}
- Features of another encoder, or of the same encoder with other settings, give confident predictions without
  any meaning.
- Not for decisions about people: hiring, policing, schooling, medical or credit decisions. Inferring emotions
  at work and in education is prohibited in the European Union (AI Act, Article 5)."""


def _kind(modalities: Sized) -> str:
    return "multimodal " if len(modalities) > 1 else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
