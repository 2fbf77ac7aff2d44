"""What every source returns (`Source` or `ClipSource`), and helpers for labels, splits, keys and repairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.format.labels import MISSING, given_classes, text_of
from shards.format.recording import Recording
from shards.format.schema import BadSample, Sample
from shards.format.split_names import renaming_message, usual_names
from shards.format.targets import CLASSES, Target
from shards.safe_io.printable import get_logger
from shards.sources.reading.transcripts import Transcript

if TYPE_CHECKING:
    from shards.sources.reading.packed_row import PackedRow

logger = get_logger(__name__)

# A larger label is not a class: names for billions of classes would fill the memory.
MOST_CLASSES = 1 << 16
SHOWN = 8  # names of unused parts in a warning
TRANSCRIPTS = "transcripts"  # what provenance calls the place of transcripts, if features are made of them


@dataclass(frozen=True)
class Source:
    """The utterances of a corpus or file, to be packed.

    Attributes:
        samples: can be read once, in order; an utterance that cannot be read is a `BadSample`.
        classes: class names, in the order of their labels.
        provenance: for the manifest: where the features come from, and how they were made.
        total: number of samples.
        text_encoder: the encoder of their transcripts: the samples are `TranscribedSample`s, of which
            `extraction.text_features.with_text` makes features. None: they have no transcripts.
        target: what is to be recognized: the classes, or columns of the metadata.
        targets: further targets of the same utterances, by name.
    """

    samples: Iterator[Sample | BadSample]
    classes: list[str]
    provenance: dict[str, Any]
    total: int
    text_encoder: str | None = None
    target: Target = CLASSES
    targets: dict[str, Target] = field(default_factory=dict)


@dataclass(frozen=True)
class TranscribedSample(Sample):
    """A sample whose modality "text" is to be made of its transcript; None where it has none."""

    transcript: Transcript | None = None


def class_names(labels: list[str] | None, count: int, at: str) -> list[str]:
    """Names of `count` classes: `labels`, else class_0, class_1 and so on.

    Raises:
        ValueError: fewer names than classes, or more than `MOST_CLASSES` of these.
    """
    if count > MOST_CLASSES:
        raise ValueError(f"{at}: labels go up to {count - 1}, while classes are numbered 0, 1, ...")
    if labels is None:
        return [f"class_{i}" for i in range(count)]
    if len(labels) < count:
        raise ValueError(
            f"{at}: labels go up to {count - 1}, but only {len(labels)} names are given: {labels}"
        )
    return given_classes(labels)


def named_splits(values: Iterable[Any], at: str) -> dict[str, str]:
    """The dataset's name of each split of a source ("val" of "dev"); changed names are logged.

    Values that are not text are ignored here: `split_of` refuses them, utterance by utterance.
    """
    names = set()
    for value in values:
        try:
            names.add(text_of(value))
        except ValueError:
            continue
    splits = usual_names(sorted(names))
    if message := renaming_message(splits, at):
        logger.warning("%s", message)
    return splits


def split_of(value: Any, splits: Mapping[str, str]) -> str:
    """An utterance's split, by `named_splits`.

    Raises:
        ValueError: it has none, or not a single value.
    """
    try:
        name = text_of(value)
    except ValueError as error:
        raise ValueError(f"its split {error}") from None
    if not name or name in MISSING:
        raise ValueError("has no split; fill it in, or leave it out")
    return splits[name]


def log_unused(names: Iterable[Any], at: str, what: str) -> None:
    """Log which parts of an input are not used: how many, and the first names."""
    unused = sorted(map(str, names))
    if unused:
        more = ", ..." if len(unused) > SHOWN else ""
        logger.warning("%s: %d %s not used: %s%s", at, len(unused), what, ", ".join(unused[:SHOWN]), more)


def key_of(name: str) -> str:
    """A name as a key, which can name a tar member: dots, slashes, spaces and unprintable ones become "_"."""
    return "".join(mark if mark.isprintable() and mark not in " ./\\" else "_" for mark in name)


def replace_nonfinite(values: np.ndarray, counts: dict[str, int], modality: str) -> np.ndarray:
    """Features [T, D] with 0 in place of infinities and NaN, as the literature does with COVAREP's -inf.

    Args:
        values: features; not changed.
        counts: number of repaired steps by modality; this call adds its own.
        modality: of the features.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return values
    counts[modality] = counts.get(modality, 0) + int(bad.any(axis=1).sum())
    return np.where(bad, 0, values).astype(values.dtype)


@dataclass(frozen=True)
class Clip:
    """One utterance, and where it is in its recordings.

    Attributes:
        key: name of the utterance, unique in the dataset.
        split: name of the split it belongs to.
        label: name of its class; None where the corpus has no classes.
        audio: file with its sound, or None where the corpus has none.
        video: file with its picture (often the same file), or None.
        audio_span: (begin, end) in seconds within `audio`; None is the whole file.
        video_span: the same within `video`.
        crop: (left, top, right, bottom) of the picture to use, as fractions of the upright frame's width and
            height; None is all of it.
        meta: facts about the utterance that JSON can hold; streaming can select by scalars.
        source: file and line of the corpus that describe it, for error messages.
        missing: by modality, an error message about a file that the corpus names and that does not exist;
            it counts where the modality is wanted.
        text: what is said, or None where it is not known.
        packed: its row in a dataset of recordings, which holds its sound and pictures in place of files. Its
            metadata are read there when it is decoded; `meta` has the values of the targets until then.
    """

    key: str
    split: str
    label: str | None
    audio: Path | None
    video: Path | None
    audio_span: tuple[float, float] | None = None
    video_span: tuple[float, float] | None = None
    crop: tuple[float, float, float, float] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    missing: dict[str, str] = field(default_factory=dict)
    text: Transcript | None = None
    packed: PackedRow | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Its recordings by modality."""
        named = {"audio": self.audio, "video": self.video}
        return {name: path for name, path in named.items() if path is not None}


@dataclass(frozen=True)
class StoredRecording:
    """A modality of a dataset of recordings, of which features are to be made.

    Attributes:
        url: of the dataset, for error messages.
        recording: what is stored.
        settings: of the encoder that recorded it; if it is not known, what the recording is.
        is_exact: sound is stored as it was decoded: no sample was rounded to 16 bits.
    """

    url: str
    recording: Recording
    settings: dict[str, Any]
    is_exact: bool


@dataclass(frozen=True)
class ClipSource:
    """A corpus of recordings, ready for extraction.

    Attributes:
        clips: in the corpus' order; an entry whose files are missing or that cannot be read is a `BadSample`.
        classes: class names, in the order of their labels.
        provenance: for the manifest: corpus, label map, splits.
        remarks: warnings for the user, logged before the extraction begins.
        missing: by modality, an error message about the files of many clips; where the modality is wanted,
            the extraction is refused.
        target: what is to be recognized: the classes, or columns of the metadata.
        targets: further targets of the same utterances, by name.
        stored: by modality how it is stored, if the clips are rows of a dataset of recordings.
    """

    clips: list[Clip | BadSample]
    classes: list[str]
    provenance: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    target: Target = CLASSES
    targets: dict[str, Target] = field(default_factory=dict)
    stored: dict[str, StoredRecording] = field(default_factory=dict)
