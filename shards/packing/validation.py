"""Checks of one sample before it is packed. Each error gives the cause and the fix."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shards.format.labels import label_name
from shards.format.recording import DTYPE_OF, NUM_SAMPLES, Recording, in_steps
from shards.format.schema import INT8, MODALITY_NAME, SPLIT_NAME, BadSample, Quantization, Sample
from shards.format.statistics import CAST_TOLERANCE, Statistics, lossy_dimension, statistics_of
from shards.format.targets import CLASSES, Target, number_of, values_of
from shards.packing.quantization import QuantizationError, quantize

FIX_PRECISION = "pack with dtype='float32' (--dtype float32), or scale the feature"


@dataclass
class PackingState:
    """What the utterances packed so far determine for those that follow.

    Attributes:
        classes: names that a label may have.
        dtype: that features are stored in.
        target: the dataset's own target.
        targets: further ones, by name.
        keys: of the utterances packed so far.
        dims: per modality the features per time step, and the key of the utterance that determined them.
        recordings: the modalities that are recordings. Their sound is given as int16 [samples], their
            pictures as uint8 [pictures, height, width, 3].
        quantizations: of the modalities that are stored as int8.
    """

    classes: list[str]
    dtype: np.dtype
    target: Target = CLASSES
    targets: dict[str, Target] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    dims: dict[str, tuple[int, str]] = field(default_factory=dict)
    recordings: dict[str, Recording] = field(default_factory=dict)
    quantizations: dict[str, Quantization] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedSample:
    """A valid utterance as it is stored.

    Attributes:
        arrays: per modality [T, D] in the stored dtype, without missing modalities; pictures [T, H, W, 3].
        casts: per modality that was cast statistics of the values given and of the error (stored - given).
        errors: per modality that was quantized.
        label: name of its class; None in a dataset without classes.
        json_member: its label and metadata as JSON.
    """

    arrays: dict[str, np.ndarray]
    casts: dict[str, tuple[Statistics, Statistics]]
    errors: dict[str, QuantizationError]
    label: str | None
    json_member: bytes


def validate_or_skip(
    sample: Sample | BadSample, state: PackingState, on_bad: str, skipped: list[dict[str, str]]
) -> EncodedSample | None:
    """`validate` a sample, and skip or refuse it if it is bad.

    Args:
        on_bad: "refuse" raises; "skip" adds its key and cause to `skipped` and returns None.

    Raises:
        ValueError: it cannot be packed; names it, says why and what to do.
    """
    try:
        return validate(sample, state)
    except ValueError as error:
        source = f"{sample.source}: " if sample.source else ""
        if on_bad == "refuse":
            raise ValueError(f"{source}utterance {sample.key!r}: {error}") from None
        cause = str(error).removeprefix(source)  # a message about a recording begins with it already
        skipped.append({"key": str(sample.key), "cause": f"{source}{cause}"})
        return None


def refuse_transcript(sample: Sample | BadSample) -> None:
    """Raise ValueError if a sample has a transcript of which no features are made: it would get lost."""
    if getattr(sample, "transcript", None) is not None:
        raise ValueError(
            f"utterance {sample.key!r} has a transcript, but no features of it: pack the samples of "
            "shards.extraction.text_features.with_text(source, encoder)"
        )


def validate(sample: Sample | BadSample, state: PackingState) -> EncodedSample:
    """Check an utterance and encode it as it is stored.

    Args:
        sample: the utterance.
        state: updated if the utterance passes, unchanged if not.

    Raises:
        ValueError: it cannot be packed; says why and what to do.
    """
    if isinstance(sample, BadSample):
        raise ValueError(sample.cause)
    label = check_key_split_label(sample.key, sample.split, sample.label, state)
    meta = check_targets(sample.meta, state)
    for name in sample.features:
        if not MODALITY_NAME.fullmatch(name):
            raise ValueError(
                f"modality {name!r} must consist of lower-case letters, digits and '_', and not be 'json'"
            )
    given = {name: np.asarray(values) for name, values in sample.features.items() if values is not None}
    there = {name: values for name, values in given.items() if values.shape[:1] != (0,)}
    if not there:
        raise ValueError("no steps in any modality; leave the utterance out")
    recorded = {name: state.recordings[name] for name in there if name in state.recordings}
    arrays = {name: _check_array(of, name, state) for name, of in there.items() if name not in recorded}
    quantized = state.quantizations
    stored = {name: _cast(of, name, _dtype_of_cast(state, name)) for name, of in arrays.items()}
    found = {name: quantize(stored[name], quantized[name]) for name in arrays if name in quantized}
    stored |= {name: values for name, (values, _) in found.items()}
    stored |= {name: _steps_of(there[name], name, recording) for name, recording in recorded.items()}
    # Also of an utterance without sound: the index would take it for the length of sound.
    if NUM_SAMPLES in meta and any(recording.is_sound for recording in state.recordings.values()):
        raise ValueError(f"metadata must not be named {NUM_SAMPLES!r} beside sound; rename that column")
    json_member = _json_member(label, _with_num_samples(meta, there, recorded))

    state.keys.add(sample.key)
    for name, values in arrays.items():
        state.dims.setdefault(name, (values.shape[1], sample.key))
    casts = {}
    for name, values in arrays.items():
        if values.dtype != stored[name].dtype and name not in quantized:
            exact = values.astype(np.float64)
            casts[name] = statistics_of(exact), statistics_of(stored[name] - exact)
    return EncodedSample(
        stored, casts, {name: error for name, (_, error) in found.items()}, label, json_member
    )


def check_cast(
    casts: dict[str, tuple[Statistics, Statistics]], dtype: np.dtype, tolerance: float = CAST_TOLERANCE
) -> None:
    """Refuse a dtype whose rounding error is too large for a feature.

    Args:
        casts: per modality the statistics of the values given, and of the error of the cast.
        dtype: that they are stored in.
        tolerance: largest error, as a share of the standard deviation.

    Raises:
        ValueError: names the modality and the dimension.
    """
    for name, (values, error) in casts.items():
        dimension = lossy_dimension(values, error, tolerance)
        if dimension is not None:
            off, std = error.std[dimension], values.std[dimension]
            raise ValueError(
                f"{name}[{dimension}]: stored as {dtype} its values are off by {off:.3g}, more than "
                f"{100 * tolerance:g} % of their standard deviation {std:.3g}; {FIX_PRECISION}"
            )


def check_key_split_label(key: str, split: str, label: Any, state: PackingState) -> str | None:
    """Check the key, the split and the label of an utterance.

    Returns:
        The name of its class; None in a dataset without classes.

    Raises:
        ValueError: the key, the split or the class is not allowed.
    """
    # webdataset takes what follows the first dot of a name as the member's extension, and slashes as folders.
    if not isinstance(key, str) or not key or re.search(r"[\s./\\]", key) or not key.isprintable():
        raise ValueError(
            "a key must be non-empty and free of dots, slashes and spaces; rename it, say with '_'"
        )
    if key in state.keys:
        raise ValueError("this key was packed before; keys are unique over all splits, rename one")
    if not isinstance(split, str) or not SPLIT_NAME.fullmatch(split):
        raise ValueError(f"split {split!r} must consist of letters, digits, '-' and '_'")
    if not state.classes:
        if label is not None:
            raise ValueError(f"has the label {label!r:.60}, but there are no classes; give both or none")
        return None
    name = label_name(label, state.classes)
    if name not in state.classes:
        raise ValueError(f"label {name!r} is unknown; the classes are {state.classes}")
    return name


def check_targets(meta: dict[str, Any], state: PackingState) -> dict[str, Any]:
    """Check the values of all targets of an utterance.

    Returns:
        The metadata with these values as they are stored: numbers, or None where one is missing.

    Raises:
        ValueError: a value is not a number or out of its range, one is missing that may not be, or the
            utterance has no value of the dataset's own target. Names the column.
    """
    stored = dict(meta)
    for target in (state.target, *state.targets.values()):
        values = values_of(meta, target)
        if target is state.target and values and all(map(math.isnan, values)):
            names = " nor ".join(map(repr, target.columns))
            raise ValueError(
                f"has no target: no value of {names}; fill one in, or leave the utterance out (on_bad skip)"
            )
        stored |= {name: number_of(meta.get(name)) for name in target.columns}
    return stored


def _check_array(values: np.ndarray, name: str, state: PackingState) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"{name} has shape {values.shape}; features are [steps, features per step]")
    if values.dtype.kind not in "fiu":
        raise ValueError(f"{name} holds {values.dtype}; features are real numbers")
    dim, first = state.dims.get(name, (values.shape[1], ""))
    if values.shape[1] != dim:
        raise ValueError(
            f"{name} has {values.shape[1]} features per step, while {first!r} has {dim}; "
            "make all with the same encoder"
        )
    if not np.isfinite(values).all():
        step, dimension = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"{name} is {values[step, dimension]} at step {step}, dimension {dimension}; repair it"
        )
    return values


def _steps_of(values: np.ndarray, name: str, recording: Recording) -> np.ndarray:
    """A recording as it is stored: int16 [steps, samples] or uint8 [pictures, height, width, 3].

    Raises:
        ValueError: it has another dtype or shape than `PackingState.recordings` says.
    """
    dtype, shape = DTYPE_OF[recording.kind], () if recording.is_sound else tuple(recording.shape)
    if values.dtype != dtype or values.shape[1:] != shape:
        raise ValueError(f"{name} is {values.dtype} of shape {values.shape}, and the dataset has {recording}")
    if recording.is_sound:
        return in_steps(values, recording.dim)
    return np.ascontiguousarray(values)


def _with_num_samples(
    meta: dict[str, Any], values: dict[str, np.ndarray], recorded: dict[str, Recording]
) -> dict[str, Any]:
    """The metadata with the true number of samples of recorded sound."""
    counts = {name: len(values[name]) for name, recording in recorded.items() if recording.is_sound}
    return meta | {NUM_SAMPLES: counts} if counts else meta


def _dtype_of_cast(state: PackingState, name: str) -> np.dtype:
    """What the values of a modality are cast to; those of int8 before they are quantized."""
    if state.dtype != np.dtype(INT8):
        return state.dtype
    if name not in state.quantizations:
        raise ValueError(
            f"{name} was not there when the scales were found: the samples changed; pack it again"
        )
    return np.dtype(np.float32)


def _cast(values: np.ndarray, name: str, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(values, dtype=dtype)
    if not np.isfinite(stored).all():
        step, dimension = np.argwhere(~np.isfinite(stored))[0]
        raise ValueError(
            f"{name}[{dimension}] is {values[step, dimension]:.6g} at step {step}, beyond {dtype}; "
            f"{FIX_PRECISION}"
        )
    return stored


def _json_member(label: str | None, meta: dict[str, Any]) -> bytes:
    if "label" in meta:
        raise ValueError("metadata must not be named 'label'; rename that column")
    try:
        record = meta if label is None else {"label": label, **meta}
        return json.dumps(record, ensure_ascii=False, allow_nan=False, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata cannot be written as JSON ({error}); convert or drop it") from None


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, byte strings as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
