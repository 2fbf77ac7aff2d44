"""Open the encoder of recorded features again, to make more features of the same feature space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.extraction.encoders import find_encoders, open_encoder
from shards.extraction.encoders.frames import LARGEST_CROP
from shards.extraction.through_recording import PicturesThroughRecording, SoundThroughRecording
from shards.format.feature_space import RECORDED, describe, space_of
from shards.format.recording import KIND_OF

# Settings of Hugging Face models that are options of their encoders.
MODEL_OPTIONS = ("dtype", "layer", "step_seconds", "revision", "fps", "faces")
RATES = ("rate", "fps", "step_seconds")  # settings that decide how much data a recording decodes to
LARGEST_RATE = 1_000_000  # beyond the rate of any recording
# Settings that are whole numbers from 1 to this. A model of others may record any side, and a picture of that
# side would fill the memory.
COUNTS = {"side": LARGEST_CROP, "jpeg": 95}
MOST_RECORDINGS = 8  # of recordings that were made of recordings


def reopen_encoder(
    modality: str, settings: Mapping[str, Any], device: str = "cpu", spec: str | None = None
) -> Any:
    """The encoder with these settings.

    Args:
        modality: "audio", "video" or "text".
        settings: as recorded, of `reopenable` features; the encoder computes in the recorded precision.
        device: where a model runs.
        spec: where the model's files are now, if they were moved.

    Returns:
        The encoder. Of features that were made of stored recordings, one that is given media and stores them
        first (`through_recording`).

    Raises:
        ValueError: the encoder cannot be found, or it is another one.
    """
    if RECORDED in settings:
        own = {name: value for name, value in settings.items() if name != RECORDED}
        encoder = reopen_encoder(modality, own, device, spec)
        return _through_recordings(modality, encoder, settings)
    for name in RATES:
        if name in settings and not _is_rate(settings[name]):
            raise ValueError(f"{modality}: {name} cannot be {settings[name]!r:.40}, as it was recorded")
    for name, most in COUNTS.items():
        if name in settings and not _is_count(settings[name], most):
            raise ValueError(
                f"{modality}: {name} cannot be {settings[name]!r:.40}, as it was recorded: it must be "
                f"a whole number from 1 to {most}"
            )
    built_in = "model_type" not in settings
    path = settings.get("path")
    if spec is None and not built_in and not settings.get("revision"):
        # The encoder was a local folder, and an export records its name only. On a hub, that name may belong
        # to anybody.
        gone = f"{str(path)!r}, which is not there" if path else f"{settings['id']!r} of another machine"
        option = f"--{modality}_encoder" if modality == "text" else f"--{modality}"
        if not path or not Path(str(path)).is_dir():
            raise ValueError(
                f"{modality}: the encoder was the folder {gone}: get its files, and name their folder (awtpn "
                f"predict {option} FOLDER)"
            )
    spec = spec or str(path or settings["id"])
    encoders = find_encoders(modality)
    # A built-in encoder has the options of its signature; classes for models share theirs.
    recorded = encoders[spec].options if built_in and spec in encoders else MODEL_OPTIONS
    options = {name: settings[name] for name in recorded if name in settings} | {"device": device}
    if "faces" in options:  # recorded with how they were found
        options["faces"] = "none" if options["faces"] == "none" else "opencv"
    if Path(spec).expanduser().is_dir():
        options.pop("revision", None)
    opened = open_encoder(modality, spec, **options)
    assert opened is not None
    now = opened.settings
    if space_of(now) != space_of(settings):
        raise ValueError(
            f"{modality}: the encoder {spec} is not the one that was recorded: "
            f"{describe(settings, now)} then, {describe(now, settings)} now; "
            "give the same model's files, or use the version of this package that made the features"
        )
    return opened


def _through_recordings(modality: str, encoder: Any, settings: Mapping[str, Any]) -> Any:
    """The encoder behind the recordings that its settings name; these may be made of further recordings."""
    recorded: Any = settings[RECORDED]
    for _ in range(MOST_RECORDINGS):
        if not isinstance(recorded, Mapping) or recorded.get("id") != KIND_OF.get(modality):
            break
        own = {name: value for name, value in recorded.items() if name != RECORDED}
        if modality == "audio":
            if not _is_rate(rate := own.get("rate")) or rate is None or rate != round(rate):
                break
            encoder = SoundThroughRecording(encoder, round(rate))
        else:
            encoder = PicturesThroughRecording(encoder, reopen_encoder(modality, own))
        if RECORDED not in recorded:
            encoder.settings = dict(settings)
            return encoder
        recorded = recorded[RECORDED]
    raise ValueError(
        f"{modality}: the features were made of stored recordings, but the record of these, "
        f"{settings[RECORDED]!r:.60}, is not one that this version writes: make the features again"
    )


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_rate(value: Any) -> bool:
    return value is None or (
        isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST_RATE
    )
