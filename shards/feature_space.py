"""How features were made, as the manifest records it; and which features mean the same.

A feature space is what an encoder's settings decide of the values, not where or with which versions they were
computed. Its name is the encoder's with a digest of those settings: features of one name may be mixed, and a
model that was trained on one takes no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# Settings that change how features are computed, and their last digits, but not what they mean.
INCIDENTAL = frozenset({"device", "dtype", "opencv", "torch", "transformers", "av", "versions", "path"})
PACKAGES = ("awtpn-at-scale", "numpy", "av", "torch", "transformers", "opencv-python-headless", "webdataset")
SHORTEST = ("id", "version")  # in every description, so left out of its list of settings


def making(encoders: Mapping[str, Any]) -> dict[str, Any]:
    """For the manifest: per modality its feature space and the encoder's settings; when, and with what."""
    return {
        "features": {
            name: {"space": space_of(encoder.settings), "settings": encoder.settings}
            for name, encoder in encoders.items()
        },
        "extracted": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def space_of(settings: Mapping[str, Any]) -> str:
    """The name of the feature space that an encoder of these settings makes: "logmel-3f9a02c1d4"."""
    text = json.dumps(_decisive(settings), sort_keys=True)
    name = str(settings["id"]).rstrip("/").rpartition("/")[2]
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def recorded(provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Per modality what `making` recorded; empty for features of which nobody knows how they were made."""
    features = provenance.get("features")
    if not isinstance(features, dict):
        return {}
    return {
        name: entry
        for name, entry in features.items()
        if isinstance(entry, dict) and isinstance(entry.get("settings"), dict) and "space" in entry
    }


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], modalities: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """Modalities whose feature spaces differ, and descriptions of both that tell them apart.

    Args:
        ours: a provenance; where it or `theirs` tells nothing of a modality, nothing can be said of it.
        theirs: another.
        modalities: those to compare.
    """
    a, b = recorded(ours), recorded(theirs)
    return {
        name: (
            describe(a[name]["settings"], beside=b[name]["settings"]),
            describe(b[name]["settings"], beside=a[name]["settings"]),
        )
        for name in modalities
        if name in a and name in b and a[name]["space"] != b[name]["space"]
    }


def check_same_space(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], modalities: Iterable[str], complaint: str, fix: str
) -> None:
    """Refuse features that the model does not know, even where they are as wide.

    Args:
        ours: the provenance of what the model was trained on.
        theirs: that of other features.
        modalities: those to compare.
        complaint: begins the message.
        fix: ends it.

    Raises:
        ValueError: a modality's feature spaces differ; describes both.
    """
    found = differences(ours, theirs, modalities)
    if found:
        listed = "; ".join(f"{name}: {known} against {other}" for name, (known, other) in found.items())
        raise ValueError(f"{complaint}: {listed}; {fix}")


def describe(settings: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> str:
    """An encoder in words: "facebook/wav2vec2-base (layer 9, step_seconds 0.1)".

    Beside another of the same name, only those settings that differ are told.
    """
    shown = {name: value for name, value in _decisive(settings).items() if name not in SHORTEST}
    if beside is not None and beside.get("id") == settings.get("id"):
        other = _decisive(beside)
        shown = {name: v for name, v in _decisive(settings).items() if other.get(name) != v and name != "id"}
    words = ", ".join(f"{name} {_word(value)}" for name, value in shown.items())
    return f"{settings.get('id')} ({words})" if words else str(settings.get("id"))


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _decisive(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in INCIDENTAL
    }


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} {_word(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_word(each) for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
