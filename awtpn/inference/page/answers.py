"""From a clip to what the page draws: the answer, the weights, the waveform and the frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.inference.page.clips import plain_cause
from awtpn.inference.plot import strength, wave_columns
from awtpn.inference.prediction import DIGITS, Prediction
from awtpn.inference.predictor import Predictor
from awtpn.inference.recording import FRAMES, Recording, load
from shards.extraction.media import MediaError
from shards.safe_io.printable import printable
from shards.sources.base import Clip

COLUMNS = 700  # of the waveform
FRAME_HEIGHT = 160  # most pixels of a frame
JPEG_QUALITY = 80


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
    encoders = predictor.encoders()
    steps = {m: float(e.step_seconds) for m, e in encoders.items() if hasattr(e, "step_seconds")}
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
    from PIL import Image

    image, file = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((10 * FRAME_HEIGHT, FRAME_HEIGHT))
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _rounded(values: NDArray[Any]) -> list[float]:
    return [round(float(value), 3) for value in values]
