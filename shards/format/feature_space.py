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
# In a clip's metadata: its streams that never change, and are taken as missing. In the manifest: how many.
CONSTANT = "constant_streams"
PACKAGES = ("awtpn-at-scale", "numpy", "av", "torch", "transformers", "opencv-python-headless", "webdataset")
SELF_EVIDENT = ("id", "version")  # of a description
# What an encoder's settings tell of the sound or the pictures that it takes.
PACE = {"audio": "rate", "video": "fps"}


def extraction_provenance(encoders: Mapping[str, Any]) -> dict[str, Any]:
    """For the manifest: per modality its feature space and the encoder's settings; when, and with what."""
    return {
        "features": {
            name: {"space": space_of(encoder.settings), "settings": encoder.settings}
            for name, encoder in encoders.items()
        },
        "extracted": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def constant_provenance(kept: bool, counts: Mapping[str, int]) -> dict[str, Any]:
    """For the manifest: what became of streams that never change, and how many clips go without one.

    Args:
        kept: features were made of them as of others.
        counts: by modality.
    """
    return {CONSTANT: {"taken_as": "present" if kept else "missing", **dict(sorted(counts.items()))}}


def recorded_constant(provenance: Mapping[str, Any]) -> tuple[bool, dict[str, int]]:
    """What `constant_provenance` recorded. Before it was, such streams were kept."""
    found = provenance.get(CONSTANT)
    if not isinstance(found, Mapping):
        return True, {}
    counts = {str(name): count for name, count in found.items() if type(count) is int}
    return found.get("taken_as") != "missing", counts


def space_of(settings: Mapping[str, Any]) -> str:
    """The name of the feature space that an encoder of these settings makes: "logmel-3f9a02c1d4"."""
    decisive = _decisive(settings)
    name = str(settings["id"]).rpartition("/")[2]
    if "sha256" in decisive:
        # A folder may be renamed, and be a copy of what the hub has: what is in it counts.
        decisive = {key: value for key, value in decisive.items() if key not in ("id", "revision")}
        name = str(settings.get("model_type", name))
    text = json.dumps(decisive, sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def recorded_spaces(provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Per modality what `making` recorded; empty for features of which nobody knows how they were made."""
    features = provenance.get("features")
    if not isinstance(features, dict):
        return {}
    return {name: entry for name, entry in features.items() if _is_record(entry)}


def _is_record(entry: Any) -> bool:
    """Whoever made a manifest or a card may have written anything there."""
    settings = entry.get("settings") if isinstance(entry, dict) else None
    return (
        isinstance(settings, dict)
        and isinstance(entry.get("space"), str)
        and isinstance(settings.get("id"), str)
        and isinstance(settings.get("versions", {}), dict)
    )


def reopenable(provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of `recorded` that `reopen` takes: of a corpus' own features nothing but their name is known."""
    return {
        name: entry
        for name, entry in recorded_spaces(provenance).items()
        if PACE.get(name) in entry["settings"]
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
    a, b = recorded_spaces(ours), recorded_spaces(theirs)
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
    shown = {name: value for name, value in _decisive(settings).items() if name not in SELF_EVIDENT}
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
