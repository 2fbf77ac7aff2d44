"""What a model is given: features, or recordings for its encoders; checked, and packed as in a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards import Ragged
from shards.extraction.encoders.frames import Frames
from shards.extraction.encoders.waveform import Waveform
from shards.extraction.through_recording import as_stored_jpeg
from shards.format.recording import DTYPE_OF, FULL_SCALE, KIND_OF, Recording, in_steps
from shards.safe_io.printable import listed

Features = Mapping[str, NDArray[Any] | None]


def check_features(
    name: str, utterance: Features, dims: Mapping[str, int], recordings: Mapping[str, Recording] | None = None
) -> dict[str, NDArray[Any] | None]:
    """The features [T, F] of an utterance for each modality in `dims`; None for a missing one.

    Args:
        name: of the utterance, for messages.
        utterance: by modality what is given.
        dims: features per step.
        recordings: by modality what the model takes in place of features.

    Raises:
        ValueError: as `Predictor.predict`.
    """
    recordings = recordings or {}
    if not isinstance(utterance, Mapping):
        forms = {m: f"[steps, {dim}]" for m, dim in dims.items()}
        forms |= {m: form_of(recording) for m, recording in recordings.items()}
        raise ValueError(
            f"{name} is a {type(utterance).__name__}, not a mapping: give features by modality, such as "
            f"{{{', '.join(f'{m!r}: {form}' for m, form in forms.items())}}}"
        )
    # What the model does not take may be named, as long as it is missing.
    if unknown := [str(m) for m, values in utterance.items() if values is not None and m not in dims]:
        missing = [modality for modality in dims if utterance.get(modality) is None]
        told = f"; it has no {listed(missing)}" if missing else ""
        raise ValueError(f"{name} has {listed(unknown)}, but the model takes {listed(dims)}{told}")
    arrays: dict[str, NDArray[Any] | None] = dict.fromkeys(dims)
    for modality, values in utterance.items():
        if values is None:
            continue
        if modality in recordings:
            arrays[modality] = check_recording_array(f"{name}: {modality}", values, recordings[modality])
            continue
        if getattr(values, "dtype", None) in (np.dtype(np.int8), torch.int8):
            raise ValueError(
                f"{name}: {modality} is int8, as a dataset of int8 features stores it: give the values that "
                "it stands for, q * scale + offset, with the scale and the offset of its manifest.json"
            )
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name}: {modality} is not an array of numbers: the model takes [steps, {dims[modality]}]"
            ) from None
        if array.shape[1:] != (dims[modality],):
            raise ValueError(
                f"{name}: {modality} has shape {array.shape}, but the model takes [steps, {dims[modality]}]"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: {modality} has NaN or infinite values: leave such steps out")
        arrays[modality] = array
    if not any(array is not None and len(array) for array in arrays.values()):
        raise ValueError(f"{name} has no steps in any of {listed(dims)}")
    return arrays


# --- Recordings ----------------------------------------------------------------------------------


def form_of(recording: Recording) -> str:
    """The array that a model takes: "int16 [samples] at 16000 Hz"."""
    if recording.is_sound:
        return f"int16 [samples] at {recording.rate:g} Hz, full scale {FULL_SCALE}"
    height, width, _ = recording.shape
    return f"uint8 [pictures, {height}, {width}, 3], {recording.rate:g} pictures per second"


def check_recording_array(at: str, values: Any, recording: Recording) -> NDArray[Any]:
    """Sound int16 [samples], or pictures uint8 [N, height, width, 3], as the model takes them.

    Args:
        at: utterance and modality, for messages.
        values: what is given.
        recording: what the model takes.

    Raises:
        ValueError: it has another shape or dtype.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        raise ValueError(
            f"{at} is not an array of numbers, but the model takes {form_of(recording)}"
        ) from None
    shape = () if recording.is_sound else tuple(recording.shape)
    if array.dtype != DTYPE_OF[recording.kind] or array.ndim != 1 + len(shape) or array.shape[1:] != shape:
        raise ValueError(
            f"{at} is {array.dtype} {list(array.shape)}, but the model takes {form_of(recording)}"
        )
    return array


def pack_recordings(arrays: Sequence[NDArray[Any] | None], recording: Recording) -> Ragged:
    """Pack one modality's recordings as a dataset has them; None stands for an empty one."""
    none = np.zeros((0, *recording.shape), DTYPE_OF[recording.kind])
    steps = [none if a is None else in_steps(a, recording.dim) if recording.is_sound else a for a in arrays]
    offsets = torch.tensor([0, *np.cumsum([len(a) for a in steps]).tolist()], dtype=torch.int32)
    samples = None
    if recording.is_sound:
        samples = torch.tensor([0 if a is None else len(a) for a in arrays], dtype=torch.int64)
    values = np.concatenate([none, *steps])
    return Ragged(torch.from_numpy(values), offsets, offsets, samples)


def as_stored(array: NDArray[Any] | None, recording: Recording) -> NDArray[Any] | None:
    """A recording as it comes out of a dataset that stores it so: pictures may be compressed."""
    if array is None or recording.jpeg_quality is None:
        return array
    return as_stored_jpeg(array, recording.jpeg_quality)


def storing_encoder(recording: Recording) -> Any:
    """What stores a clip in this form: its sound, or the middle of its pictures."""
    if recording.is_sound:
        return Waveform(rate=round(recording.rate), step_seconds=recording.step_seconds)
    return Frames(fps=recording.rate, side=recording.shape[0], jpeg=recording.jpeg_quality)


def check_made(encoders: Mapping[str, Any], recordings: Mapping[str, Recording]) -> None:
    """Check that what is made of media is what a model takes.

    Args:
        encoders: of `Predictor.encoders`.
        recordings: what the encoders within the model take; it takes features of the other modalities.

    Raises:
        ValueError: it is not; a forged card, or one of another version.
    """
    stores = {m for m, encoder in encoders.items() if encoder.settings["id"] == KIND_OF.get(m)}
    if unused := [m for m in encoders if m in stores and m not in recordings]:
        raise ValueError(
            f"by its card the model takes recordings of {listed(unused)}, and no model without an encoder "
            "does: use the version that made it, or a model trained on features"
        )
    if lacking := [m for m in recordings if m not in stores]:
        raise ValueError(
            f"the model takes recordings of {listed(lacking)}, but by its card its training data had "
            "features: its card is not of this model; train it again"
        )
    for m, recording in recordings.items():
        settings = encoders[m].settings
        rate, side = settings.get("rate", settings.get("fps")), settings.get("side")
        if rate != recording.rate or (side is not None and [side, side, 3] != recording.shape):
            raise ValueError(
                f"{m}: the model takes {recording}, but its training data was made by {settings}"
            )
