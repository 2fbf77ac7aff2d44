"""Limit how many bytes a file may unpack to, before memory or disk space is used for them.

A file of N bytes may unpack to `most_bytes(N)`. Features compress by a factor of 2 to 10, padded features by
about 50; a file of zeros, which could fill a disk, by 1,000. Sources and `awtpn shards index` read the `.npy`
and `.npz` files of users by this module. Indexes, which are never compressed, are read by `bounded_npz`.
"""

from __future__ import annotations

import functools
import io
import lzma
import math
import os
import struct
import threading
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from shards.safe_io.git_lfs import refuse_pointer

# Environment variable that raises the factor, for a file that is trusted and compresses better.
VARIABLE = "AWTPN_MOST_EXPANSION"
MOST_EXPANSION = 100.0
# Any file may unpack to this many bytes: that does no harm.
ALWAYS = 64 << 20
BLOCK = 1 << 20

# Errors that reading a damaged .npz or .npy raises.
DAMAGED = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, MemoryError, OverflowError),
    *(RuntimeError, NotImplementedError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)

# NumPy reads the header of an array with Python's parser of literals. That of Python 3.11 sometimes fails if
# two threads use it at the same time: "AST constructor recursion depth mismatch" (CPython issue 106905).
_parsing = threading.Lock()
if hasattr(os, "register_at_fork"):
    # Without this, a child that is forked while a thread holds the lock would wait for ever.
    os.register_at_fork(
        before=_parsing.acquire, after_in_parent=_parsing.release, after_in_child=_parsing.release
    )


def most_bytes(packed: int) -> int:
    """How many bytes a file, member or dataset of `packed` bytes may unpack to.

    Raises:
        ValueError: the environment variable AWTPN_MOST_EXPANSION is not a factor of at least 1.
    """
    text = os.environ.get(VARIABLE)
    try:
        factor = MOST_EXPANSION if text is None else float(text)
        if not 1 <= factor < math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"{VARIABLE}={text}: must be a factor of at least 1, such as 1000") from None
    return max(ALWAYS, int(packed * factor))


def check_expansion(unpacked: int, packed: int, at: str) -> None:
    """Refuse a file that unpacks to more than `most_bytes(packed)`.

    Raises:
        ValueError: it does; names the file, both sizes, and how to allow it.
    """
    if unpacked > most_bytes(packed):
        raise ValueError(
            f"{at}: its {packed} bytes unpack to {unpacked} or more, and at most {most_bytes(packed)} are "
            f"taken; if you trust the file, set the environment variable {VARIABLE} to a larger factor, such "
            f"as {10 * MOST_EXPANSION:g}"
        )


def copy_bounded(source: IO[bytes], target: IO[bytes], packed: int, at: str) -> None:
    """Copy all that `source` gives, which unpacks a file of `packed` bytes.

    Raises:
        ValueError: it unpacks to more than `most_bytes(packed)`.
    """
    copied = 0
    while block := source.read(BLOCK):
        copied += len(block)
        check_expansion(copied, packed, at)
        target.write(block)


def load_npy(path: Path) -> np.ndarray:
    """The array of a `.npy` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not an array of plain values, or shorter than it claims; names the file.
    """
    refuse_pointer(path)
    with open(path, "rb") as file:
        try:
            return read_npy(file, path.stat().st_size)
        except DAMAGED as error:
            raise ValueError(f"{path} is not a plain .npy array ({error or type(error).__name__})") from None


def load_npz(file: str | Path | BinaryIO, at: str, only: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`, by name. Their claimed sizes are checked before they are read.

    Args:
        file: path or open file.
        at: its name in error messages.
        only: read only this array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, cut short, holds anything but arrays of plain values, or unpacks to far
            more than its size.
    """
    if isinstance(file, str | Path):
        refuse_pointer(file, at)
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
            archive.fp.seek(0, os.SEEK_END)  # type: ignore[union-attr]
            packed = archive.fp.tell()  # type: ignore[union-attr]
            unpacked = sum(info.file_size for info in found)
            for info in found if unpacked <= most_bytes(packed) else ():
                name = info.filename.removesuffix(".npy")
                if name == info.filename:
                    raise ValueError(f"its member {name!r} is no .npy array")
                if only in (None, name):
                    with archive.open(info) as stream:
                        arrays[name] = read_npy(stream, info.file_size)
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        cause = error if str(error) else type(error).__name__
        raise ValueError(f"{at}: not an .npz of plain arrays of numbers and text ({cause})") from None
    check_expansion(unpacked, packed, at)
    return arrays


def read_npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and dtype of an open `.npy`; the stream is at the data afterwards.

    Raises:
        ValueError: it has no valid header.
    """
    try:
        version = np.lib.format.read_magic(stream)
        length_bytes = stream.read(2 if version == (1, 0) else 4)
        header = length_bytes + stream.read(int.from_bytes(length_bytes, "little"))
        return _parse_npy_header(version, header)
    except (SyntaxError, tokenize.TokenError, MemoryError, RecursionError, TypeError, KeyError) as error:
        # Python's parser raises these for a forged header.
        raise ValueError(f"no header of a .npy array ({type(error).__name__})") from None


# The arrays of many shards have the same headers, and to parse one takes as long as to read its array.
@functools.lru_cache(1024)
def _parse_npy_header(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    with _parsing:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(io.BytesIO(header))
        return np.lib.format.read_array_header_2_0(io.BytesIO(header))


def read_npy(stream: Any, size: int) -> np.ndarray:
    """The array of an open `.npy` of `size` bytes.

    Raises:
        ValueError: it holds objects, or claims more than `size` bytes.
    """
    shape, fortran, dtype = read_npy_header(stream)
    if dtype.hasobject:
        raise ValueError("holds pickled objects, which are never read")
    elements = math.prod(shape)
    if dtype.itemsize == 0 and elements:
        raise ValueError(f"{dtype} of shape {shape}: values without any bytes")
    claimed = elements * dtype.itemsize
    if any(length < 0 for length in shape) or claimed > size:
        raise ValueError(
            f"{dtype} of shape {shape} needs {claimed} bytes, and it has {size}: cut short or forged"
        )
    flat = np.empty(math.prod(shape), dtype)
    left = memoryview(flat.view(np.uint8) if claimed else b"")  # type: ignore[arg-type]
    while len(left):
        count = stream.readinto(left)
        if not count:
            raise ValueError("cut short")
        left = left[count:]
    return flat.reshape(shape, order="F" if fortran else "C")


def npy_of_bytes(content: bytes) -> np.ndarray:
    """The array of a `.npy` file in memory, as NumPy writes it: rows first, nothing after the data.

    Raises:
        ValueError: it is anything else; `read_npy` may read it, or says what is wrong.
    """
    length = int.from_bytes(content[8:10], "little")
    if content[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("another version of the format")
    shape, fortran, dtype = _parse_npy_header((1, 0), content[8 : 10 + length])
    size = len(content) - 10 - length
    if fortran or dtype.hasobject or not dtype.itemsize or math.prod(shape) * dtype.itemsize != size:
        raise ValueError("another form, or another size")
    return np.frombuffer(content, dtype, offset=10 + length).reshape(shape).copy()
