"""A table of recordings: which rows are utterances, and where their files are.

`recordings` describes such tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.format.labels import text_of
from shards.format.schema import BadSample
from shards.safe_io.file_names import existing
from shards.sources.base import Clip, key_of
from shards.sources.reading.recordings_folder import PICTURE, SOUND, TRANSCRIPT, files_in, with_transcript
from shards.sources.reading.table_rows import read_rows
from shards.sources.reading.transcripts import checked_text, transcript_of

REQUIRED = ("key", "split", "label")
PATHS = ("path", "audio", "video")
SPAN = ("begin", "end")
TEXT = "text"
COLUMNS = (*REQUIRED, *PATHS, *SPAN, TEXT)
# Usual names of columns with what is said; of these, only `text` is read as such.
TEXT_NAMES = ("transcript", "transcription", "utterance", "sentence", "raw_text")
# Columns of the labels of MER, which mean ours where a table lacks those.
ALIASES = {"name": "key", "discrete": "label"}


@dataclass(frozen=True)
class ClipFolder:
    """A folder of clips that have the names of a table's keys.

    Attributes:
        root: the folder.
        clips: its recordings by name without suffix; of several in one folder the ones with pictures first.
    """

    root: Path
    clips: dict[str, list[Path]]


def open_clip_folder(root: Path) -> ClipFolder:
    """The clips in a folder and in those below it.

    Raises:
        ValueError: no such folder, or no recordings in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder of clips")
    clips: dict[str, list[Path]] = defaultdict(list)
    files, *_ = files_in(root, ("audio", "video"), None)
    for path in sorted(files, key=lambda path: path.suffix.lower() not in PICTURE):
        clips[text_of(path.stem)].append(path)
    return ClipFolder(root, clips)


def clips_of_table(
    path: Path,
    modalities: Collection[str],
    targets: Collection[str] = (),
    clip_folder: Path | None = None,
    split: str | None = None,
) -> list[Clip | BadSample]:
    """The utterances of a table.

    Args:
        path: the table.
        modalities: of which features are made.
        targets: columns of a target other than classes, which stay as they are written; with them utterances
            need no label.
        clip_folder: with clips that have the names of the keys, of a table without paths.
        split: of all rows, of a table without this column.

    Returns:
        A clip per row; its label is the cell, None where there is no such column.

    Raises:
        ValueError: no such table, a column missing, or one that an option replaces.
    """
    if absent := [name for name in targets if name in (*REQUIRED, *PATHS, *SPAN, TEXT)]:
        raise ValueError(f"{path}: --target_columns {absent[0]}: this column holds no target; name another")
    rows = _rows(path, targets)
    if split is not None:
        _refuse_columns(path, rows, ("split",), "--split")
        rows = [row | {"split": split} for row in rows]
    folder = None
    if clip_folder is not None:
        _refuse_columns(path, rows, PATHS, "--clip_folder")
        folder = open_clip_folder(clip_folder)
    wants_text = TEXT in modalities
    required = REQUIRED[:2] if targets else REQUIRED
    places = (*PATHS, TEXT) if wants_text else PATHS
    for number, row in enumerate(rows, start=1):
        missing = [name for name in required if name not in row]
        if missing or not (folder or any(name in row for name in places)):
            needed = f"{', '.join(required)} and path, or audio and video{', or text' if wants_text else ''}"
            fix = " (--split NAME puts all rows into one split)" if missing == ["split"] else ""
            raise ValueError(f"{path}: row {number} has columns {list(row)}; expected {needed}{fix}")
    return [
        _row(row, path, folder, wants_text, f"{path}: row {number}")
        for number, row in enumerate(rows, start=1)
    ]


def _rows(path: Path, raw: Collection[str]) -> list[dict[str, Any]]:
    """The rows of a table; columns with another name of ours have ours."""
    rows = read_rows(path, COLUMNS, raw)
    there = set().union(*rows) if rows else set()
    renamed = {alias: name for alias, name in ALIASES.items() if alias in there and name not in there}
    if not renamed:
        return rows
    # Once more, since all of these stay text ("007").
    rows = read_rows(path, COLUMNS, (*raw, *renamed))
    return [{renamed.get(name, name): value for name, value in row.items()} for row in rows]


def _refuse_columns(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str], option: str) -> None:
    there = {name for row in rows for name in row}
    if found := [name for name in names if name in there]:
        raise ValueError(f"{path}: has a column {found[0]!r}; leave {option} out, or the column")


def _row(
    row: dict[str, Any], table: Path, folder: ClipFolder | None, wants_text: bool, at: str
) -> Clip | BadSample:
    key = ""
    try:
        name = _text(row, "key")
        key = key_of(name)
        files = _named_files(row, table) if folder is None else _files_of_key(name, folder)
        span = _span(row)
    except ValueError as error:
        return BadSample(key, str(error), at)
    clip = Clip(
        key=key,
        split=row["split"],
        label=row.get("label"),
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


def _text(row: Mapping[str, Any], column: str, default: Any = None) -> str:
    """A cell as text; null in JSON is the same as an empty cell."""
    try:
        return text_of(row.get(column, default))
    except ValueError as error:
        raise ValueError(f"its {column} {error}") from None


def _named_files(row: Mapping[str, Any], table: Path) -> dict[str, Path | None]:
    """The files of sound and picture that a row names.

    Raises:
        ValueError: a cell is not a single value.
    """
    both = _text(row, "path")
    named = {modality: _text(row, modality, both) for modality in ("audio", "video")}
    files = {modality: existing(table.parent / file) if file else None for modality, file in named.items()}
    if "video" not in row and both and Path(both).suffix.lower() in SOUND:
        files["video"] = None
    return files


def _files_of_key(name: str, folder: ClipFolder) -> dict[str, Path | None]:
    """The files of sound and picture that have the name of a key.

    Raises:
        ValueError: there are none, or some in two folders.
    """
    found = folder.clips.get(name, [])
    if not found:
        raise ValueError(f"no clip of this name in {folder.root}")
    if other := next((path for path in found if path.parent != found[0].parent), None):
        raise ValueError(f"two clips have its name: {found[0]} and {other}; rename one")
    return {"audio": found[0], "video": found[0] if found[0].suffix.lower() in PICTURE else None}


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
