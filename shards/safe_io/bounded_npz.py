"""Read the `.npz` of an index, which others may have written, with no more memory than the file has bytes.

Indexes are never compressed. NumPy would allocate the size that an array's header claims, and decompress
members, without checking either first. Features of users, which may be compressed, are read by `expansion`.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np

from shards.safe_io.expansion import npy_of_bytes, read_npy

# Of a zip file: what a member and the directory begin with; of a member flags, method, CRC-32, packed size,
# size, and the lengths of its name and its extra field; its sizes if they are in the extra field.
LOCAL_MAGIC, DIRECTORY_MAGIC = b"PK\x03\x04", b"PK\x01\x02"
LOCAL_HEADER = struct.Struct("<6xHH4xIIIHH")
ZIP64_SIZES = struct.Struct("<HHQQ")


def read_uncompressed_npz(content: bytes) -> dict[str, np.ndarray]:
    """All arrays of an uncompressed `.npz`, by name.

    Args:
        content: of the file.

    Raises:
        ValueError: it is not such a file, is damaged, or claims to hold more than its bytes. One line.
    """
    try:
        arrays = _read_in_order(content)
        return _read_by_directory(content) if arrays is None else arrays
    # For forged bytes, `zipfile` and NumPy's header parser raise all kinds of errors: RecursionError,
    # MemoryError, SyntaxError, struct.error, NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{message:.200}") from None


def _read_in_order(content: bytes) -> dict[str, np.ndarray] | None:
    """The arrays of a file as NumPy writes it: member after member, none compressed.

    This takes a third of the time of `zipfile`, and a dataset may have ten thousands of such files.

    Returns:
        None if it is any other file, or is damaged: `_read_by_directory` reads it, or says what is wrong.
    """
    arrays: dict[str, np.ndarray] = {}
    at = 0
    while content[at : at + 4] == LOCAL_MAGIC:
        if len(content) < at + LOCAL_HEADER.size:
            return None
        flags, method, crc, packed, size, name_bytes, extra_bytes = LOCAL_HEADER.unpack_from(content, at)
        at += LOCAL_HEADER.size
        name = content[at : at + name_bytes]
        extra = content[at + name_bytes : at + name_bytes + extra_bytes]
        if (packed, size) == (0xFFFFFFFF, 0xFFFFFFFF) and len(extra) == ZIP64_SIZES.size:
            kind, _, size, packed = ZIP64_SIZES.unpack(extra)
            if kind != 1:
                return None
        at += name_bytes + extra_bytes
        data = content[at : at + size]
        at += size
        name = name.removesuffix(b".npy")
        known = name.isascii() and name.decode("ascii") not in arrays
        if flags or method or packed != size or len(data) != size or zlib.crc32(data) != crc or not known:
            return None
        try:
            arrays[name.decode("ascii")] = npy_of_bytes(data)
        except Exception:  # as of `read_uncompressed_npz`
            return None
    return arrays if content[at : at + 4] == DIRECTORY_MAGIC else None


def _read_by_directory(content: bytes) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        # Members of a forged file may share bytes, or be compressed by a factor of 1,000.
        claimed = sum(member.file_size for member in members)
        if claimed > len(content):
            raise ValueError(f"its arrays claim {claimed} bytes, and the file has {len(content)}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"array {name!r:.60} is there twice")
            try:
                with archive.open(member) as stream:
                    arrays[name] = read_npy(stream, member.file_size)
            except ValueError as error:
                raise ValueError(f"array {name!r:.60}: {error}") from None
    return arrays
