"""Recordings of your own: a table of clips with the columns key, split, label and path, audio, video or text,
or a folder of clips whose paths name the label: [split/]label/clip.mp4, or as --pattern says.

A table (`.csv`, or `.jsonl` with an object per line) has the columns

    key, split, label     name of the utterance, its split and its class; dots, slashes and spaces in a key
                          become "_"
    path                  the recording, relative to the table, for both sound and picture
    audio, video          optional, in place of path: separate files of the two; empty: there is none
    begin, end            optional: the part of it to use, in seconds; empty: all
    text                  optional: what is said; an utterance with a text needs no recording

and further columns, which are kept as metadata. Of a table without paths, `--clip_folder` names a folder
with a clip for each key, here or in folders below it; of one without `split`, `--split` names that of all
rows. In a folder the path names the class:

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

With another target than classes, its values are in columns of the table (or in groups of the pattern), and no
label is needed; `reading.typed_targets` says what they may hold. Labels that are there stay the classes:

    awtpn extract clips.csv data/vad --target regression --target_columns valence=1:5,arousal=1:5
    awtpn extract clips.csv data/emotions --target multilabel --target_columns happy,sad

The challenges MER 2023 and 2024 (https://github.com/zeroQiaoba/MERTools) give such tables, with the columns
name, discrete and valence, which are read as key, label and metadata, and folders of clips NAME.avi or
NAME.mp4. Of MER 2023, whose splits have a table each (train-label.csv, test1-label.csv, ...), write the rows
into one table with a column `split`; the third test has no valence. (The toolkit's label-6way.npz holds
pickled objects, which are never loaded.)

    awtpn extract MER2024/label-disdim.csv data/mer --clip_folder MER2024/video-labeled --split train \\
        --target regression --target_columns valence
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from shards.format.labels import found_classes, given_classes, has_labels, label_name, text_of
from shards.format.schema import BadSample
from shards.format.split_names import renaming_message, usual_names
from shards.format.targets import CLASSES, Target
from shards.safe_io.printable import plural
from shards.sources.base import Clip, ClipSource, split_of
from shards.sources.reading.recordings_folder import clips_of, files_in, remarks_on
from shards.sources.reading.recordings_table import TEXT, TEXT_NAMES, clips_of_table
from shards.sources.reading.typed_targets import column_bounds, typed_target


def read(
    source: str | Path,
    labels: list[str] | None = None,
    pattern: str | None = None,
    label_map: dict[str, str] | None = None,
    modalities: Collection[str] = ("audio", "video", TEXT),
    target: Literal["classification", "regression", "multilabel"] = "classification",
    target_columns: list[str] | None = None,
    clip_folder: str | Path | None = None,
    split: str | None = None,
) -> ClipSource:
    """Read a table or a folder of recordings.

    Args:
        source: the table (.csv, .jsonl), or the folder.
        labels: class names in label order; default those of the label map in its order, else those found,
            sorted. With a multilabel of one column, the labels of its sets.
        pattern: of a folder: regular expression that is searched in each clip's path; its named groups are
            label, and optionally split, key and metadata.
        label_map: labels as found, and the classes that they become; clips of a label mapped to nothing
            (XXX=) are left out.
        modalities: of which features are to be made; files of others are not read.
        target: what is to be recognized: classification (the label), regression (values), or multilabel
            (several labels at once).
        target_columns: columns of values or of labels, each NAME or NAME=LOW:HIGH, such as valence=1:5; empty
            cells are missing values. The only column of a multilabel may hold sets: "happy;sad" or
            "happy:2;sad:0.5".
        clip_folder: of a table without paths, the folder of its clips, each with the name of a key.
        split: of a table without this column, the split of all rows.

    Returns:
        A clip per row or file. It is a `BadSample` if it has no label or target, its files are missing, or
        the pattern does not match. A transcript that cannot be read is `missing`.

    Raises:
        ValueError: no such source, a column missing, a pattern that matches nothing, an unknown label, or one
            key for two files; names the file and the fix.
    """
    path = Path(source)
    bounds = column_bounds(target_columns, target, str(path))
    # As labels of clips, which may have another Unicode form in folders and tables.
    labels = labels and [text_of(name) for name in labels]
    label_map = label_map and {text_of(name): text_of(to) for name, to in label_map.items()}
    others: Counter[str] = Counter()
    remarks = []
    if path.is_dir():
        for option, value in (("clip_folder", clip_folder), ("split", split)):
            if value is not None:
                raise ValueError(f"{path}: --{option} belongs to a table, which this is not; leave it out")
        files, transcripts, others = files_in(path, modalities, pattern)
        clips = list(clips_of(path, files, transcripts, pattern, needs_label=not bounds))
        remarks = remarks_on(path, files, transcripts, others)
    elif pattern is not None:
        raise ValueError(f"{path}: pattern reads the names in a folder, which this is not; leave it out")
    else:
        clips = clips_of_table(path, modalities, bounds, Path(clip_folder) if clip_folder else None, split)
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
    own = CLASSES
    if bounds:
        sets = labels if target == "multilabel" and len(bounds) == 1 else None
        clips, own = _with_target(clips, target, bounds, sets, path)
        labels = None if sets else labels
    has_classes = not bounds or has_labels(clip.label for clip in clips if isinstance(clip, Clip))
    if not has_classes and (labels or label_map):
        raise ValueError(f"{path}: --labels and --label_map name classes, but no clip has a label")
    known = [*(labels or ()), *(label_map or {})] if has_classes else None
    clips, left_out = _apply_label_map([_checked(clip, known) for clip in clips], label_map, path)
    splits = usual_names(sorted({clip.split for clip in clips if isinstance(clip, Clip)}))
    clips = [replace(c, split=splits[c.split]) if isinstance(c, Clip) else c for c in clips]
    kept = [clip for clip in clips if isinstance(clip, Clip)]
    if not kept:
        first = next((f"; the first: {clip.cause}" for clip in clips if isinstance(clip, BadSample)), "")
        raise ValueError(
            f"{path}: no clips left, {len(clips)} bad ones and {sum(left_out.values())} left out{first}"
        )
    classes = _classes(kept, labels, label_map, path) if has_classes else []
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
        target=own,
    )


def _with_target(
    clips: list[Clip | BadSample],
    kind: str,
    bounds: Mapping[str, list[float] | None],
    labels: list[str] | None,
    path: Path,
) -> tuple[list[Clip | BadSample], Target]:
    """The clips with the values of a target as metadata, and the target; bad values make bad clips.

    Args:
        clips: with the columns of the target as they are written.
        kind: "regression" or "multilabel".
        bounds: range by column.
        labels: of sets, where the column holds them.
        path: of the source.

    Raises:
        ValueError: no clip has one of the columns, or no value of any; or a label of a set has the name of
            another column.
    """
    places = [i for i, clip in enumerate(clips) if isinstance(clip, Clip)]
    metas = [clip.meta for clip in clips if isinstance(clip, Clip)]
    if not metas:
        return clips, CLASSES
    there = list(dict.fromkeys(name for meta in metas for name in meta))
    if absent := [name for name in bounds if name not in there]:
        raise ValueError(
            f"{path}: no value of {absent[0]!r}, which --target_columns names; there are values of "
            f"{', '.join(there) or 'nothing'}"
        )
    given = {name: [meta.get(name) for meta in metas] for name in bounds}
    own = typed_target(kind, given, bounds, str(path), labels)
    if twice := [name for name in own.target.columns if name in there and name not in bounds]:
        raise ValueError(f"{path}: the label {twice[0]!r} is also a column; rename one of them")
    found = list(clips)
    for number, (place, meta) in enumerate(zip(places, metas, strict=True)):
        clip = clips[place]
        assert isinstance(clip, Clip)
        others = {name: value for name, value in meta.items() if name not in bounds}
        try:
            found[place] = replace(clip, meta=others | own.meta_of(number))
        except ValueError as error:
            found[place] = BadSample(clip.key, str(error), clip.source)
    return found, own.target


def _classes(
    clips: list[Clip], labels: list[str] | None, label_map: dict[str, str] | None, path: Path
) -> list[str]:
    """The classes of clips that have labels.

    Raises:
        ValueError: a label is none of the given classes.
    """
    if labels:
        classes = given_classes(labels)
    elif label_map:
        classes = given_classes(dict.fromkeys(filter(None, label_map.values())))
    else:
        classes = found_classes((clip.label for clip in clips), str(path))
    if unknown := sorted({str(clip.label) for clip in clips} - set(classes)):
        raise ValueError(
            f"{path}: label {unknown[0]!r} is not one of the classes {classes}; add it to labels"
        )
    return classes


def _checked(clip: Clip | BadSample, known: list[str] | None) -> Clip | BadSample:
    """The clip with its label and split as text; a `BadSample` if one of them is missing.

    Args:
        clip: a clip whose label and split are those of the source.
        known: labels that are classes even if they look like a missing value ("None"); None if clips have no
            classes.
    """
    if isinstance(clip, BadSample):
        return clip
    try:
        name = text_of(clip.split)
        label = None if known is None else label_name(clip.label, known)
        return replace(clip, label=label, split=split_of(name, {name: name}))
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
        elif clip.label is None or clip.label not in label_map:
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
