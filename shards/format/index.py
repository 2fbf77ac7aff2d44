"""The byte-offset index of a shard: where each array is in the tar, so that one read fetches it.

An index is always made by reading the finished tar, and never from what the writer intended. So it checks
what was written, and it can be made for tars of other programs too. Packing and `awtpn shards index` make it,
the reader uses it. On disk it is an uncompressed `.npz`:

    key [U] str, label [U] int32, json.offset [U] int64, json.size [U] int32,
    offset.<modality> [U] int64 (first byte of the array's data; -1: missing),
    steps.<modality> [U] int32 (time steps), crc.<modality> [U] uint32 (CRC-32 of the array's data),
    crc.json [U] uint32, form.<modality> str ("float16 [steps, 40]"),
    column.<name> [U] (metadata to select by; float64 with NaN where utterances lack a number), classes [C]
    str (class names; labels are positions in them; none and all labels 0 in a dataset without classes).

`index_file` writes and reads it.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.columns import index_columns
from shards.format.schema import Modality
from shards.format.tar_members import Member, members
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.expansion import read_npy_header

# The data of a `.npy` member begin at a multiple of this many bytes: its header is padded to 16 bytes (today
# to 64), and tar members begin at multiples of 512. `index_file` refuses other offsets as damaged or forged.
ALIGNMENT = 16


@dataclass(frozen=True)
class ShardIndex:
    """Where the U utterances of a shard are; arrays as in the module's docstring.

    An index of an early version has no `crc`, `form` and `classes`.
    """

    key: np.ndarray
    label: np.ndarray
    json_offset: np.ndarray
    json_size: np.ndarray
    offset: dict[str, np.ndarray]
    steps: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    crc: dict[str, np.ndarray] = field(default_factory=dict)
    form: dict[str, np.ndarray] = field(default_factory=dict)
    classes: np.ndarray | None = None


@dataclass(frozen=True)
class ArrayAt:
    """An array in a tar: the offset of its data in bytes, shape, dtype, order, and the CRC-32 of the data."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    crc: int


@dataclass
class Row:
    """The members of one utterance in a tar.

    Attributes:
        key: name of the utterance.
        arrays: by modality.
        json: offset, size and CRC-32 of its JSON member; the size is 0 if it has none.
        meta: content of that member.
    """

    key: str
    arrays: dict[str, ArrayAt] = field(default_factory=dict)
    json: tuple[int, int, int] = (0, 0, 0)
    meta: dict[str, Any] = field(default_factory=dict)


def index_tar(path: Path, modalities: dict[str, Modality], classes: list[str]) -> ShardIndex:
    """Make the index of a shard that packing wrote, by reading it.

    Args:
        path: a tar on local disk.
        modalities: dim and dtype that every array of the modality must have.
        classes: class names; labels become positions in it.

    Raises:
        ValueError: a member is damaged, has another shape or dtype, or an utterance has no label; names the
            tar and the key.
    """
    rows: dict[str, Row] = {}
    for member in members(path):
        row = rows.setdefault(member.key, Row(member.key))
        name, _, kind = member.extension.rpartition(".")
        if member.extension == "json":
            add_json(row, member, path)
        elif kind == "npy" and name in modalities:
            add_array(row, name, member, path)
            _check_form(row.arrays[name], modalities[name], f"{path}: {member.name}")
    position = {name: i for i, name in enumerate(classes)}
    for row in rows.values():
        if classes and row.meta.get("label") not in position:
            raise ValueError(f"{path}: {row.key!r}: no JSON member with a label among {classes}")
    labels = [position[row.meta["label"]] if classes else 0 for row in rows.values()]
    return build_index(list(rows.values()), labels, modalities, classes)


def build_index(
    rows: list[Row], labels: list[int], modalities: dict[str, Modality], classes: list[str]
) -> ShardIndex:
    """The index of these rows, in their order; `labels` are positions in `classes`, or 0 without these."""
    offset, steps, crc = {}, {}, {}
    for name in modalities:
        found = [row.arrays.get(name) for row in rows]
        offset[name] = np.array([-1 if a is None else a.offset for a in found], np.int64)
        steps[name] = np.array([0 if a is None else a.shape[0] for a in found], np.int32)
        crc[name] = np.array([0 if a is None else a.crc for a in found], np.uint32)
    return ShardIndex(
        key=np.array([row.key for row in rows], dtype=np.str_),
        label=np.array(labels, np.int32),
        json_offset=np.array([row.json[0] for row in rows], np.int64),
        json_size=np.array([row.json[1] for row in rows], np.int32),
        offset=offset,
        steps=steps,
        columns=index_columns([row.meta for row in rows]),
        crc=crc | {"json": np.array([row.json[2] for row in rows], np.uint32)},
        form={name: np.array(form_of(modality)) for name, modality in modalities.items()},
        classes=np.array(classes, dtype=np.str_),
    )


def add_json(row: Row, member: Member, path: Path) -> None:
    """Add an utterance's JSON member to its row.

    Raises:
        ValueError: it is not a JSON object, or the row has one already.
    """
    content = member.content.read()
    try:
        meta = parse_json(content, f"{path}: {member.name}")
    except ValueError as error:
        raise ValueError(f"{error}; write it again") from None
    if not isinstance(meta, dict) or row.json[1]:
        cause = "a second JSON member" if row.json[1] else "not a JSON object"
        raise ValueError(f"{path}: {member.name}: {cause} of utterance {row.key!r}; write it again")
    row.json, row.meta = (member.offset, member.size, zlib.crc32(content)), meta


def add_array(row: Row, name: str, member: Member, path: Path) -> None:
    """Add an utterance's `.npy` member to its row.

    Raises:
        ValueError: it is not an array of numbers, is cut short, or the row has one of this modality already.
    """
    at = f"{path}: {member.name}"
    if name in row.arrays:
        raise ValueError(f"{at}: a second array of {name} of utterance {row.key!r}; remove one")
    try:
        shape, fortran, dtype = read_npy_header(member.content)
    except ValueError as error:
        raise ValueError(f"{at}: not a .npy array ({error}); write it again") from None
    if dtype.hasobject:
        raise ValueError(f"{at}: holds pickled objects, which are never read; write an array of numbers")
    if any(length < 0 for length in shape):
        raise ValueError(f"{at}: {dtype} of shape {shape}: a length is negative; write it again")
    header = member.content.tell()
    data = member.content.read()
    if len(data) != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{at}: {len(data)} bytes of data do not make {dtype} {shape}; write it again")
    row.arrays[name] = ArrayAt(member.offset + header, shape, dtype, fortran, zlib.crc32(data))


def readable_in_place(array: ArrayAt) -> bool:
    """Whether the reader can use the bytes as they are: aligned, little-endian float16 or float32, C."""
    aligned = array.offset % ALIGNMENT == 0
    return aligned and array.dtype.str in ("<f2", "<f4") and len(array.shape) == 2 and not array.fortran


def _check_form(array: ArrayAt, modality: Modality, at: str) -> None:
    fits = array.dtype == np.dtype(modality.dtype) and array.shape[1:] == (modality.dim,)
    if not fits or not readable_in_place(array):
        order = " in Fortran order" if array.fortran else ""
        raise ValueError(
            f"{at}: {array.dtype} array of shape {array.shape}{order}, "
            f"while the dataset holds {form_of(modality)}; pack it again"
        )


def form_of(modality: Modality) -> str:
    """The form of a modality's arrays as the index records it: "float16 [steps, 40]"."""
    return f"{modality.dtype} [steps, {modality.dim}]"
