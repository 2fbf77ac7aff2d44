"""The byte-offset index of a shard: where every array lies in the tar, so that one read fetches it.

An index is made by reading the finished tar, never from what the writer meant to write: it proves the write,
and it can be made for tars that others wrote. On disk it is an uncompressed `.npz`:

    key [U] str, label [U] int32, json.offset [U] int64, json.size [U] int32,
    offset.<modality> [U] int64 (first byte of the array's data; -1: missing),
    steps.<modality> [U] int32, column.<name> [U] (metadata that can be selected by).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.schema import Modality

# Transcripts and the like are metadata, but nobody selects by them, and fixed-width arrays would swell.
LONGEST_COLUMN = 128


@dataclass(frozen=True)
class ShardIndex:
    """Where the U utterances of a shard lie. Arrays as in the module's docstring."""

    key: np.ndarray
    label: np.ndarray
    json_offset: np.ndarray
    json_size: np.ndarray
    offset: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]


@dataclass
class _Row:
    """What the tar tells of one utterance: per modality (offset, steps), and its JSON member."""

    key: str
    arrays: dict[str, tuple[int, int]] = field(default_factory=dict)
    json: tuple[int, int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def index_tar(path: Path, modalities: dict[str, Modality], classes: list[str]) -> ShardIndex:
    """Index a shard by reading it.

    Args:
        path: a tar on local disk.
        modalities: dim and dtype that every array of the modality must have.
        classes: class names; labels become positions in it.

    Raises:
        ValueError: a member is damaged, has another shape or dtype, or an utterance has no label; names the
            tar and the key.
    """
    rows = list(_rows(path, modalities))
    position = {name: i for i, name in enumerate(classes)}
    for row in rows:
        if row.json is None or row.meta.get("label") not in position:
            raise ValueError(f"{path}: {row.key!r}: no JSON member with a label among {classes}")
    offset, steps = {}, {}
    for name in modalities:
        found = [row.arrays.get(name, (-1, 0)) for row in rows]
        offset[name] = np.array([o for o, _ in found], np.int64)
        steps[name] = np.array([t for _, t in found], np.int32)
    return ShardIndex(
        key=np.array([row.key for row in rows], dtype=np.str_),
        label=np.array([position[row.meta["label"]] for row in rows], np.int32),
        json_offset=np.array([row.json[0] for row in rows if row.json], np.int64),
        json_size=np.array([row.json[1] for row in rows if row.json], np.int32),
        offset=offset,
        steps=steps,
        columns=_columns([row.meta for row in rows]),
    )


def _rows(path: Path, modalities: dict[str, Modality]) -> Iterator[_Row]:
    """Group the members of a tar as webdataset does: consecutive members that share a key."""
    row: _Row | None = None
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, _, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if row is None or row.key != key:
                if row is not None:
                    yield row
                row = _Row(key)
            data = tar.extractfile(member)
            if data is None:
                raise ValueError(f"{path}: {member.name}: not a readable member")
            if extension == "json":
                row.json = (member.offset_data, member.size)
                row.meta = json.load(data)
            elif extension.endswith(".npy") and extension[:-4] in modalities:
                name = extension[:-4]
                header, steps = _npy_header(data, modalities[name], f"{path}: {member.name}")
                row.arrays[name] = (member.offset_data + header, steps)
    if row is not None:
        yield row


def _npy_header(file: Any, modality: Modality, at: str) -> tuple[int, int]:
    """Size of the .npy header in bytes, and the number of steps of the array that follows it."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran or dtype != np.dtype(modality.dtype) or len(shape) != 2 or shape[1] != modality.dim:
        raise ValueError(
            f"{at}: {dtype} array of shape {shape}{' in Fortran order' if fortran else ''}, "
            f"while the dataset holds {modality.dtype} [steps, {modality.dim}]; pack it again"
        )
    return file.tell(), shape[0]


def scalar_kind(value: Any) -> str | None:
    """Kind of a metadata value that can be selected by ("bool", "int", "float", "str"), else None."""
    if isinstance(value, str) and len(value) > LONGEST_COLUMN:
        return None
    # NumPy's fixed-width integers would not hold it.
    if isinstance(value, int) and abs(value) >= 2**63:
        return None
    kind = type(value).__name__
    return kind if kind in ("bool", "int", "float", "str") else None


def _columns(metas: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Columns whose value is a scalar of one kind in every utterance of the shard."""
    columns = {}
    for name in sorted(set.intersection(*(set(meta) for meta in metas)) - {"label"} if metas else ()):
        kinds = {scalar_kind(meta[name]) for meta in metas}
        if None not in kinds and (len(kinds) == 1 or kinds == {"int", "float"}):
            columns[name] = np.array([meta[name] for meta in metas])
    return columns


def save_index(index: ShardIndex, path: Path) -> None:
    """Write an index; the same index gives the same bytes."""
    arrays = {
        "key": index.key,
        "label": index.label,
        "json.offset": index.json_offset,
        "json.size": index.json_size,
        **{f"offset.{name}": array for name, array in index.offset.items()},
        **{f"steps.{name}": array for name, array in index.steps.items()},
        **{f"column.{name}": array for name, array in index.columns.items()},
    }
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_index(index_file: BinaryIO, modalities: dict[str, Modality], shard_bytes: int) -> ShardIndex:
    """Read an index and check that every array it names lies inside its shard.

    Args:
        index_file: the `.npz`.
        modalities: those to be read; others in the index are left out.
        shard_bytes: size of the shard.

    Raises:
        ValueError: not an index, or one of another shard.
    """
    try:
        with np.load(index_file, allow_pickle=False) as file:
            arrays = dict(file)
        utterances = len(arrays["key"])
        # A modality that none of the shard's utterances has may be left out.
        index = ShardIndex(
            key=arrays["key"],
            label=arrays["label"],
            json_offset=arrays["json.offset"],
            json_size=arrays["json.size"],
            offset={m: arrays.get(f"offset.{m}", np.full(utterances, -1)) for m in modalities},
            steps={m: arrays.get(f"steps.{m}", np.zeros(utterances, np.int32)) for m in modalities},
            columns={
                name.removeprefix("column."): a for name, a in arrays.items() if name.startswith("column.")
            },
        )
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{index_file.name}: not the index of a shard ({error}); pack the dataset again"
        ) from None
    for name, modality in modalities.items():
        size = index.steps[name].astype(np.int64) * (modality.dim * np.dtype(modality.dtype).itemsize)
        if np.any(index.offset[name] + size > shard_bytes):
            raise ValueError(
                f"{index_file.name}: {name} reaches past the end of its shard; pack the dataset again"
            )
    return index
