"""What an export tells: how the model and its features were made, and nothing of whose machine made them.

A run's own card keeps the whole record of its data: command lines, paths, whatever a source noted. Whatever
leaves the machine (`awtpn export`, `save_pretrained`, `push_to_hub`) passes through `public_card`, which
keeps what is listed here and leaves out all else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# Of a card. The dataset's name, the provenance and the results are filtered in turn.
CARD = (
    "format",
    "format_version",
    "model",
    "feature_dims",
    "classes",
    "learnable_prototypes",
    "files",  # their sizes and hashes
    "graph",
    "licence",
    "dataset",
    "provenance",
    "results",
)
# Of a manifest's provenance. Left out are source, command, pattern, warning and whatever nobody listed.
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
    *("label_map", "label_set", "labels", "splits", "left_out", "repaired_steps"),
}
# Of an encoder's settings, those that are words; numbers are all told: they name nothing.
SETTINGS = {
    *("id", "corpus", "version", "revision", "sha256", "model_type", "dtype", "summary", "mel", "window"),
    *("statistics", "faces", "detector", "opencv", "emotions"),
}
# Of results: names of classes, and the weights that were measured.
WORDS_OF_RESULTS = {"labels", "sha256"}

# Begins a path of some machine ("C:\\x" and "me@host:/x", too), or a URL, which tells of a store.
PLACE = re.compile(r"[/~]|\\\\|\.{1,2}[/\\]|[\w+.@-]+:[/\\~]")
WITHIN = re.compile(rf"(?<![\w./\\])(?:{PLACE.pattern})[^\s'\",;]*")


def public_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's card that others may see."""
    shown = {name: value for name, value in card.items() if name in CARD}
    filters: dict[str, Callable[[Any], Any]] = {
        "dataset": last_name,
        "provenance": public_provenance,
        "results": public_results,
    }
    return shown | {name: filters[name](shown[name]) for name in filters if shown.get(name)}


def public_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """How features were made, of a manifest's `provenance`; paths in it are their last names."""
    shown = {name: value for name, value in provenance.items() if name in PROVENANCE}
    for name, filtered in (("features", _features), ("settings", _settings)):
        if name in shown:
            shown[name] = filtered(shown[name])
    return {name: without_places(value) for name, value in shown.items()}


def public_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Figures, with no words but the names of classes."""
    return _numbers(results, WORDS_OF_RESULTS)


def without_places(value: Any) -> Any:
    """`value` with the last name alone of each path and URL that stands in its texts."""
    if isinstance(value, Mapping):
        return {last_name(str(key)): without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    return last_name(value) if isinstance(value, str) else value


def last_name(text: str) -> str:
    """A text in which paths and URLs are their last names: "s3://bucket/x" -> "x".

    "facebook/hubert", a name on a hub, stays.
    """
    if PLACE.match(text) or (text.count("/") > 1 and not re.search(r"\s", text)):
        return _name(text)
    return WITHIN.sub(lambda found: _name(found[0]), text)


def _name(path: str) -> str:
    # Of a URL without its query, which may hold a signature.
    path = path.partition("?")[0] if "://" in path else path
    windows = re.match(r"[A-Za-z]:\\|\\\\", path) or "/" not in path
    return (PureWindowsPath if windows else PurePosixPath)(path).name


def _features(features: Any) -> Any:
    """Per modality the feature space and the encoder's settings; see `extraction_provenance`."""
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
    shown = _numbers(settings, SETTINGS)
    return shown | ({"versions": settings["versions"]} if "versions" in settings else {})


def _numbers(record: Mapping[str, Any], words: set[str]) -> dict[str, Any]:
    """A record without what holds texts, but for those under a key in `words`."""
    return {
        key: _numbers(value, words) if isinstance(value, Mapping) else value
        for key, value in record.items()
        if key in words or not _is_text(value)
    }


def _is_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_text, value))
    return isinstance(value, str)
