"""A table of utterances with the columns key, split, label, audio and video,
where audio and video are paths of `.npy` files, relative to the table; `modalities` names other columns.

Each file is an array [T, D]; an empty path means that the utterance lacks the modality. All further columns
are metadata. Splits named "valid", "validation" or "dev" become "val". A row without a key, a split or a
label is a bad utterance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.labels import found_classes, given_classes, label_name, text_of
from shards.format.schema import BadSample, Sample
from shards.safe_io.expansion import load_npy
from shards.safe_io.file_names import existing
from shards.sources.base import Source, logger, named_splits, split_of
from shards.sources.reading.table_rows import read_rows

REQUIRED = ("key", "split", "label")
USUAL = ("audio", "video")  # modalities, of which a table may lack one


def read(
    source: str | Path, labels: list[str] | None = None, modalities: Sequence[str] | None = None
) -> Source:
    """Read a table.

    A CSV column becomes integers, else floats, where every value of it is written as one ("01" stays text).

    Args:
        source: a `.csv`, or a `.jsonl` with an object per line.
        labels: class names in label order; default those in the table, sorted (numbers by value).
        modalities: the columns of paths; default audio and video, or the one that is there.

    Raises:
        ValueError: no such table, not one, a column is missing, or labels that differ only in case.
    """
    path = Path(source)
    named, modalities = modalities or (), modalities or USUAL
    rows = read_rows(path, text=(*REQUIRED, *modalities))
    for number, row in enumerate(rows, start=1):
        missing = [name for name in REQUIRED if name not in row]
        if missing or not any(name in row for name in modalities):
            needed = f"{', '.join(REQUIRED)} and one of {', '.join(modalities)}"
            raise ValueError(f"{path}: row {number} has columns {list(row)}; expected {needed}")
    if absent := [name for name in named if not any(name in row for row in rows)]:
        raise ValueError(
            f"{path}: no row has {absent[0]!r}, which --modalities names; name its columns of paths"
        )
    classes = given_classes(labels) if labels else found_classes((row["label"] for row in rows), str(path))
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
            _sample(row, f"{path}: row {number}", path, modalities, classes, splits)
            for number, row in enumerate(rows, start=1)
        ),
        classes=classes,
        provenance={"format": "table", "source": str(source)},
        total=len(rows),
    )


def _sample(
    row: dict[str, Any],
    at: str,
    table: Path,
    modalities: Sequence[str],
    classes: Sequence[str],
    splits: Mapping[str, str],
) -> Sample | BadSample:
    key = ""
    try:
        key = text_of(row["key"])
        label = label_name(row["label"], classes)
        split = split_of(row["split"], splits)
        files = {name: text_of(row.get(name)) for name in modalities}
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
    return Sample(key, split, label, features, meta, at)


def _paths_kept_as_text(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> dict[str, str]:
    """Columns that are not modalities but hold paths of `.npy` files, and the first path of each."""
    found: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if name not in (*REQUIRED, *modalities) and isinstance(value, str) and value.endswith(".npy"):
                found.setdefault(name, value)
    return found
