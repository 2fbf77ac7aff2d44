"""Encoders in a model's card: their base models and how they are trained, and how to open them again.

A card has of each encoder:

    config      its `EncoderSettings`
    settings    what decides its features, with the base model's id, and sha256 over its files
    recording   what it takes, as `shards.format.recording`
    licence     of the base model, if that names one
    folder      in an export that holds the encoder itself: "encoders/audio", beside the card
    base        there, too: what that was made from: id, sha256, tune, and the revision of a model of the hub
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.opening import CLASSES, open_encoder
from awtpn.model.encoders.settings import EncoderSettings
from shards.format.recording import KIND_OF, Recording, check_recording
from shards.format.schema import SHA256
from shards.safe_io.json_fields import from_record

# Settings that decide which features an encoder makes.
DECISIVE = ("sha256", "model_type", "layer", "summary", "rate", "fps", "step_seconds")
LONGEST = 4096  # characters of a text in a record
FOLDER = "encoders"  # of the encoders in an export
# Of an encoder in an export: those that there must be.
ENCODER_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


@dataclass(frozen=True)
class EncoderRecord:
    """What a card says of an encoder; see the module."""

    config: EncoderSettings
    settings: dict[str, Any]
    recording: Recording
    licence: str | None = None
    folder: str | None = None
    base: dict[str, Any] | None = None


def records_of(encoders: nn.ModuleDict) -> dict[str, Any]:
    """A card's records of encoders, by modality."""
    found = {}
    for modality, encoder in encoders.items():
        assert isinstance(encoder, Encoder)
        known = {"licence": encoder.licence, "folder": encoder.folder, "base": encoder.base}
        found[modality] = {
            "config": encoder.config.record(),
            "settings": encoder.settings,
            "recording": asdict(encoder.recording),
            **{name: value for name, value in known.items() if value is not None},
        }
    return found


# --- Read ----------------------------------------------------------------------------------------


def parse_records(card: Mapping[str, Any]) -> dict[str, EncoderRecord]:
    """The records of a card, checked; {} for a model of features.

    Raises:
        ValueError: a record is malformed; one line.
    """
    records = card.get("encoders")
    if records is None:
        return {}
    if not isinstance(records, Mapping) or not records.keys() <= CLASSES.keys():
        raise ValueError(f"encoders must be records of {' and '.join(CLASSES)}, not {records!r:.60}")
    return {modality: _parse(modality, record) for modality, record in records.items()}


def _parse(modality: str, record: Any) -> EncoderRecord:
    at = f"encoders.{modality}"
    if not isinstance(record, Mapping):
        raise ValueError(f"{at} must be a record with config, settings and recording")
    known = {name: value for name, value in record.items() if name in EncoderRecord.__dataclass_fields__}
    for name in ("config", "recording"):
        if name in known and not isinstance(known[name], Mapping):
            raise ValueError(f"{at}.{name} is not a mapping")
    for name, kind in (("config", EncoderSettings), ("recording", Recording)):
        known[name] = from_record(kind, known.get(name), f"{at}.{name}", ignore_unknown=True)
    if not isinstance(known.get("settings"), Mapping):
        raise ValueError(f"{at}.settings is not a mapping")
    found = EncoderRecord(**known)
    try:
        found.config.validate(modality)
        check_recording(found.recording)
    except ValueError as error:
        raise ValueError(f"{at}: {error}") from None
    if found.recording.kind != KIND_OF[modality]:
        raise ValueError(f"{at}.recording is of {found.recording.kind}, not {KIND_OF[modality]}")
    _check_origin(found.settings, f"{at}.settings")
    if type(found.settings.get("layer")) is not int or not _is_number(found.settings.get("step_seconds")):
        raise ValueError(f"{at}.settings must have a layer and step_seconds, both numbers")
    if found.licence is not None and not _is_text(found.licence):
        raise ValueError(f"{at}.licence cannot be {found.licence!r:.60}")
    if found.folder is not None and found.folder != folder_of(modality):
        raise ValueError(f"{at}.folder must be {folder_of(modality)}, not {found.folder!r:.60}")
    if found.base is not None:
        if not isinstance(found.base, Mapping) or not _is_text(found.base.get("tune")):
            raise ValueError(f"{at}.base must be a record with id, sha256 and tune")
        _check_origin(found.base, f"{at}.base")
    return found


def other_rank(card: Mapping[str, Any], stored: Mapping[str, tuple[int, ...]]) -> str | None:
    """How the rank of tune lora by a card and that of the stored weights differ; None if they agree.

    Args:
        card: of the model.
        stored: shapes by name, of `EmotionModel.saved_state`.
    """
    for modality, record in parse_records(card).items():
        start, rank = f"{FOLDER}.{modality}.", record.config.lora_rank
        found = {shape[0] for n, shape in stored.items() if n.startswith(start) and ".lora_A." in n and shape}
        if record.config.tune == "lora" and found != {rank}:
            ranks = ", ".join(map(str, sorted(found))) or "none"
            return f"encoders.{modality} has lora_rank {rank} by the card and {ranks} in the file"
    return None


def folder_of(modality: str) -> str:
    """Where an export has an encoder."""
    return f"{FOLDER}/{modality}"


def _check_origin(record: Mapping[str, Any], at: str) -> None:
    if not _is_text(record.get("id")) or not SHA256.fullmatch(str(record.get("sha256"))):
        raise ValueError(f"{at} must have an id, and a sha256 of 64 hexadecimal digits")
    for name in ("revision", "path", "model_type", "summary"):
        if record.get(name) is not None and not _is_text(record[name]):
            raise ValueError(f"{at}.{name} cannot be {record[name]!r:.60}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


# --- Open ----------------------------------------------------------------------------------------


def reopen_encoders(
    card: Mapping[str, Any], folder: Path | None = None, moved: Mapping[str, str | Path] | None = None
) -> dict[str, Encoder]:
    """The encoders of a card with the weights of their base models; {} for a model of features.

    Args:
        card: of `awtpn.model.files.read_card`.
        folder: that holds the card.
        moved: by modality where the files of a base model are now, a folder or hub id; others are as given in
            the card.

    Raises:
        ValueError: a record is malformed, or the base model is not there, or is another one; names the
            modality.
    """
    found = {}
    for modality, record in parse_records(card).items():
        encoder = _reopen(modality, record, folder, (moved or {}).get(modality))
        if encoder.dim != card["feature_dims"].get(modality):
            raise ValueError(
                f"{modality}: its encoder makes {encoder.dim} features, and the model takes "
                f"{card['feature_dims'].get(modality)}: the card is not of this model"
            )
        found[modality] = encoder
    return found


def _reopen(modality: str, record: EncoderRecord, folder: Path | None, moved: str | Path | None) -> Encoder:
    place, revision = _place(modality, record, folder, moved)
    config = replace(record.config, model=place, revision=revision)
    encoder = open_encoder(modality, config, record.recording, sha256=record.settings["sha256"])
    for name in DECISIVE:
        if encoder.settings.get(name) != record.settings.get(name):
            raise ValueError(
                f"{modality}: its encoder has {name} {encoder.settings.get(name)}, and by its settings in "
                f"the card {record.settings.get(name)!r:.60}: the card is not of this model"
            )
    if record.folder is not None:
        # So that the card is the same wherever the export is.
        encoder.config = record.config
        encoder.settings = {name: value for name, value in encoder.settings.items() if name != "path"}
        encoder.folder, encoder.base = record.folder, record.base
    elif record.settings.get("revision") is not None:
        encoder.config = record.config
        without = {name: value for name, value in encoder.settings.items() if name != "path"}
        encoder.settings = without | {name: record.settings[name] for name in ("id", "revision")}
    elif "path" in encoder.settings:
        encoder.settings = encoder.settings | {"id": record.settings["id"]}
    encoder.licence = encoder.licence or record.licence
    return encoder


def _place(
    modality: str, record: EncoderRecord, folder: Path | None, moved: str | Path | None
) -> tuple[str, str | None]:
    """Where the files of an encoder are: a folder, or a hub id; and the revision on the hub."""
    base = record.settings
    if record.folder is not None:
        if moved is not None:
            raise ValueError(f"{modality}: its encoder is part of the model; do not name another, {moved}")
        if folder is None or not (folder / record.folder).is_dir():
            raise ValueError(
                f"{modality}: its encoder is in the folder {record.folder} beside the card, and that is not "
                "there: get all of the export"
            )
        return str(folder / record.folder), None
    if moved is not None:
        return str(Path(moved).expanduser()), None
    path, revision = base.get("path"), base.get("revision")
    if revision is None and (path is None or not Path(path).is_dir()):
        gone = (
            "a folder of another machine" if path is None else f"the folder {path:.200}, which is not there"
        )
        raise ValueError(
            f"{modality}: its encoder was trained from {base['id']!r:.80}, {gone}: get that model's files, "
            f"and name their folder (--{modality} FOLDER); or export the model with --merge where they are"
        )
    return (str(path), None) if revision is None else (base["id"], revision)
