"""A folder of recordings: which files are utterances, and what their paths say of them.

`recordings` describes such folders.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.format.schema import BadSample
from shards.safe_io.file_names import as_text, is_clutter, is_text
from shards.safe_io.printable import plural
from shards.sources.base import Clip, key_of
from shards.sources.reading.transcripts import read_transcript

SOUND = {
    *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a"),
    *(".mka", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"),
}
PICTURE = {
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
}
TRANSCRIPT = ".txt"
SPLIT = "all"


def files_in(
    root: Path, modalities: Collection[str], pattern: str | None
) -> tuple[list[Path], dict[Path, Path], Counter[str]]:
    """What a folder holds: the files of utterances, in order; transcripts; the numbers of others by suffix.

    An utterance is a recording or, if features are made of text alone, a transcript without one. Transcripts
    are by their path without suffix; none if no features are made of text.
    """
    # Hidden files, and those that operating systems leave behind, are not counted.
    shown = [
        path for path in sorted(_files_below(root)) if _is_shown(path.relative_to(root)) and path.is_file()
    ]
    known = SOUND | PICTURE
    texts = [path for path in shown if path.suffix.lower() == TRANSCRIPT]
    transcripts = {path.with_suffix(""): path for path in texts} if "text" in modalities else {}
    files = [path for path in shown if path.suffix.lower() in known]
    if set(modalities) == {"text"}:
        recorded = {path.with_suffix("") for path in files}
        # Files such as README.txt lie in the folder itself.
        files += [
            path
            for name, path in transcripts.items()
            if name not in recorded and (pattern is not None or path.parent != root)
        ]
    if not files:
        fix = "; .txt files alone are read with --audio none --video none --text ENCODER" if texts else ""
        raise ValueError(f"{root}: no recordings in it; known are {' '.join(sorted(known))}{fix}")
    known |= {TRANSCRIPT} if transcripts else set()
    others = Counter(path.suffix.lower() or "no suffix" for path in shown if path.suffix.lower() not in known)
    return sorted(files), transcripts, others


def _is_shown(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts) and not is_clutter(path.as_posix())


def clips_of(
    root: Path,
    files: list[Path],
    transcripts: Mapping[Path, Path],
    pattern: str | None,
    needs_label: bool = True,
) -> Iterator[Clip | BadSample]:
    """The utterances of a folder.

    Args:
        root: the folder.
        files: of the utterances.
        transcripts: by their path without suffix.
        pattern: as of `recordings.read`.
        needs_label: the pattern must have a group that is the label.

    Raises:
        ValueError: the pattern cannot be used, or a path does not name a label.
    """
    expression = _compiled(pattern, needs_label) if pattern is not None else None
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
        said = transcripts.get(path.with_suffix(""))
        sound = None if path == said else path
        picture = path if path.suffix.lower() in PICTURE else None
        yield with_transcript(Clip(key, split, label, sound, picture, meta=meta, source=str(path)), said)


def with_transcript(clip: Clip, path: Path | None) -> Clip:
    """The clip with what is said in it, if there is such a file."""
    if path is None:
        return clip
    try:
        return replace(clip, text=read_transcript(path))
    except ValueError as error:
        return replace(clip, missing=clip.missing | {"text": str(error)})


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


def remarks_on(
    root: Path, files: list[Path], transcripts: Mapping[Path, Path], others: Counter[str]
) -> list[str]:
    """Which files of a folder are left out."""
    used = {path.with_suffix("") for path in files}
    alone = [path for name, path in transcripts.items() if name not in used]
    remarks = []
    if alone:
        which = f"{plural(len(alone), '.txt file')} left out, {alone[0]} first"
        remarks.append(f"{root}: {which}: no recording of the same name lies beside it")
    if others:
        counts = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common())
        which = f"{others.total()} files are left out; their suffixes are not those of recordings"
        remarks.append(f"{root}: {which}: {counts}")
    return remarks


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


def _compiled(pattern: str, needs_label: bool) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r}: not a regular expression ({error})") from None
    if needs_label and "label" not in expression.groupindex:
        raise ValueError(f"pattern {pattern!r}: needs a group that is the label, (?P<label>...)")
    return expression
