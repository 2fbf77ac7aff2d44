"""What a clip is: one utterance as a stretch of a recording, before features are made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.schema import BadSample


@dataclass(frozen=True)
class Clip:
    """One utterance in its recordings.

    Attributes:
        key: name of the utterance, unique in the dataset.
        split: name of the split it belongs to.
        label: name of its class.
        audio: file with its sound, or None where the corpus has none.
        video: file with its picture (often the same file), or None.
        audio_span: (begin, end) in seconds within `audio`; None is the whole file.
        video_span: the same within `video`.
        crop: (left, top, right, bottom) of the picture to use, as fractions of the upright frame's width and
            height; None is all of it.
        meta: JSON-able facts about the utterance; scalars can be selected by when streaming.
        source: where the corpus says so (file and line), for error messages.
        missing: by modality, of a file that the corpus names and that is not there, what to say of it.
    """

    key: str
    split: str
    label: str
    audio: Path | None
    video: Path | None
    audio_span: tuple[float, float] | None = None
    video_span: tuple[float, float] | None = None
    crop: tuple[float, float, float, float] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipSource:
    """A corpus of recordings, ready for extraction.

    Attributes:
        clips: in the corpus' order; an entry that is known to be missing or broken is a `BadSample`.
        classes: class names, in the order of their labels.
        provenance: for the manifest: corpus, label map, splits.
        remarks: what the user should be told before the extraction begins.
    """

    clips: list[Clip | BadSample]
    classes: list[str]
    provenance: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
