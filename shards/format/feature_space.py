"""Which features are compatible: extraction records their feature space; training and prediction compare it.

Features are of the same feature space if the encoder settings that determine their values are equal. The
device and the versions of packages do not count. The name of a feature space is the encoder's name with a
hash of those settings. Features of one space may be mixed; a model trained on one space refuses any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from shards.safe_io.versions import installed_version

# Settings that change how features are computed, and perhaps their last digits, but not their meaning.
COMPUTE_SETTINGS = frozenset({"device", "dtype", "opencv", "torch", "transformers", "av", "versions", "path"})
# In a clip's metadata: its modalities that never change and count as missing. In the manifest: how many.
CONSTANT = "constant_streams"
# In a clip's metadata: its modalities of stored sound that were rounded to 16 bits. In the manifest: how
# many, by modality; 0 says that all of the sound is stored exactly.
ROUNDED = "rounded_streams"
# The setting of an encoder that was given stored recordings in place of media: how these were stored.
RECORDED = "recorded"
PACKAGES = (
    "awtpn-at-scale",
    "numpy",
    "av",
    "torch",
    "transformers",
    "opencv-python-headless",
    "pillow",
    "webdataset",
)
# Settings that are not part of a description.
NOT_DESCRIBED = ("id", "version")
# By modality, the setting that says what an encoder takes: samples or pictures per second, words.
INPUT_SETTING = {"audio": "rate", "video": "fps", "text": "step"}


def extraction_provenance(encoders: Mapping[str, Any]) -> dict[str, Any]:
    """For the manifest: each modality's feature space and encoder settings, time, and package versions."""
    return {
        "features": {
            name: {"space": space_of(encoder.settings), "settings": encoder.settings}
            for name, encoder in encoders.items()
        },
        "extracted": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: found for name in PACKAGES if (found := installed_version(name))},
    }


def constant_provenance(kept: bool, counts: Mapping[str, int]) -> dict[str, Any]:
    """For the manifest: how extraction treated modalities that never change, such as silence.

    Args:
        kept: features were made of them, too; else they count as missing.
        counts: number of such clips by modality.
    """
    return {CONSTANT: {"taken_as": "present" if kept else "missing", **dict(sorted(counts.items()))}}


def recorded_constant(provenance: Mapping[str, Any]) -> tuple[bool, dict[str, int]]:
    """`kept` and `counts` of `constant_provenance`. Datasets without the record kept such modalities."""
    found = provenance.get(CONSTANT)
    if not isinstance(found, Mapping):
        return True, {}
    counts = {str(name): count for name, count in found.items() if type(count) is int}
    return found.get("taken_as") != "missing", counts


def space_of(settings: Mapping[str, Any]) -> str:
    """The name of the feature space of an encoder with these settings: "logmel-3f9a02c1d4"."""
    decisive = _decisive(settings)
    name = str(settings["id"]).rpartition("/")[2]
    if "sha256" in decisive:
        # A model folder may be renamed, or be a copy of one on the hub: its content decides.
        decisive = {key: value for key, value in decisive.items() if key not in ("id", "revision")}
        name = str(settings.get("model_type", name))
    text = json.dumps(decisive, sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def recorded_spaces(provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Per modality what `extraction_provenance` recorded; modalities without a record are not among them."""
    features = provenance.get("features")
    if not isinstance(features, dict):
        return {}
    return {name: entry for name, entry in features.items() if _is_record(entry)}


def _is_record(entry: Any) -> bool:
    """Whether it is such a record: a manifest or model card of another program may hold anything there."""
    settings = entry.get("settings") if isinstance(entry, dict) else None
    return (
        isinstance(settings, dict)
        and isinstance(entry.get("space"), str)
        and isinstance(settings.get("id"), str)
        and isinstance(settings.get("versions", {}), dict)
    )


def reopenable(provenance: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of `recorded_spaces` whose encoder can be opened again; not a corpus' own features."""
    return {
        name: entry
        for name, entry in recorded_spaces(provenance).items()
        if INPUT_SETTING.get(name) in entry["settings"]
    }


def of_faces(settings: Mapping[str, Any]) -> bool:
    """Whether features or recordings of pictures are of the faces in them, by the recorded settings."""
    stored = settings.get(RECORDED)
    faces = [of.get("faces", "none") for of in (settings, stored) if isinstance(of, Mapping)]
    return any(value != "none" for value in faces)


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], modalities: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """Modalities whose feature spaces differ, with descriptions of both.

    Args:
        ours, theirs: two provenances; a modality that one of them does not record is not compared.
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
    """Refuse features of another feature space than the model's, even if they have the same size.

    Args:
        ours: the provenance of what the model was trained on.
        theirs: that of other features.
        modalities: those to compare.
        complaint: start of the error message.
        fix: end of the error message.

    Raises:
        ValueError: the feature spaces of a modality differ; describes both.
    """
    found = differences(ours, theirs, modalities)
    if found:
        listed = "; ".join(f"{name}: {known} against {other}" for name, (known, other) in found.items())
        raise ValueError(f"{complaint}: {listed}; {fix}")


def describe(settings: Mapping[str, Any], beside: Mapping[str, Any] | None = None) -> str:
    """An encoder as text: "facebook/wav2vec2-base (layer 9, step_seconds 0.1)".

    With `beside`, another encoder of the same name, only the settings that differ are listed.
    """
    shown = {name: value for name, value in _decisive(settings).items() if name not in NOT_DESCRIBED}
    if beside is not None and beside.get("id") == settings.get("id"):
        other = _decisive(beside)
        shown = {name: v for name, v in _decisive(settings).items() if other.get(name) != v and name != "id"}
    words = ", ".join(f"{name} {_word(value)}" for name, value in shown.items())
    return f"{settings.get('id')} ({words})" if words else str(settings.get("id"))


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _decisive(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in COMPUTE_SETTINGS
    }


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} {_word(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_word(each) for each in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
