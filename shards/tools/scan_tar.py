"""Scan a tar of another program: find its utterances with their arrays and labels, or refuse it.

Arrays are members `<key>.<modality>.npy`, or are in members `<key>....npz`. The label is a field of the JSON
member, else the content of a `.cls` member, or of the member that the caller names (a `.txt` member may be a
transcript, so it is a label only if it is named). Pickles are never opened, since they can run any code.

`index_tars` scans every tar with it before it writes anything.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.index import ALIGNMENT, ArrayAt, Row, add_array, add_json, readable_in_place
from shards.format.recording import num_samples_of
from shards.format.schema import MODALITY_NAME
from shards.format.tar_members import Member, contents, headers
from shards.safe_io.expansion import copy_bounded, load_npz
from shards.safe_io.git_lfs import refuse_pointer
from shards.safe_io.printable import printable
from shards.tools.member_names import ARRAYS, NamedMember, assign_keys

PICKLES = {"pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill"}
# Modality of a member or array without a name.
UNNAMED = "features"
# Members that are not used are counted by their ending; if it has this many dots or more, by its last part.
MOST_DOTS = 2

# First bytes of a compressed file, and how to open it.
COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@dataclass(frozen=True)
class ArrayInNpz:
    """An array in a `.npz` member: offset and size of the member, the array's name in it, shape and dtype."""

    offset: int
    size: int
    inner: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass
class Utterance:
    """An utterance of a tar of another program.

    Attributes:
        row: its arrays that are `.npy` members, and its JSON member.
        packed: by modality, its arrays in `.npz` members.
        scalars: by name, scalars in its `.npz` members.
        texts: by ending, its text members that may be labels.
        label: as found: a name or a position; None if there is none.
        cls_label: the content of its `.cls` member, if its label is from another member; else None.
    """

    row: Row
    packed: dict[str, ArrayInNpz] = field(default_factory=dict)
    scalars: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    label: Any = None
    cls_label: Any = None

    @property
    def arrays(self) -> dict[str, ArrayAt | ArrayInNpz]:
        """All of them, by modality."""
        return {**self.row.arrays, **self.packed}


@dataclass
class TarScan:
    """The content of a tar.

    Attributes:
        utterances: in the order of their first members.
        forms: per modality the forms (features per time step, dtype) that occur.
        decode_reason: why the tar cannot be read in place; None if it can.
        ignored: number of members that are not used, by extension.
        without_arrays: keys of utterances that have a JSON member, but no array.
    """

    utterances: list[Utterance]
    forms: dict[str, set[tuple[int, str]]]
    decode_reason: str | None
    ignored: Counter[str]
    without_arrays: list[str]


def scan_tar(path: Path, shown: str, label: str, label_member: str | None = None) -> TarScan:
    """Read all of a tar and list its content.

    Args:
        path: on local disk; may be compressed by gzip, bzip2 or xz.
        shown: its URL, for error messages.
        label: the JSON field that holds the label.
        label_member: ending, in lower case, of the members whose text is the label instead, such as "txt".

    Raises:
        ValueError: it is damaged, holds pickles, or an utterance has two labels; names the tar and the
            member.
    """
    found: dict[str, Utterance] = {}
    ignored: Counter[str] = Counter()
    refuse_pointer(path, shown)
    decode_reason = f"{shown} is compressed" if is_compressed(path) else None
    tar = path
    try:
        with uncompressed(path) as tar:
            named = {each.header.name: each for each in assign_keys(headers(tar), label_member)}
            used = []
            for each in named.values():
                _refuse_pickles(each)
                if _is_used(each, label_member):
                    used.append(each.header)
                    found.setdefault(each.key, Utterance(Row(each.key)))
                else:
                    ignored[_counted_as(each)] += 1
            for header, content in contents(tar, used):
                each = named[header.name]
                member = Member(
                    header.name, each.key, each.ending.lower(), header.offset, header.size, content
                )
                _add_member(found[each.key], member, each.kind, tar)
        for utterance in found.values():
            _set_label(utterance, label, label_member, ignored)
    except (ValueError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"{shown}: {printable(error).removeprefix(f'{tar}: ')}") from None
    utterances = [utterance for utterance in found.values() if utterance.arrays]
    forms = _forms(utterances, shown)
    for utterance in utterances:
        if decode_reason is None and (why := _decode_reason(utterance)):
            decode_reason = f"{shown}: {printable(utterance.row.key)}: {why}"
    without = [key for key, utterance in found.items() if not utterance.arrays]
    return TarScan(utterances, forms, decode_reason, ignored, without)


@contextlib.contextmanager
def uncompressed(path: Path) -> Iterator[Path]:
    """The path of the tar itself, or of a temporary uncompressed copy."""
    if (unpack := is_compressed(path)) is None:
        yield path
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unpacked-") as folder:
        plain = Path(folder) / path.name
        with unpack(path) as source, open(plain, "wb") as target:
            copy_bounded(source, target, path.stat().st_size, "compressed tar")
        yield plain


def is_compressed(path: Path) -> Callable[[Path], Any] | None:
    """The function that opens a compressed file; None if the file is not compressed."""
    with open(path, "rb") as file:
        first = file.read(8)
    return next((unpack for magic, unpack in COMPRESSED.items() if first.startswith(magic)), None)


def read_array(tar: Path, array: ArrayAt | ArrayInNpz) -> np.ndarray:
    """An array of an uncompressed tar, converted to this machine's byte order, which torch requires."""
    with open(tar, "rb") as file:
        file.seek(array.offset)
        if isinstance(array, ArrayInNpz):
            arrays = load_npz(io.BytesIO(file.read(array.size)), ".npz member", only=array.inner)
            return arrays[array.inner].astype(array.dtype.newbyteorder("="), copy=False)
        flat = np.fromfile(file, array.dtype, int(np.prod(array.shape)))
    values = flat.reshape(array.shape, order="F" if array.fortran else "C")
    return values.astype(array.dtype.newbyteorder("="), copy=False)


def _refuse_pickles(named: NamedMember) -> None:
    if named.kind in PICKLES:
        raise ValueError(
            f"{named.header.name}: pickled files are never read, since they can run code; write its arrays "
            "as .npy members"
        )


def _is_used(named: NamedMember, label_member: str | None) -> bool:
    """Whether a member is part of an utterance. As in webdataset, one whose name begins with "." is not."""
    ending = named.ending.lower()
    if named.header.base.startswith("."):
        return False
    return ending in ("json", label_member) or named.kind in (*ARRAYS, "cls")


def _counted_as(named: NamedMember) -> str:
    """The extension under which a member that is not used is counted."""
    if named.header.base.startswith("."):
        return "hidden"
    return f".{named.ending.lower()}" if named.ending.count(".") < MOST_DOTS else f"*.{named.kind}"


def _add_member(utterance: Utterance, member: Member, kind: str, tar: Path) -> None:
    """Add a member to its utterance."""
    name = member.extension.rpartition(".")[0]
    if member.extension == "json":
        add_json(utterance.row, member, tar)
    elif kind == "npy":
        add_array(utterance.row, _modality(name, member.name), member, tar)
    elif kind == "npz":
        _add_npz(utterance, name, member)
    else:
        try:
            text = member.content.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{member.name}: a label that is not in UTF-8 ({error.reason} at byte {error.start}); write "
                "it in that encoding"
            ) from None
        if member.extension in utterance.texts:
            raise ValueError(f"{member.name}: a second .{member.extension} of {member.key!r}; remove one")
        utterance.texts[member.extension] = text.strip()


def _add_npz(utterance: Utterance, name: str, member: Member) -> None:
    arrays = load_npz(io.BytesIO(member.content.read()), member.name)
    for inner, values in arrays.items():
        if values.ndim == 0:
            utterance.scalars.setdefault(inner, values.item())
            continue
        # Arrays saved without a name are called arr_0, arr_1, ...
        modality = _modality(name if inner == "arr_0" and name else inner, member.name)
        if modality in utterance.packed:
            raise ValueError(f"{member.name}: a second array of {modality}; remove one")
        utterance.packed[modality] = ArrayInNpz(member.offset, member.size, inner, values.shape, values.dtype)


def _modality(name: str, member: str) -> str:
    plain = re.sub(r"[^a-z0-9_]", "_", name.lower()) or UNNAMED
    if not MODALITY_NAME.fullmatch(plain):
        raise ValueError(
            f"{member}: {name!r} is not a valid name of a modality: at most 100 letters, the first from a to "
            "z, and not json"
        )
    return plain


def _set_label(
    utterance: Utterance, field_name: str, label_member: str | None, ignored: Counter[str]
) -> None:
    """Set the label: the text of the named member, else the JSON field, else the text of `.cls`.

    Raises:
        ValueError: there are two labels; names both.
    """
    row, texts, scalars = utterance.row, utterance.texts, utterance.scalars
    both = field_name in row.meta and field_name in scalars
    if both and row.meta[field_name] != scalars[field_name]:
        raise ValueError(
            f"{row.key}: its JSON member says {field_name} {row.meta[field_name]!r}, its .npz member "
            f"{scalars[field_name]!r}; remove one"
        )
    row.meta = {**scalars, **row.meta}
    if label_member is not None:
        utterance.label = _position(texts.get(label_member))
        ignored.update(f".{name}" for name in texts.keys() - {label_member})
        return
    # `<key>.cls` is the label, whatever other `.cls` members there are. Without it there must be only one.
    chosen = ["cls"] if "cls" in texts else sorted(texts)
    value = row.meta.get(field_name)
    if len(chosen) > 1:
        # One .cls member is compared with a label in JSON. Of several it is unclear which one to compare.
        first_two = " and ".join(f".{name} {texts[name]!r}" for name in chosen[:2])
        beside = "" if value is None else f", beside the label {value!r}"
        fix = f"tell which with --label_member {chosen[0]}"
        raise ValueError(f"{row.key}: two labels, {first_two}{beside}; {fix}")
    ignored.update(f".{name}" for name in texts.keys() - {*chosen})
    text = _position(texts[chosen[0]]) if chosen else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    utterance.label, utterance.cls_label = (text, None) if value is None else (value, text)


def _position(text: str | None) -> str | int | None:
    """A label that was read as text; digits are a position in the classes."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else text


def _forms(utterances: list[Utterance], shown: str) -> dict[str, set[tuple[int, str]]]:
    """Per modality the forms (features per time step, dtype) that occur; refuses what cannot be features."""
    forms: dict[str, set[tuple[int, str]]] = {}
    for utterance in utterances:
        for name, array in utterance.arrays.items():
            _refuse_recording(utterance, name, array, shown)
            if len(array.shape) != 2 or not array.shape[1] or array.dtype.kind not in "fiu":
                raise ValueError(
                    f"{shown}: {printable(utterance.row.key)}: {name} is {array.dtype} of shape "
                    f"{array.shape}; features are real numbers [steps, features per step]"
                )
            forms.setdefault(name, set()).add((array.shape[1], array.dtype.str))
    return forms


def _refuse_recording(utterance: Utterance, name: str, array: ArrayAt | ArrayInNpz, shown: str) -> None:
    """Raise ValueError for sound and pictures that `awtpn extract` stored: they would be taken for features.

    Integers in other tars may be features. Those of our sound are told apart by their number of samples.
    """
    is_sound = array.dtype == np.int16 and num_samples_of(utterance.row.meta, name) is not None
    is_pictures = array.dtype == np.uint8 and len(array.shape) == 4 and array.shape[3] == 3
    if is_sound or is_pictures:
        what = "sound" if is_sound else "pictures"
        raise ValueError(
            f"{shown}: {printable(utterance.row.key)}: {name} is {array.dtype} of shape {array.shape}, "
            f"{what} as recorded and not features; `awtpn extract` makes datasets of recordings"
        )


def _decode_reason(utterance: Utterance) -> str | None:
    if utterance.packed:
        return "a .npz member"
    for name, array in utterance.row.arrays.items():
        if not readable_in_place(array):
            order = " in Fortran order" if array.fortran else ""
            shifted = ", not aligned" if array.offset % ALIGNMENT else ""
            return f"{name} is {array.dtype.str}{order}{shifted}"
    return None
