"""Recordings of your own: a table of clips with the columns key, split, label and path, audio, video or text,
or a folder of clips whose paths name the label: [split/]label/clip.mp4, or as --pattern says.

A table (`.csv`, or `.jsonl` with an object per line) has the columns

    key, split, label     name of the utterance, its split and its class; dots, slashes and spaces in a key
                          become "_"
    path                  the recording, relative to the table, for both sound and picture
    audio, video          optional, in place of path: separate files of the two; empty: there is none
    begin, end            optional: the part of it to use, in seconds; empty: all
    text                  optional: what is said; an utterance with a text needs no recording

and further columns, which are kept as metadata. In a folder the path names the class:

    ROOT/<label>/clip.mp4                 one split, "all"
    ROOT/<split>/<label>/clip.mp4         splits by folder

or a regular expression does, which is searched in each clip's path below ROOT ("a/b.mp4"). Its named groups
are `label`, and optionally `split` and `key`; all others are metadata. For CREMA-D and RAVDESS:

    --pattern '(?P<actor>\\d+)_\\w+_(?P<label>[A-Z]{3})_' --label_map ANG=anger,DIS=disgust,FEA=fear,...
    --pattern '01-01-(?P<label>..)-..-..-..-(?P<actor>..)' --label_map 01=neutral,02=calm,03=happy,...

A label map renames labels; clips of a label mapped to nothing (`XXX=`) are left out, and a label that it
lacks is an error.

Where features of text are made (--text), clip.txt beside clip.mp4 is what is said in it, in UTF-8, or in
UTF-16 with a byte order mark. Of text alone (--audio none --video none), a .txt in a folder of a label needs
no clip. From recordings to a trained model:

    awtpn extract recordings data/mine --format recordings
    awtpn shards info data/mine
    awtpn train --data.train data/mine
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.format.labels import found_classes, given_classes, label_name, text_of
from shards.format.schema import BadSample
from shards.format.split_names import renaming_message, usual_names
from shards.safe_io.file_names import existing
from shards.safe_io.printable import plural
from shards.sources.base import Clip, ClipSource, key_of, split_of
from shards.sources.reading.table_rows import read_rows
from shards.sources.recordings_folder import (
    SOUND,
    TRANSCRIPT,
    clips_of,
    files_in,
    remarks_on,
    with_transcript,
)
from shards.sources.transcripts import checked_text, transcript_of

REQUIRED = ("key", "split", "label")
PATHS = ("path", "audio", "video")
SPAN = ("begin", "end")
TEXT = "text"
COLUMNS = (*REQUIRED, *PATHS, *SPAN, TEXT)
# Usual names of columns with what is said; of these, only `text` is read as such.
TEXT_NAMES = ("transcript", "transcription", "utterance", "sentence", "raw_text")


def read(
    source: str | Path,
    labels: list[str] | None = None,
    pattern: str | None = None,
    label_map: dict[str, str] | None = None,
    modalities: Collection[str] = ("audio", "video", TEXT),
) -> ClipSource:
    """Read a table or a folder of recordings.

    Args:
        source: the table (.csv, .jsonl), or the folder.
        labels: class names in label order; default those of the label map in its order, else those found,
            sorted.
        pattern: of a folder: regular expression that is searched in each clip's path; its named groups are
            label, and optionally split, key and metadata.
        label_map: labels as found, and the classes that they become; clips of a label mapped to nothing
            (XXX=) are left out.
        modalities: of which features are to be made; files of others are not read.

    Returns:
        A clip per row or file. It is a `BadSample` if it has no label, its files are missing, or the pattern
        does not match. A transcript that cannot be read is `missing`.

    Raises:
        ValueError: no such source, a column missing, a pattern that matches nothing, an unknown label, or one
            key for two files; names the file and the fix.
    """
    path = Path(source)
    # As labels of clips, which may have another Unicode form in folders and tables.
    labels = labels and [text_of(name) for name in labels]
    label_map = label_map and {text_of(name): text_of(to) for name, to in label_map.items()}
    others: Counter[str] = Counter()
    remarks = []
    if path.is_dir():
        files, transcripts, others = files_in(path, modalities, pattern)
        clips = list(clips_of(path, files, transcripts, pattern))
        remarks = remarks_on(path, files, transcripts, others)
    elif pattern is not None:
        raise ValueError(f"{path}: pattern reads the names in a folder, which this is not; leave it out")
    else:
        clips = _of_table(path, modalities)
        columns = dict.fromkeys(name for clip in clips if isinstance(clip, Clip) for name in clip.meta)
        remarks = [
            f"{path}: column {name!r} is stored as metadata; if it is what is said, which is personal data, "
            "call it 'text', or remove it"
            for name in columns
            if name.strip().lower() in (*TEXT_NAMES, TEXT)
        ]
    unread = [clip.missing[TEXT] for clip in clips if isinstance(clip, Clip) and TEXT in clip.missing]
    if unread:
        remarks.append(f"{plural(len(unread), 'transcript')} cannot be read; the first, {unread[0]}")
    known = [*(labels or ()), *(label_map or {})]
    clips, left_out = _apply_label_map([_with_label(clip, known) for clip in clips], label_map, path)
    splits = usual_names(sorted({clip.split for clip in clips if isinstance(clip, Clip)}))
    clips = [replace(c, split=splits[c.split]) if isinstance(c, Clip) else c for c in clips]
    found = {clip.label for clip in clips if isinstance(clip, Clip)}
    if not found:
        first = next((f"; the first: {clip.cause}" for clip in clips if isinstance(clip, BadSample)), "")
        raise ValueError(
            f"{path}: no clips left, {len(clips)} bad ones and {sum(left_out.values())} left out{first}"
        )
    if labels:
        classes = given_classes(labels)
    elif label_map:
        classes = given_classes(dict.fromkeys(filter(None, label_map.values())))
    else:
        classes = found_classes((clip.label for clip in clips if isinstance(clip, Clip)), str(path))
    if unknown := sorted(found - set(classes)):
        raise ValueError(
            f"{path}: label {unknown[0]!r} is not one of the classes {classes}; add it to labels"
        )
    _check_keys(clips, path)
    return ClipSource(
        clips=clips,
        classes=classes,
        provenance={
            "corpus": "recordings",
            "source": str(source),
            "pattern": pattern,
            "label_map": label_map or {name: name for name in classes},
            "left_out": dict(sorted((left_out + others).items())),
        },
        remarks=[
            *remarks,
            *filter(None, [renaming_message(splits, str(path))]),
            *(f"{path}: {count} clips labeled {name!r} are left out" for name, count in left_out.items()),
        ],
    )


def _with_label(clip: Clip | BadSample, known: list[str]) -> Clip | BadSample:
    """The clip with its label and split as text; a `BadSample` if one of them is missing.

    Args:
        clip: a clip whose label and split are those of the source.
        known: labels that are classes even if they look like a missing value ("None").
    """
    if isinstance(clip, BadSample):
        return clip
    try:
        name = text_of(clip.split)
        return replace(clip, label=label_name(clip.label, known), split=split_of(name, {name: name}))
    except ValueError as error:
        return BadSample(clip.key, str(error), clip.source)


def _apply_label_map(
    clips: list[Clip | BadSample], label_map: dict[str, str] | None, path: Path
) -> tuple[list[Clip | BadSample], Counter[str]]:
    """The clips with their classes as labels, without those left out; and how many are left out, by label."""
    left_out: Counter[str] = Counter()
    if label_map is None:
        return clips, left_out
    mapped: list[Clip | BadSample] = []
    for clip in clips:
        if isinstance(clip, BadSample):
            mapped.append(clip)
        elif clip.label not in label_map:
            raise ValueError(
                f"{clip.source}: label {clip.label!r} is not in the label map; add it there; to leave it "
                f"out, write {clip.label}="
            )
        elif label_map[clip.label]:
            mapped.append(replace(clip, label=label_map[clip.label]))
        else:
            left_out[clip.label] += 1
    return mapped, left_out


def _check_keys(clips: list[Clip | BadSample], path: Path) -> None:
    first: dict[str, str | None] = {}
    for clip in clips:
        if isinstance(clip, BadSample) and not clip.key:
            continue  # its key could not be read
        if clip.key in first:
            raise ValueError(
                f"{path}: {clip.source} and {first[clip.key]} both have the key {clip.key!r}; rename one, or "
                "name a group `key` in the pattern"
            )
        first[clip.key] = clip.source


# --- A table -------------------------------------------------------------------------------------


def _of_table(path: Path, modalities: Collection[str]) -> list[Clip | BadSample]:
    rows = read_rows(path, text=COLUMNS)
    wants_text = TEXT in modalities
    places = (*PATHS, TEXT) if wants_text else PATHS
    for number, row in enumerate(rows, start=1):
        missing = [name for name in REQUIRED if name not in row]
        if missing or not any(name in row for name in places):
            needed = f"{', '.join(REQUIRED)} and path, or audio and video{', or text' if wants_text else ''}"
            raise ValueError(f"{path}: row {number} has columns {list(row)}; expected {needed}")
    return [_row(row, path, wants_text, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _row(row: dict[str, Any], table: Path, wants_text: bool, at: str) -> Clip | BadSample:
    # null in JSON is the same as an empty cell.
    key, column = "", "key"
    try:
        key = key_of(text_of(row["key"]))
        column = "path"
        both = text_of(row.get(column))
        named = {}
        for column in ("audio", "video"):
            named[column] = text_of(row.get(column, both))
    except ValueError as error:
        return BadSample(key, f"its {column} {error}", at)
    files = {name: existing(table.parent / str(file)) if file else None for name, file in named.items()}
    if "video" not in row and both and Path(str(both)).suffix.lower() in SOUND:
        files["video"] = None
    try:
        span = _span(row)
    except ValueError as error:
        return BadSample(key, str(error), at)
    clip = Clip(
        key=key,
        split=row["split"],
        label=row["label"],
        audio=files["audio"],
        video=files["video"],
        audio_span=span if files["audio"] else None,
        video_span=span if files["video"] else None,
        # What is said is personal data, and no metadata.
        meta={name: value for name, value in row.items() if name not in COLUMNS and value is not None},
        source=at,
    )
    clip = _with_text(clip, row) if wants_text else clip
    if clip.text is not None:
        return clip
    if not clip.files:
        if TEXT in clip.missing:
            return BadSample(key, clip.missing[TEXT], at)
        fix = "path, audio, video or text" if TEXT in row else "path, audio or video"
        return BadSample(key, f"no file is named; fill {fix}", at)
    # One of the two files is enough here: the extraction knows whether it needs the other.
    if not any(file.is_file() for file in clip.files.values()):
        return BadSample(key, f"no such file {clip.audio or clip.video}", at)
    return clip


def _with_text(clip: Clip, row: dict[str, Any]) -> Clip:
    """The clip with the text of its row; without such a column, with what lies beside a whole clip."""
    if TEXT in row:
        try:
            return replace(clip, text=transcript_of(checked_text(row[TEXT])))
        except ValueError as error:
            return replace(clip, missing={TEXT: str(error)})
    if clip.audio_span or clip.video_span:
        return clip
    beside = (path.with_suffix(TRANSCRIPT) for path in clip.files.values())
    return with_transcript(clip, next((path for path in beside if path.is_file()), None))


def _span(row: dict[str, Any]) -> tuple[float, float] | None:
    begin, end = (row.get(name) for name in SPAN)
    given = [value not in (None, "") for value in (begin, end)]
    if not any(given):
        return None
    if not all(given):
        raise ValueError("begin and end go together; fill both, or neither")
    try:
        span = float(str(begin)), float(str(end))
    except ValueError:
        raise ValueError(f"begin {begin!r} and end {end!r} must be seconds") from None
    if not 0 <= span[0] < span[1] < float("inf"):
        raise ValueError(f"begin {begin} and end {end}: must be 0 <= begin < end, in seconds")
    return span
