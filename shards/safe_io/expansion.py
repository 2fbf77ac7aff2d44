"""Files that claim or unpack to far more than they hold: bounded before memory or disk is taken.

A file of N bytes may give `most_bytes(N)`. Features compress by a factor of 2 to 10, padded ones by some 50;
a file of zeros, with which a download could fill a disk, by 1,000.
"""

from __future__ import annotations

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

# Whoever trusts a file that compresses better raises it with this variable.
VARIABLE = "AWTPN_MOST_EXPANSION"
MOST_EXPANSION = 100.0
# A small file may expand by more: this much harms nobody.
ALWAYS = 64 << 20
BLOCK = 1 << 20

# What reading a damaged .npz or .npy raises.
DAMAGED = (
    *(ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, MemoryError, OverflowError),
    *(RuntimeError, NotImplementedError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)

# Python 3.11's parser of literals, which reads the header of every array, fails at times when two threads use
# it at once: "AST constructor recursion depth mismatch" (CPython issue 106905).
_parsing = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child that was forked amid it would wait for a thread that it does not have.
    os.register_at_fork(
        before=_parsing.acquire, after_in_parent=_parsing.release, after_in_child=_parsing.release
    )


def most_bytes(packed: int) -> int:
    """How many bytes a file, member or dataset that takes `packed` bytes may unpack to.

    Raises:
        ValueError: the variable AWTPN_MOST_EXPANSION holds no factor.
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
    """Refuse what claims to unpack to more than `most_bytes`.

    Raises:
        ValueError: names it, both sizes, and how to have it read all the same.
    """
    if unpacked > most_bytes(packed):
        raise ValueError(
            f"{at}: its {packed} bytes unpack to {unpacked} or more, and at most {most_bytes(packed)} are "
            f"taken; if you trust the file, set the environment variable {VARIABLE} to a larger factor, such "
            f"as {10 * MOST_EXPANSION:g}"
        )


def copy_bounded(source: IO[bytes], target: IO[bytes], packed: int, at: str) -> None:
    """Copy all of a stream that unpacks `packed` bytes.

    Raises:
        ValueError: it unpacks to more than `most_bytes`.
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
        ValueError: it is no array of plain values, or shorter than it claims; names the file.
    """
    refuse_pointer(path)
    with open(path, "rb") as file:
        try:
            return read_npy(file, path.stat().st_size)
        except DAMAGED as error:
            raise ValueError(f"{path} is not a plain .npy array ({error or type(error).__name__})") from None


def load_npz(file: str | Path | BinaryIO, at: str, only: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`, by name; what they claim is checked before it is read.

    Args:
        file: path or open file.
        at: how to name it in messages.
        only: read this array alone.

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
    """Shape, whether in Fortran order, and dtype of an open `.npy`, which then stands at its data.

    Raises:
        ValueError: it has no such header.
    """
    try:
        version = np.lib.format.read_magic(stream)
        with _parsing:
            if version == (1, 0):
                return np.lib.format.read_array_header_1_0(stream)
            return np.lib.format.read_array_header_2_0(stream)
    except (SyntaxError, tokenize.TokenError, MemoryError, RecursionError, TypeError, KeyError) as error:
        # A header is parsed as Python.
        raise ValueError(f"no header of a .npy array ({type(error).__name__})") from None


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
            f"{dtype} of shape {shape} are {claimed} bytes, and it has {size}: cut short or forged"
        )
    flat = np.empty(math.prod(shape), dtype)
    left = memoryview(flat.view(np.uint8) if claimed else b"")  # type: ignore[arg-type]
    while len(left):
        count = stream.readinto(left)
        if not count:
            raise ValueError("cut short")
        left = left[count:]
    return flat.reshape(shape, order="F" if fortran else "C")
