"""The byte-offset index of a shard: where each array is in the tar, so that one read fetches it.

An index is always made by reading the finished tar, and never from what the writer intended. So it checks
what was written, and it can be made for tars of other programs too. Packing and `awtpn shards index` make it,
the reader uses it. On disk it is an uncompressed `.npz`:

    key [U] str, label [U] int32, json.offset [U] int64, json.size [U] int32,
    offset.<modality> [U] int64 (first byte of the array's data; -1: missing),
    steps.<modality> [U] int32 (time steps), crc.<modality> [U] uint32 (CRC-32 of the array's data),
    crc.json [U] uint32, form.<modality> str ("float16 [steps, 40]"),
    of sound samples.<modality> [U] int64 (its true number of samples; 0: missing),
    of pictures as JPEG picture.offset.<modality> [P] int64, picture.size.<modality> [P] int32 (the files of
    all P pictures, utterance by utterance; offset.<modality> is that of an utterance's first picture,
    crc.<modality> is over its pictures' bytes one after the other),
    column.<name> [U] (metadata to select by; float64 with NaN where utterances lack a number), classes [C]
    str (class names; labels are positions in them; none and all labels 0 in a dataset without classes).

`index_file` writes and reads it.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.columns import index_columns
from shards.format.recording import NUM_SAMPLES, num_samples_of, steps_of_samples
from shards.format.schema import Modality
from shards.format.tar_members import Member, members
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.expansion import read_npy_header

# The data of a `.npy` member begin at a multiple of this many bytes: its header is padded to 16 bytes (today
# to 64), and tar members begin at multiples of 512. `index_file` refuses other offsets as damaged or forged.
ALIGNMENT = 16
# Neither other scripts' digits nor more digits than a number can have.
PICTURE_NUMBER = re.compile(r"[0-9]{1,18}")


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
    samples: dict[str, np.ndarray] = field(default_factory=dict)
    picture_offset: dict[str, np.ndarray] = field(default_factory=dict)
    picture_size: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayAt:
    """An array in a tar: the offset of its data in bytes, shape, dtype, order, and the CRC-32 of the data."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    crc: int


@dataclass
class PicturesAt:
    """The JPEG files of an utterance's pictures in a tar: where each is; the CRC-32 of all their bytes."""

    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    crc: int = 0


@dataclass
class Row:
    """The members of one utterance in a tar.

    Attributes:
        key: name of the utterance.
        arrays: by modality.
        pictures: by modality, of those stored as JPEG.
        json: offset, size and CRC-32 of its JSON member; the size is 0 if it has none.
        meta: content of that member.
    """

    key: str
    arrays: dict[str, ArrayAt] = field(default_factory=dict)
    pictures: dict[str, PicturesAt] = field(default_factory=dict)
    json: tuple[int, int, int] = (0, 0, 0)
    meta: dict[str, Any] = field(default_factory=dict)


def first_pictures(index: ShardIndex, name: str) -> np.ndarray:
    """The position of each utterance's first picture among a shard's JPEG files of a modality, [U] int64."""
    steps = index.steps[name]
    return np.cumsum(steps, dtype=np.int64) - steps


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
        elif kind == "npy" and name in modalities and not modalities[name].is_jpeg:
            add_array(row, name, member, path)
            _check_form(row.arrays[name], modalities[name], f"{path}: {member.name}")
        elif kind == "jpg":
            name, _, number = name.rpartition(".")
            if name in modalities and modalities[name].is_jpeg:
                add_picture(row, name, number, member, path)
    for row in rows.values():
        _check_samples(row, modalities, path)
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
        found = [_array_at(row, name) for row in rows]
        offset[name] = np.array([-1 if a is None else a.offset for a in found], np.int64)
        steps[name] = np.array([0 if a is None else a.shape[0] for a in found], np.int32)
        crc[name] = np.array([0 if a is None else a.crc for a in found], np.uint32)
    sound = [name for name, modality in modalities.items() if modality.is_sound]
    jpeg = [name for name, modality in modalities.items() if modality.is_jpeg]
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
        samples={
            name: np.array(
                [num_samples_of(row.meta, name) if name in row.arrays else 0 for row in rows], np.int64
            )
            for name in sound
        },
        picture_offset={name: np.array(_of_pictures(rows, name, "offset"), np.int64) for name in jpeg},
        picture_size={name: np.array(_of_pictures(rows, name, "size"), np.int32) for name in jpeg},
    )


def _array_at(row: Row, name: str) -> ArrayAt | None:
    """Where a modality of an utterance is; of pictures as JPEG where the first is, and how many there are."""
    if (pictures := row.pictures.get(name)) is None:
        return row.arrays.get(name)
    shape = (len(pictures.offset),)
    return ArrayAt(pictures.offset[0], shape, np.dtype(np.uint8), False, pictures.crc)


def _of_pictures(rows: list[Row], name: str, what: str) -> list[int]:
    return [value for row in rows if name in row.pictures for value in getattr(row.pictures[name], what)]


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


def add_picture(row: Row, name: str, number: str, member: Member, path: Path) -> None:
    """Add a picture of an utterance to its row; the pictures of a modality are numbered from 0 in order.

    Raises:
        ValueError: it has another number.
    """
    pictures = row.pictures.setdefault(name, PicturesAt())
    if not PICTURE_NUMBER.fullmatch(number) or int(number) != len(pictures.offset):
        raise ValueError(
            f"{path}: {member.name}: picture {len(pictures.offset):04d} of {name} of utterance {row.key!r} "
            "should be there; write the tar again with its pictures in order"
        )
    content = member.content.read()
    pictures.offset.append(member.offset)
    pictures.size.append(len(content))
    pictures.crc = zlib.crc32(content, pictures.crc)


def readable_in_place(array: ArrayAt) -> bool:
    """Whether the reader can use the bytes as they are: aligned, little-endian float16 or float32, C."""
    aligned = array.offset % ALIGNMENT == 0
    return aligned and array.dtype.str in ("<f2", "<f4") and len(array.shape) == 2 and not array.fortran


def _check_form(array: ArrayAt, modality: Modality, at: str) -> None:
    fits = array.dtype.str == np.dtype(modality.dtype).str and array.shape[1:] == modality.shape
    if not fits or array.fortran or array.offset % ALIGNMENT:
        order = " in Fortran order" if array.fortran else ""
        raise ValueError(
            f"{at}: {array.dtype} array of shape {array.shape}{order}, "
            f"while the dataset holds {form_of(modality)}; pack it again"
        )


def _check_samples(row: Row, modalities: dict[str, Modality], path: Path) -> None:
    """Raise ValueError unless the metadata give the number of samples that an utterance's sound has."""
    for name, modality in modalities.items():
        if not modality.is_sound or name not in row.arrays:
            continue
        samples, steps = num_samples_of(row.meta, name), row.arrays[name].shape[0]
        if samples is None or samples < 1 or steps_of_samples(samples, modality.dim) != steps:
            raise ValueError(
                f"{path}: {row.key!r}: {NUM_SAMPLES} of {name} is {samples}, which does not make {steps} "
                f"steps of {modality.dim} samples; write it again"
            )


def form_of(modality: Modality) -> str:
    """The form of a modality's arrays as the index records it: "float16 [steps, 40]"."""
    kind = "jpg" if modality.is_jpeg else modality.dtype
    return f"{kind} [steps, {', '.join(map(str, modality.shape))}]"
