"""What an encoder is given of stored recordings (`sources.packed_recordings`) in place of media.

Sound: the stored samples / 32768, as FFmpeg gives sound of 16 bits, resampled to the encoder's rate. If this
is the stored rate and no sound of the dataset was rounded, these are the numbers that the media give, and the
features are of the same feature space. Otherwise they are not.

Pictures: the stored crops, at the stored rate or at that rate divided by a whole number k. They are those at
the times that `media.read_frames` takes, (j + 1/2) k / rate. For an odd k, picture j k + (k - 1) / 2 was
taken at that time. For an even k none was, and the one before is given, since a picture is shown until the
next. A crop is not the picture that the media give, so these features are of another feature space.

The setting `RECORDED` names this feature space: it says how the recordings were stored. To predict for media,
`through_recording` gives an encoder the media in the same way.

A dataset without streams that never change (the default of extraction) has dropped them by the whole picture;
nothing of it is tested again. In one that keeps them, sound of one value and two or more equal pictures never
change.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from shards.extraction.media import ConstantStream, resample
from shards.format.feature_space import RECORDED
from shards.format.recording import FULL_SCALE
from shards.sources.base import StoredRecording
from shards.sources.reading.packed_row import PackedRow

# Relative; an fps that was written with a few digits more or less is the same.
SAME_RATE = 1e-6


def for_stored(modality: str, encoder: Any, stored: StoredRecording | None) -> Any:
    """The encoder, with settings that name the feature space of what it makes of stored recordings.

    Args:
        modality: of the encoder.
        encoder: see `shards.extraction.encoders`.
        stored: how the modality is stored; None: the clips are media.

    Raises:
        ValueError: the encoder cannot take these recordings; says what to change.
    """
    if stored is None:
        return encoder
    if stored.recording.is_sound:
        recorded = _sound_settings(encoder, stored)
    else:
        every(stored.recording.rate, encoder.fps, f"{stored.url}: {modality}")
        if _crops_faces(stored.settings) and _crops_faces(encoder.settings):
            raise ValueError(
                f"{stored.url}: its pictures are faces already, in which --faces opencv finds nothing: "
                "leave it out"
            )
        recorded = stored.settings
    if recorded is None:
        return encoder
    made = copy.copy(encoder)
    made.settings = {**encoder.settings, RECORDED: recorded}
    return made


def _sound_settings(encoder: Any, stored: StoredRecording) -> dict[str, Any] | None:
    rate = stored.recording.rate
    if rate == encoder.rate and stored.is_exact:
        return None
    if rate != round(rate):
        raise ValueError(
            f"{stored.url}: its sound has {rate:g} samples per second, which is not a whole number, so it "
            f"cannot be resampled to the {encoder.rate} of the encoder: leave it out (--audio none)"
        )
    # The length of a step decides nothing here. Sound that was made of stored sound says so.
    before = {RECORDED: stored.settings[RECORDED]} if RECORDED in stored.settings else {}
    return {"id": stored.recording.kind, "version": 1, "rate": round(rate), **before}


def _crops_faces(settings: dict[str, Any]) -> bool:
    return settings.get("faces", "none") != "none"


def every(stored: float, wanted: float, at: str) -> int:
    """Which pictures are taken: each k-th.

    Args:
        stored, wanted: pictures per second.
        at: what they are, for the error message.

    Raises:
        ValueError: the stored rate is no multiple of the wanted one.
    """
    k = round(stored / wanted)
    if k < 1 or abs(k * wanted - stored) > SAME_RATE * stored:
        raise ValueError(
            f"{at} has {stored:g} pictures per second. An encoder can take each of them, each second one, "
            f"each third one, and so on, but not {wanted:g} per second: give --fps {stored:g}, or {stored:g} "
            "divided by a whole number"
        )
    return k


def thinned(pictures: np.ndarray, k: int) -> np.ndarray:
    """Each k-th of pictures uint8 [N, H, W, 3], at the times that the module says; at least one."""
    if k == 1 or not len(pictures):
        return pictures
    count = max(1, (2 * len(pictures) + k - 1) // (2 * k))
    chosen = np.arange(count) * k + (k - 1) // 2
    return pictures[np.minimum(chosen, len(pictures) - 1)]


def as_float(samples: np.ndarray) -> np.ndarray:
    """int16 [samples] -> float32 in -1 to 1."""
    return samples.astype(np.float32) / np.float32(FULL_SCALE)


def read_sound(row: PackedRow, encoder: Any, keep_constant: bool) -> np.ndarray | None:
    """Sound float32 [samples] at the encoder's rate; None if the utterance has none.

    Raises:
        ConstantStream: it never changes, and `keep_constant` is off.
        ValueError: it cannot be read, or was not stored.
        OSError: the store cannot be reached.
    """
    samples = _read(row, "audio", keep_constant)
    if samples is None:
        return None
    rate = row.split.readers["audio"].modalities["audio"].recording.rate  # type: ignore[union-attr]
    return resample(as_float(samples), round(rate), encoder.rate)


def read_pictures(row: PackedRow, encoder: Any, keep_constant: bool) -> np.ndarray | None:
    """Pictures uint8 [N, H, W, 3] at the encoder's rate; None if there are none; raises as `read_sound`."""
    pictures = _read(row, "video", keep_constant)
    if pictures is None:
        return None
    rate = row.split.readers["video"].modalities["video"].recording.rate  # type: ignore[union-attr]
    return thinned(pictures, every(rate, encoder.fps, row.at))


def _read(row: PackedRow, modality: str, keep_constant: bool) -> np.ndarray | None:
    if modality in row.constant:
        if keep_constant:
            raise ValueError(
                f"{row.at}: its {modality} never changes and was not stored; store the recordings again with "
                "keep_constant (--keep_constant)"
            )
        raise ConstantStream(f"{row.at}: its {modality} never changes, and was not stored")
    if modality not in row.has:
        return None
    values = row.read(modality)
    if not keep_constant and row.split.keeps_constant and len(values) > 1 and (values == values[0]).all():
        raise ConstantStream(f"{row.at}: its {modality} never changes")
    return values
