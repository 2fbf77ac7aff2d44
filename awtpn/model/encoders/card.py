"""Encoders in a model's card: their base models and how they are trained, and how to open them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.opening import open_encoder
from awtpn.model.encoders.settings import EncoderSettings
from shards.format.recording import Recording, check_recording
from shards.safe_io.json_fields import from_record


def records_of(encoders: nn.ModuleDict) -> dict[str, Any]:
    """A card's records of encoders, by modality: `config`, `settings` (with the hash) and `recording`."""
    found = {}
    for modality, encoder in encoders.items():
        assert isinstance(encoder, Encoder)
        found[modality] = {
            "config": encoder.config.record(),
            "settings": encoder.settings,
            "recording": asdict(encoder.recording),
        }
    return found


def reopen_encoders(card: Mapping[str, Any]) -> dict[str, Encoder]:
    """The encoders of a card with the weights of their base models; {} for a model of features.

    Raises:
        ValueError: a record is malformed, or the base model is not there, or is another one; names the
            modality.
    """
    records = card.get("encoders") or {}
    if not isinstance(records, Mapping):
        raise ValueError("the card's encoders must be records by modality")
    return {modality: _reopen(modality, record) for modality, record in records.items()}


def _reopen(modality: str, record: Any) -> Encoder:
    at = f"the card's encoders.{modality}"
    if not isinstance(record, Mapping) or not isinstance(record.get("settings"), Mapping):
        raise ValueError(f"{at} must be a record with config, settings and recording")
    config = from_record(EncoderSettings, record.get("config"), f"{at}.config", ignore_unknown=True)
    config.validate(modality)
    recording = from_record(Recording, record.get("recording"), f"{at}.recording", ignore_unknown=True)
    check_recording(recording)
    base = record["settings"]
    path, revision = base.get("path"), base.get("revision")
    if path is not None:
        if not Path(str(path)).is_dir():
            raise ValueError(
                f"{modality}: its encoder was trained from {base.get('id')!r:.80}, the folder {path!s:.200}, "
                "which is not there: put the model's files there, or export the model with --merge where "
                "they are"
            )
        config = replace(config, model=str(path), revision=None)
    else:
        config = replace(
            config, model=str(base.get("id")), revision=None if revision is None else str(revision)
        )
    encoder = open_encoder(modality, config, recording)
    if encoder.settings["sha256"] != base.get("sha256"):
        raise ValueError(
            f"{modality}: {config.model} is not the model {base.get('id')!r:.80} that this one was trained "
            "from: its files have another sha256; get the files of that model"
        )
    return encoder
