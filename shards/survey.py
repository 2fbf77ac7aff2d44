"""What a tar that others made holds: its utterances, their arrays and labels; and what is refused.

Arrays are members `<key>.<modality>.npy` or in `<key>....npz`, labels the field of a JSON member, else the
content of a `.cls` or `.txt` member. Pickles are never opened: whoever wrote one could make us run anything.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.checks import MODALITY_NAME
from shards.index import ArrayAt, Row, add_array, add_json, readable_in_place
from shards.members import Member, members
from shards.printable import printable

PICKLES = {"pkl", "pickle", "pyd", "pt", "pth", "joblib", "dill"}
TEXTS = ("cls", "txt")
# Of a member or array that has no name of its own.
UNNAMED = "features"

# First bytes of a compressed file, and how to open it.
COMPRESSED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@dataclass(frozen=True)
class ArrayInNpz:
    """An array in a `.npz` member: where the member lies, the array's name in it, and what it is."""

    offset: int
    size: int
    inner: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass
class Utterance:
    """An utterance of a foreign tar.

    Attributes:
        row: its arrays that are `.npy` members, and its JSON member.
        packed: by modality its arrays in `.npz` members.
        label: as found: a name or a position; None where there is none.
    """

    row: Row
    packed: dict[str, ArrayInNpz] = field(default_factory=dict)
    label: Any = None

    @property
    def arrays(self) -> dict[str, ArrayAt | ArrayInNpz]:
        """All of them, by modality."""
        return {**self.row.arrays, **self.packed}


@dataclass
class Survey:
    """What a tar holds.

    Attributes:
        utterances: in the order of their first members.
        forms: per modality the forms (features per step, dtype) in which it was found.
        slow: why the tar cannot be read in place; None if it can.
        ignored: how many members of what extension mean nothing here.
        without_arrays: keys of utterances that have a JSON member, but no array.
    """

    utterances: list[Utterance]
    forms: dict[str, set[tuple[int, str]]]
    slow: str | None
    ignored: Counter[str]
    without_arrays: list[str]


def survey(path: Path, shown: str, label: str) -> Survey:
    """Read a tar from end to end and tell what it holds.

    Args:
        path: on local disk; may be compressed by gzip, bzip2 or xz.
        shown: its URL, for messages.
        label: the JSON field that holds the label.

    Raises:
        ValueError: it is damaged, or holds what is never read; names the tar and the member.
    """
    found: dict[str, Utterance] = {}
    texts: dict[str, dict[str, str]] = {}
    ignored: Counter[str] = Counter()
    slow = [f"{shown} is compressed"] if is_compressed(path) else []
    tar = path
    try:
        with uncompressed(path) as tar:
            for member in members(tar):
                utterance = found.setdefault(member.key, Utterance(Row(member.key)))
                kind = member.extension.rpartition(".")[2]
                if kind in PICKLES:
                    raise ValueError(
                        f"{member.name}: pickled files are never read, since they can run code; write its "
                        "arrays as .npy members"
                    )
                if kind in TEXTS:
                    texts.setdefault(member.key, {})[kind] = member.content.read().decode().strip()
                elif not _take(utterance, member, kind, tar):
                    ignored[f".{member.extension}"] += 1
    except (ValueError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"{shown}: {printable(error).removeprefix(f'{tar}: ')}") from None
    for key, utterance in found.items():
        utterance.label = _label(utterance, texts.get(key, {}), label)
    utterances = [utterance for utterance in found.values() if utterance.arrays]
    forms = _forms(utterances, shown)
    slow += [f"{shown}: {printable(u.row.key)}: {why}" for u in utterances if (why := _slow(u))][:1]
    without = [key for key, utterance in found.items() if not utterance.arrays and utterance.row.json[1]]
    return Survey(utterances, forms, slow[0] if slow else None, ignored, without)


@contextlib.contextmanager
def uncompressed(path: Path) -> Iterator[Path]:
    """The tar itself, or a temporary copy that is not compressed."""
    if (unpack := is_compressed(path)) is None:
        yield path
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unpacked-") as folder:
        plain = Path(folder) / path.name
        with unpack(path) as source, open(plain, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        yield plain


def is_compressed(path: Path) -> Callable[[Path], Any] | None:
    """How to open a file that is compressed; None for one that is not."""
    with open(path, "rb") as file:
        first = file.read(8)
    return next((unpack for magic, unpack in COMPRESSED.items() if first.startswith(magic)), None)


def read_array(tar: Path, array: ArrayAt | ArrayInNpz) -> np.ndarray:
    """An array of an uncompressed tar, in this machine's byte order."""
    with open(tar, "rb") as file:
        file.seek(array.offset)
        if isinstance(array, ArrayInNpz):
            with np.load(io.BytesIO(file.read(array.size)), allow_pickle=False) as arrays:
                return arrays[array.inner].astype(array.dtype.newbyteorder("="), copy=False)
        flat = np.fromfile(file, array.dtype, int(np.prod(array.shape)))
    values = flat.reshape(array.shape, order="F" if array.fortran else "C")
    return values.astype(array.dtype.newbyteorder("="), copy=False)


def _take(utterance: Utterance, member: Member, kind: str, tar: Path) -> bool:
    """Take a member into its utterance; False for one that means nothing here."""
    name = member.extension.rpartition(".")[0]
    if member.extension == "json":
        add_json(utterance.row, member, tar)
    elif kind == "npy":
        add_array(utterance.row, _modality(name, member.name), member, tar)
    elif kind == "npz":
        _add_npz(utterance, name, member)
    else:
        return False
    return True


def _add_npz(utterance: Utterance, name: str, member: Member) -> None:
    try:
        with np.load(io.BytesIO(member.content.read()), allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{member.name}: not a .npz of plain arrays ({error}); write it again") from None
    for inner, values in arrays.items():
        if values.ndim == 0:
            utterance.row.meta.setdefault(inner, values.item())
            continue
        # Arrays saved without a name are called arr_0, arr_1, ...
        modality = _modality(name if inner == "arr_0" and name else inner, member.name)
        if modality in utterance.packed:
            raise ValueError(f"{member.name}: a second array of {modality}; remove one")
        utterance.packed[modality] = ArrayInNpz(member.offset, member.size, inner, values.shape, values.dtype)


def _modality(name: str, member: str) -> str:
    plain = re.sub(r"[^a-z0-9_]", "_", name.lower()) or UNNAMED
    if not MODALITY_NAME.fullmatch(plain):
        raise ValueError(f"{member}: {name!r} is no name of a modality: begin with a letter, and not json")
    return plain


def _label(utterance: Utterance, texts: dict[str, str], field_name: str) -> Any:
    """A label as found: JSON's field, else the text of `.cls`, else of `.txt`; numbers are positions."""
    value = utterance.row.meta.get(field_name)
    if value is None:
        value = next((texts[kind] for kind in TEXTS if kind in texts), None)
        if value is not None and re.fullmatch(r"\d+", value):
            return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _forms(utterances: list[Utterance], shown: str) -> dict[str, set[tuple[int, str]]]:
    """Per modality the forms in which it was found."""
    forms: dict[str, set[tuple[int, str]]] = {}
    for utterance in utterances:
        for name, array in utterance.arrays.items():
            if len(array.shape) != 2 or not array.shape[1] or array.dtype.kind not in "fiu":
                raise ValueError(
                    f"{shown}: {printable(utterance.row.key)}: {name} is {array.dtype} of shape "
                    f"{array.shape}; features are real numbers [steps, features per step]"
                )
            forms.setdefault(name, set()).add((array.shape[1], array.dtype.str))
    return forms


def _slow(utterance: Utterance) -> str | None:
    if utterance.packed:
        return "a .npz member"
    for name, array in utterance.row.arrays.items():
        if not readable_in_place(array):
            order = " in Fortran order" if array.fortran else ""
            return f"{name} is {array.dtype.str}{order}"
    return None
