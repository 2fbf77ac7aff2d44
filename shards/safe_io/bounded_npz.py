"""Read the `.npz` of an index, which others may have written, with no more memory than the file has bytes.

Indexes are never compressed. NumPy would allocate the size that an array's header claims, and decompress
members, without checking either first. Features of users, which may be compressed, are read by `expansion`.
"""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

import numpy as np

from shards.safe_io.expansion import read_npy


def read_uncompressed_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """All arrays of an uncompressed `.npz`, by name.

    Raises:
        ValueError: it is not such a file, is damaged, or claims to hold more than its bytes. One line.
    """
    try:
        return _read(file)
    # For forged bytes, `zipfile` and NumPy's header parser raise all kinds of errors: RecursionError,
    # MemoryError, SyntaxError, struct.error, NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{message:.200}") from None


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # Members of a forged file may share bytes, or be compressed by a factor of 1,000.
        claimed = sum(member.file_size for member in members)
        if claimed > size:
            raise ValueError(f"its arrays claim {claimed} bytes, and the file has {size}")
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
