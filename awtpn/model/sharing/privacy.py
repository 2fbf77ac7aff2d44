"""Filter a model's card for publication: keep how the model and its features were made; drop private data.

A run's own card keeps the whole record of its data, with command lines and paths. Whatever leaves the machine
(`awtpn export`, `save_pretrained`, `push_to_hub`) passes through `public_card`, which keeps only the fields
listed here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from awtpn.model.encoders.settings import EncoderSettings
from shards.format.recording import Recording
from shards.format.targets import TARGET_TYPES

# Public fields of a card. `public_card` also filters the content of task, dataset, provenance and results.
CARD = (
    "format",
    "format_version",
    "model",
    "feature_dims",
    "classes",
    "task",
    "learnable_prototypes",
    "files",  # their sizes and hashes
    "graph",
    "licence",
    "dataset",
    "provenance",
    "results",
    "encoders",
)
# Public fields of a task. Its names are public like those of classes: they are what the model answers.
TASK = ("type", "names", "ranges", "levels", "head", "column")
# Public fields of a manifest's provenance. Others, such as source, command, pattern and warning, are dropped.
PROVENANCE = {
    *(
        "format",
        "corpus",
        "encoder",
        "revision",
        "model",
        "layer",
        "settings",
        "features",
        "version",
        "versions",
    ),
    *("date", "extracted", "packed", "indexed", "license", "files", "folds", "crop", "limit"),
    *("label_map", "label_set", "labels", "splits", "left_out", "repaired_steps", "transcripts"),
}
# Public text fields of an encoder's settings. Numbers are always public: they identify nobody.
SETTINGS = {
    *("id", "corpus", "version", "revision", "sha256", "model_type", "dtype", "summary", "mel", "window"),
    *("statistics", "faces", "detector", "opencv", "emotions", "step", "hash"),
}
# Public fields of the encoders within a model, see `awtpn.model.encoders.card`.
ENCODER_SETTINGS = {
    *("id", "revision", "sha256", "model_type", "layer", "summary", "rate", "fps", "step_seconds", "side"),
    "window_seconds",
}
ENCODER_CONFIG = {field.name for field in fields(EncoderSettings)}
RECORDING = {field.name for field in fields(Recording)}
BASE = {"id", "revision", "sha256", "tune"}
# Public text fields of results: class names, and the hash of the weights that were evaluated.
RESULT_TEXTS = {"labels", "sha256"}

# The beginning of a path ("C:\\x" and "me@host:/x" too) or URL. Paths and URLs may identify users and stores.
PATH_START = re.compile(r"[/~]|\\\\|\.{1,2}[/\\]|[\w+.@-]+:[/\\~]")
PATH_WITHIN = re.compile(rf"(?<![\w./\\])(?:{PATH_START.pattern})[^\s'\",;]*")


def public_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """The public part of a model's card."""
    shown = {name: value for name, value in card.items() if name in CARD}
    filters: dict[str, Callable[[Any], Any]] = {
        "task": public_task,
        "dataset": basename,
        "provenance": public_provenance,
        "results": public_results,
        "encoders": public_encoders,
    }
    return shown | {name: filters[name](shown[name]) for name in filters if shown.get(name)}


def public_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The public part of a manifest's `provenance`; paths in it are reduced to their last part."""
    shown = {name: value for name, value in provenance.items() if name in PROVENANCE}
    for name, filtered in (("features", _features), ("settings", _settings)):
        if name in shown:
            shown[name] = filtered(shown[name])
    return {name: strip_paths(value) for name, value in shown.items()}


def public_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task, and no others."""
    return {name: value for name, value in task.items() if name in TASK}


def public_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers with the names they stand under, the texts under RESULT_TEXTS, and each split's task."""
    shown = _drop_texts(results, RESULT_TEXTS)
    for role, figures in shown.items():
        # Of any other text under this key nobody knows what it tells.
        if isinstance(figures, Mapping) and (task := results[role].get("task")) in TARGET_TYPES:
            shown[role] = {"task": task, **figures}
    return shown


def public_encoders(records: Mapping[str, Any]) -> dict[str, Any]:
    """Of each encoder what `awtpn.model.encoders.card` lists; of a base model in a folder only its name."""
    found = {}
    for modality, record in records.items():
        settings = {name: value for name, value in record["settings"].items() if name in ENCODER_SETTINGS}
        config = {name: value for name, value in record["config"].items() if name in ENCODER_CONFIG}
        if "folder" not in record:
            config["model"] = settings["id"]
        base = record.get("base")
        found[modality] = {
            "config": config,
            "settings": settings,
            "recording": {n: value for n, value in record["recording"].items() if n in RECORDING},
            **{name: record[name] for name in ("licence", "folder") if name in record},
            **({} if base is None else {"base": {n: v for n, v in base.items() if n in BASE}}),
        }
    return found


def strip_paths(value: Any) -> Any:
    """`value` with `basename` applied to every text within."""
    if isinstance(value, Mapping):
        return {basename(str(key)): strip_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [strip_paths(each) for each in value]
    return basename(value) if isinstance(value, str) else value


def basename(text: str) -> str:
    """Replace each path and URL in a text by its last part: "s3://bucket/x" -> "x".

    A hub id, "facebook/hubert", stays.
    """
    if PATH_START.match(text) or (text.count("/") > 1 and not re.search(r"\s", text)):
        return _last_part(text)
    return PATH_WITHIN.sub(lambda found: _last_part(found[0]), text)


def _last_part(path: str) -> str:
    # Drop a URL's query, which may hold a signature.
    path = path.partition("?")[0] if "://" in path else path
    windows = re.match(r"[A-Za-z]:\\|\\\\", path) or "/" not in path
    return (PureWindowsPath if windows else PurePosixPath)(path).name


def _features(features: Any) -> Any:
    """Per modality the feature space and the encoder's public settings; see `extraction_provenance`."""
    if not isinstance(features, Mapping):
        return features
    return {
        name: {"space": str(entry.get("space")), "settings": _settings(entry.get("settings"))}
        for name, entry in features.items()
        if isinstance(entry, Mapping)
    }


def _settings(settings: Any) -> Any:
    if not isinstance(settings, Mapping):
        return settings
    shown = _drop_texts(settings, SETTINGS)
    return shown | ({"versions": settings["versions"]} if "versions" in settings else {})


def _drop_texts(record: Mapping[str, Any], public: set[str]) -> dict[str, Any]:
    """A record without texts and lists of texts, except those under a key in `public`; recursive."""
    return {
        key: _drop_texts(value, public) if isinstance(value, Mapping) else value
        for key, value in record.items()
        if key in public or not _is_text(value)
    }


def _is_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_text, value))
    return isinstance(value, str)
