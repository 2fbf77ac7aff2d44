"""A table of utterances with the columns key, split, label, audio and video,
where audio and video are paths of `.npy` files, relative to the table; `modalities` names other columns.

Each file is an array [T, D]; an empty path means that the utterance lacks the modality. All further columns
are metadata. Splits named "valid", "validation" or "dev" become "val". A row without a key, a split or a
label is a bad utterance.

With another target than classes the values are in columns of their own, and no `label` is needed:

    awtpn pack clips.csv data/vad --format table --target regression --target_columns valence=1:5,arousal=1:5
    awtpn pack clips.csv data/emotions --format table --target multilabel --target_columns happy,sad
    awtpn pack clips.csv data/emotions --format table --target multilabel --target_columns emotions

`reading.typed_targets` says what the columns may hold. If the table has labels, they stay the classes, which
a run can choose with `--data.target label`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.format.labels import found_classes, given_classes, has_labels, label_name, text_of
from shards.format.schema import BadSample, Sample
from shards.format.targets import CLASSES
from shards.safe_io.expansion import load_npy
from shards.safe_io.file_names import existing
from shards.sources.base import Source, logger, named_splits, split_of
from shards.sources.reading.table_rows import read_rows
from shards.sources.reading.typed_targets import TypedTarget, column_bounds, typed_target

PLACES = ("key", "split")
REQUIRED = (*PLACES, "label")
USUAL = ("audio", "video")  # modalities, of which a table may lack one


def read(
    source: str | Path,
    labels: list[str] | None = None,
    modalities: Sequence[str] | None = None,
    target: Literal["classification", "regression", "multilabel"] = "classification",
    target_columns: list[str] | None = None,
) -> Source:
    """Read a table.

    A CSV column becomes integers, else floats, where every value of it that is not empty is written as one
    ("01" stays text).

    Args:
        source: a `.csv`, or a `.jsonl` with an object per line.
        labels: class names in label order; default those in the table, sorted (numbers by value). With a
            multilabel of one column, the labels of its sets.
        modalities: the columns of paths; default audio and video, or the one that is there.
        target: what is to be recognized: classification (the label), regression (values) or multilabel
            (several labels at once).
        target_columns: columns of values or of labels, each NAME or NAME=LOW:HIGH, such as valence=1:5; empty
            cells are missing values. The only column of a multilabel may hold sets: "happy;sad" or
            "happy:2;sad:0.5".

    Raises:
        ValueError: no such table, not one, a column is missing, or labels that differ only in case.
    """
    path = Path(source)
    named, modalities = modalities or (), modalities or USUAL
    bounds = column_bounds(target_columns, target, str(path))
    for name in bounds:
        if name in (*PLACES, *modalities):
            raise ValueError(f"{path}: --target_columns {name}: this column holds no target; name another")
    required = PLACES if bounds else REQUIRED
    rows = read_rows(path, text=(*REQUIRED, *modalities), raw=bounds)
    for number, row in enumerate(rows, start=1):
        missing = [name for name in required if name not in row]
        if missing or not any(name in row for name in modalities):
            needed = f"{', '.join(required)} and one of {', '.join(modalities)}, with paths of .npy files"
            if missing == ["label"]:
                needed += "; other columns are the target by --target and --target_columns"
            raise ValueError(f"{path}: row {number} has columns {list(row)}; expected {needed}")
    if absent := [name for name in named if not any(name in row for row in rows)]:
        raise ValueError(
            f"{path}: no row has {absent[0]!r}, which --modalities names; name its columns of paths"
        )
    own = None
    if bounds:
        sets = labels if target == "multilabel" and len(bounds) == 1 else None
        own = _own_target(rows, target, bounds, sets, path)
        labels = None if sets else labels
    classes = _classes(rows, labels, own, path)
    splits = named_splits((row["split"] for row in rows), str(path))
    for name, values in _paths_kept_as_text(rows, modalities).items():
        logger.warning(
            "%s: column %r names .npy files (%s), but only %s are features: it is kept as text; to make it "
            "features, name it among --modalities",
            path,
            name,
            values,
            " and ".join(modalities),
        )
    return Source(
        samples=(
            _sample(row, f"{path}: row {number}", path, modalities, classes, splits, own, number - 1)
            for number, row in enumerate(rows, start=1)
        ),
        classes=classes,
        provenance={"format": "table", "source": str(source)},
        total=len(rows),
        target=own.target if own else CLASSES,
    )


def _own_target(
    rows: Sequence[Mapping[str, Any]],
    kind: str,
    bounds: Mapping[str, list[float] | None],
    labels: list[str] | None,
    path: Path,
) -> TypedTarget:
    """The target that columns of the table hold.

    Raises:
        ValueError: no row has a column, or no value of any; or a label of a set is called as a column.
    """
    there = list(dict.fromkeys(name for row in rows for name in row))
    if absent := [name for name in bounds if name not in there]:
        raise ValueError(
            f"{path}: no column {absent[0]!r}, which --target_columns names; it has {', '.join(there)}"
        )
    own = typed_target(
        kind, {name: [row.get(name) for row in rows] for name in bounds}, bounds, str(path), labels
    )
    if twice := [name for name in own.target.columns if name in there and name not in bounds]:
        raise ValueError(f"{path}: the label {twice[0]!r} is also a column; rename one of them")
    return own


def _classes(
    rows: Iterable[Mapping[str, Any]], labels: list[str] | None, own: TypedTarget | None, path: Path
) -> list[str]:
    """The classes; none if the target is another one and no row has a label.

    Raises:
        ValueError: names of classes without labels; labels that differ only in case, or none at all.
    """
    given = [row["label"] for row in rows if "label" in row]
    if own and not has_labels(given):
        if labels:
            raise ValueError(f"{path}: --labels names classes, but no row has a label; leave --labels out")
        return []
    return given_classes(labels) if labels else found_classes(given, str(path))


def _sample(
    row: dict[str, Any],
    at: str,
    table: Path,
    modalities: Sequence[str],
    classes: Sequence[str],
    splits: Mapping[str, str],
    own: TypedTarget | None,
    place: int,
) -> Sample | BadSample:
    key = ""
    try:
        key = text_of(row["key"])
        label = _label(row, classes, own)
        split = split_of(row["split"], splits)
        files = {name: text_of(row.get(name)) for name in modalities}
        values = own.meta_of(place) if own else {}
    except ValueError as error:
        return BadSample(key, str(error), at)
    features: dict[str, np.ndarray | None] = {}
    for name in modalities:
        if not files[name]:
            features[name] = None
            continue
        path = existing(table.parent / files[name])
        try:
            features[name] = load_npy(path)
        except FileNotFoundError:
            return BadSample(key, f"{name}: no such file {path}", at)
        except (ValueError, OSError) as error:
            return BadSample(key, f"{name}: {error}", at)
    meta = {
        name: value
        for name, value in row.items()
        if name not in (*REQUIRED, *modalities) and value is not None
    }
    return Sample(key, split, label, features, meta | values, at)


def _label(row: Mapping[str, Any], classes: Sequence[str], own: TypedTarget | None) -> str | None:
    """The class of a row; None in a table without classes.

    Raises:
        ValueError: it has none, though others have.
    """
    if own is None:
        return label_name(row["label"], classes)
    if not classes:
        return None
    try:
        return label_name(row.get("label"), classes)
    except ValueError as error:
        raise ValueError(f"{error}; to pack no classes, rename the column 'label'") from None


def _paths_kept_as_text(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> dict[str, str]:
    """Columns that are not modalities but hold paths of `.npy` files, and the first path of each."""
    found: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if name not in (*REQUIRED, *modalities) and isinstance(value, str) and value.endswith(".npy"):
                found.setdefault(name, value)
    return found
