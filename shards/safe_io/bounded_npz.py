"""Arrays of a `.npz` that others may have written: never more memory than the file has bytes.

NumPy allocates what an array's header claims, and inflates what a compressed member holds, before it checks
either.
"""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

import numpy as np

from shards.safe_io.expansion import read_npy


def read_npz(file: BinaryIO) -> dict[str, np.ndarray]:
    """All arrays of an uncompressed `.npz`, by name.

    Raises:
        ValueError: it is no such file, is damaged, or claims to hold more than it has bytes. One line.
    """
    try:
        return _read(file)
    # What `zipfile` and NumPy's parser of headers raise for bytes that someone chose is of every kind:
    # RecursionError, MemoryError, SyntaxError, struct.error, NotImplementedError, UnicodeDecodeError, ...
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{message:.200}") from None


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # Members may share their bytes, or be compressed a thousandfold.
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
