"""Recordings of your own: a table of clips with the columns key, split, label and path,
or a folder of clips whose paths name the label: [split/]label/clip.mp4, or as --pattern says.

A table (`.csv`, or `.jsonl` with an object per line) has the columns

    key, split, label     name of the utterance, its split and its class; dots, slashes and spaces in a key
                          become "_"
    path                  the recording, relative to the table, for both sound and picture
    audio, video          optional, in place of path: separate files of the two; empty: there is none
    begin, end            optional: the part of it to use, in seconds; empty: all

and further columns, which are kept as metadata. In a folder the path names the class:

    ROOT/<label>/clip.mp4                 one split, "all"
    ROOT/<split>/<label>/clip.mp4         splits by folder

or a regular expression does, which is searched in each clip's path below ROOT ("a/b.mp4"). Its named groups
are `label`, and optionally `split` and `key`; all others are metadata. For CREMA-D and RAVDESS:

    --pattern '(?P<actor>\\d+)_\\w+_(?P<label>[A-Z]{3})_' --label_map ANG=anger,DIS=disgust,FEA=fear,...
    --pattern '01-01-(?P<label>..)-..-..-..-(?P<actor>..)' --label_map 01=neutral,02=calm,03=happy,...

A label map renames labels; clips of a label mapped to nothing (`XXX=`) are left out, and a label that it
lacks is an error. From recordings to a trained model:

    awtpn extract recordings data/mine --format recordings
    awtpn shards info data/mine
    awtpn train --data.train data/mine
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.format.labels import found_classes, given_classes, label_name, text_of
from shards.format.schema import BadSample
from shards.format.split_names import renaming_message, usual_names
from shards.safe_io.file_names import as_text, existing, is_clutter, is_text
from shards.sources.base import Clip, ClipSource, key_of, split_of
from shards.sources.table_rows import read_rows

SOUND = {
    *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a"),
    *(".mka", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"),
}
PICTURE = {
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
}
REQUIRED = ("key", "split", "label")
PATHS = ("path", "audio", "video")
SPAN = ("begin", "end")
SPLIT = "all"


def read(
    source: str | Path,
    labels: list[str] | None = None,
    pattern: str | None = None,
    label_map: dict[str, str] | None = None,
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

    Returns:
        A clip per row or file. It is a `BadSample` if it has no label, its files are missing, or the pattern
        does not match.

    Raises:
        ValueError: no such source, a column missing, a pattern that matches nothing, an unknown label, or one
            key for two files; names the file and the fix.
    """
    path = Path(source)
    # As labels of clips, which may have another Unicode form in folders and tables.
    labels = labels and [text_of(name) for name in labels]
    label_map = label_map and {text_of(name): text_of(to) for name, to in label_map.items()}
    others: Counter[str] = Counter()
    if path.is_dir():
        files, others = _recordings_in(path)
        clips = list(_of_folder(path, files, pattern))
    elif pattern is not None:
        raise ValueError(f"{path}: pattern reads the names in a folder, which this is not; leave it out")
    else:
        clips = _of_table(path)
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
            *([_others_message(path, others)] if others else []),
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


# --- A folder ------------------------------------------------------------------------------------


def _recordings_in(root: Path) -> tuple[list[Path], Counter[str]]:
    """The recordings in a folder, in order; and the numbers of other files by suffix."""
    # Hidden files, and those that operating systems leave behind, are not counted.
    shown = [
        path for path in sorted(_files_below(root)) if _is_shown(path.relative_to(root)) and path.is_file()
    ]
    known = SOUND | PICTURE
    files = [path for path in shown if path.suffix.lower() in known]
    if not files:
        raise ValueError(f"{root}: no recordings in it; known are {' '.join(sorted(known))}")
    return files, Counter(
        path.suffix.lower() or "no suffix" for path in shown if path.suffix.lower() not in known
    )


def _is_shown(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts) and not is_clutter(path.as_posix())


def _of_folder(root: Path, files: list[Path], pattern: str | None) -> Iterator[Clip | BadSample]:
    expression = _compiled(pattern) if pattern is not None else None
    matches = (
        {path: expression.search(path.relative_to(root).as_posix()) for path in files} if expression else {}
    )
    if expression and not any(matches.values()):
        raise ValueError(
            f"{root}: pattern {pattern!r} matches none of its {len(files)} clips, such as {files[0]}"
        )
    for path in files:
        key = key_of(path.relative_to(root).with_suffix("").as_posix())
        if expression is None:
            split, label = _of_path(path, root)
            _check_text(path, root, {"folder": f"{split}/{label}"})
            meta: dict[str, Any] = {}
        else:
            match = matches[path]
            if match is None:
                yield BadSample(key, f"the pattern {pattern!r} does not match its path", str(path))
                continue
            meta = {name: value for name, value in match.groupdict().items() if value is not None}
            _check_text(path, root, {name: value for name, value in meta.items() if name != "key"})
            split, label, key = meta.pop("split", SPLIT), meta.pop("label", ""), key_of(meta.pop("key", key))
        picture = path if path.suffix.lower() in PICTURE else None
        yield Clip(key, split, label, audio=path, video=picture, meta=meta, source=str(path))


def _check_text(path: Path, root: Path, names: dict[str, str]) -> None:
    """Raise ValueError if the name of a class, or metadata, is no text."""
    for what, value in names.items():
        if not is_text(value):
            at = path.parent if what == "folder" else path
            which = "the name of a class folder" if what == "folder" else f"its {what} {as_text(value)}"
            raise ValueError(
                f"{as_text(str(at))}: {which} is not in UTF-8; rename it, for instance with: convmv -f "
                f"latin1 -t utf8 -r --notest {as_text(str(root))}"
            )


def _others_message(root: Path, others: Counter[str]) -> str:
    counts = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common())
    return (
        f"{root}: {others.total()} files are left out; their suffixes are not those of recordings: {counts}"
    )


def _files_below(root: Path) -> Iterator[Path]:
    """All files in a folder and in those below it, linked ones too."""
    for folder, inner, names in os.walk(root, followlinks=True):
        here = Path(folder)
        # Following a link to a folder above would never end.
        above = {path.resolve() for path in (here, *here.parents) if path.is_relative_to(root)}
        inner[:] = [name for name in inner if (here / name).resolve() not in above]
        yield from (here / name for name in names)


def _of_path(path: Path, root: Path) -> tuple[str, str]:
    """Split and label of a clip, by its folders."""
    folders = path.relative_to(root).parts[:-1]
    if len(folders) == 1:
        return SPLIT, folders[0]
    if len(folders) == 2:
        return folders[0], folders[1]
    raise ValueError(
        f"{path}: must lie in {root}/<label> or {root}/<split>/<label>; else say where the label is in its "
        "path with --pattern '...(?P<label>...)...'"
    )


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r}: not a regular expression ({error})") from None
    if "label" not in expression.groupindex:
        raise ValueError(f"pattern {pattern!r}: needs a group that is the label, (?P<label>...)")
    return expression


# --- A table -------------------------------------------------------------------------------------


def _of_table(path: Path) -> list[Clip | BadSample]:
    rows = read_rows(path, text=(*REQUIRED, *PATHS, *SPAN))
    for number, row in enumerate(rows, start=1):
        missing = [name for name in REQUIRED if name not in row]
        if missing or not any(name in row for name in PATHS):
            needed = f"{', '.join(REQUIRED)} and path, or audio and video"
            raise ValueError(f"{path}: row {number} has columns {list(row)}; expected {needed}")
    return [_row(row, path, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _row(row: dict[str, Any], table: Path, at: str) -> Clip | BadSample:
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
    if not any(files.values()):
        return BadSample(key, "no file is named; fill path, audio or video", at)
    # One of the two files is enough here: the extraction knows whether it needs the other.
    if not any(file.is_file() for file in files.values() if file):
        return BadSample(key, f"no such file {files['audio'] or files['video']}", at)
    try:
        span = _span(row)
    except ValueError as error:
        return BadSample(key, str(error), at)
    own = {*REQUIRED, *PATHS, *SPAN}
    meta = {name: value for name, value in row.items() if name not in own and value is not None}
    return Clip(
        key=key,
        split=row["split"],
        label=row["label"],
        audio=files["audio"],
        video=files["video"],
        audio_span=span if files["audio"] else None,
        video_span=span if files["video"] else None,
        meta=meta,
        source=at,
    )


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
