"""What the page is told: of the model, from its card; and of a clip, the answer and what is drawn."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.inference.page.clips import plain_cause
from awtpn.inference.plot import strength, wave_columns
from awtpn.inference.prediction import DIGITS, Prediction
from awtpn.inference.predictor import Predictor
from awtpn.inference.recording import FRAMES, Recording, load
from awtpn.metrics.multilabel import THRESHOLD
from awtpn.model.modality_colors import modality_colors
from awtpn.model.sharing.hub import HUB_ID
from awtpn.model.sharing.model_card import TASK_NAMES
from awtpn.model.sharing.privacy import public_card
from shards.extraction.media import MediaError
from shards.format.feature_space import recorded_spaces
from shards.format.jpeg import encode_jpeg, pillow
from shards.safe_io.printable import printable
from shards.sources.base import Clip
from shards.storage.local_path import local_path

COLUMNS = 700  # of the waveform
FRAME_HEIGHT = 160  # most pixels of a frame
JPEG_QUALITY = 80


# --- The model ---------------------------------------------------------------------------------


def facts_of(predictor: Predictor, model: str, most_bytes: int, most_seconds: float) -> dict[str, Any]:
    """What the page says of the model, as plain JSON without paths.

    Args:
        predictor: of the model.
        model: as it was given: a folder or a hub id; only its last part is shown.
        most_bytes, most_seconds: the limits of a clip.
    """
    card, task = public_card(predictor.model.card()), predictor.model.task
    within = card.get("encoders") or {}
    # Of an encoder within the model; the others made the training features.
    encoders = recorded_spaces(card.get("provenance") or {}) | within
    modalities = list(predictor.model.feature_dims)
    return {
        "name": printable(short_name(model)),
        "network": predictor.model.config.name,
        "has_weights": predictor.model.config.name == "awtpn",
        "task": task.type,
        "task_name": TASK_NAMES[task.type],
        "names": [printable(name) for name in task.names],
        "ranges": task.ranges if task.type == "regression" else None,
        "threshold": THRESHOLD,
        "trained_on": printable(card["dataset"]) if card.get("dataset") else None,
        "encoders": {m: printable(_encoder_name(encoders[m])) for m in modalities if m in encoders},
        "modalities": modalities,
        "colors": modality_colors(modalities),
        "most_bytes": most_bytes,
        "most_seconds": most_seconds,
    }


def _encoder_name(record: Mapping[str, Any]) -> str:
    """The id of an encoder; of a merged one that of its base model."""
    return str((record.get("base") or record["settings"])["id"])


def short_name(model: str) -> str:
    """The name of a model's folder without the folders above it; a hub id as it is."""
    path = Path(local_path(model))
    if not path.exists() and HUB_ID.fullmatch(model):
        return model
    return path.resolve().name


# --- A clip ------------------------------------------------------------------------------------


def answer_clip(predictor: Predictor, clip: Clip, on_stage: Callable[[str], None]) -> dict[str, Any]:
    """Plain JSON for the page, without paths.

    Args:
        predictor: whose encoders are open.
        clip: of `clips.clip_to_predict`.
        on_stage: called with "encoding", "predicting" and "drawing".

    Raises:
        ValueError: the clip cannot be used; one line without paths.
    """
    missing: dict[str, str] = {}

    def note(_: Clip, modality: str, cause: str) -> None:
        missing[modality] = plain_cause(cause, clip)

    [(_, found)] = predictor.iter_clips([clip], threads=1, on_missing=note, on_stage=on_stage)
    if isinstance(found, str):
        raise ValueError(
            f"the model cannot use {clip.key}: {plain_cause(found, clip)}; choose or record another clip"
        )
    on_stage("drawing")
    if "text" in missing and clip.text is None:
        missing["text"] = "no words are given"
    return outcome(found, predictor) | timeline(clip, found, predictor) | {"missing": missing}


def outcome(prediction: Prediction, predictor: Predictor) -> dict[str, Any]:
    """The answer: a row for each class, label or value."""
    task = predictor.model.task
    found: dict[str, Any] = {"task": task.type, "title": printable(prediction.described())}
    if prediction.values is None:
        chosen = {prediction.label} if prediction.labels is None else set(prediction.labels)
        rows = [
            {"name": printable(name), "share": round(share, DIGITS), "chosen": name in chosen}
            for name, share in prediction.probabilities.items()
        ]
        return found | {"rows": rows}
    intervals, ranges = prediction.intervals or {}, dict(zip(task.names, task.ranges or (), strict=True))
    return found | {
        "rows": [
            {"name": printable(name), "value": value, "interval": intervals.get(name), "range": ranges[name]}
            for name, value in prediction.values.items()
        ]
    }


def timeline(clip: Clip, prediction: Prediction, predictor: Predictor) -> dict[str, Any]:
    """The weights of the steps, with what they are of: waveform, frames and words."""
    steps = predictor.step_seconds
    try:
        recording = load(clip, steps)
    except MediaError:  # of a sound or picture that the model does not take
        recording = load(replace(clip, audio=None, video=None), steps)
    return {
        "weights": prediction.as_json()["weights"],
        "step_seconds": steps,
        "duration": round(recording.duration, 3),
        "wave": None if recording.sound is None else _wave(recording, prediction),
        "frames": None if recording.pictures is None else _frames(recording, prediction),
        "words": list(clip.text.words) if clip.text else [],
    }


def _wave(recording: Recording, prediction: Prediction) -> dict[str, Any]:
    """Minimum and maximum of each column as shares of the largest sample, and how clear it is drawn."""
    assert recording.sound is not None
    edges, low, high = wave_columns(recording.sound, COLUMNS)
    most = max(1e-6, float(np.abs(recording.sound).max()))
    clear = strength(recording, prediction, "audio", edges / recording.rate, np.max)
    end = len(recording.sound) / recording.rate
    shape = {"low": _rounded(low / most), "high": _rounded(high / most), "clear": _rounded(clear)}
    return shape | {"end": round(end, 3)}


def _frames(recording: Recording, prediction: Prediction) -> list[dict[str, Any]]:
    """Of each frame the picture, when it is shown, and how clear it is drawn."""
    assert recording.pictures is not None
    edges = recording.duration / FRAMES * np.arange(len(recording.pictures) + 1)
    clear = strength(recording, prediction, "video", edges, np.mean)
    return [
        {"src": _jpeg(picture), "begin": round(float(edges[i]), 3), "clear": round(float(clear[i]), 3)}
        for i, picture in enumerate(recording.pictures)
    ]


def _jpeg(picture: NDArray[np.uint8]) -> str:
    """A picture [H, W, 3] as the URL of a small JPEG."""
    image = pillow().fromarray(picture)
    image.thumbnail((10 * FRAME_HEIGHT, FRAME_HEIGHT))
    content = encode_jpeg(np.asarray(image), JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _rounded(values: NDArray[Any]) -> list[float]:
    return [round(float(value), 3) for value in values]
