"""The members of a tar, in order, and the refusal of a tar that is not whole.

`tarfile` takes a damaged header for the end of the archive, and says nothing; here it is an error.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A file of a tar, of an utterance's files one.

    Attributes:
        name: in the tar.
        key: of the utterance: the name up to the first dot of its last part, folders included.
        extension: the rest, in lower case, without the dot.
        offset, size: of its content, in bytes.
        content: in memory.
    """

    name: str
    key: str
    extension: str
    offset: int
    size: int
    content: IO[bytes]


def members(path: Path) -> Iterator[Member]:
    """All files of an uncompressed tar.

    Raises:
        ValueError: the tar is damaged or cut short; names it and the byte.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                # webdataset's own notes are named like __this__.
                if not info.isfile() or (info.name.startswith("__") and info.name.endswith("__")):
                    continue
                content = tar.extractfile(info)
                if content is None or info.issparse():
                    raise ValueError(
                        f"{path}: {info.name}: a sparse file; write the tar without sparse files"
                    )
                folder, _, base = info.name.removeprefix("./").rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                # Read here, so that a tar that ends amid it is told as such.
                data = io.BytesIO(content.read())
                yield Member(info.name, key, extension.lower(), info.offset_data, info.size, data)
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error}); fetch or write it again") from None
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
    if block != bytes(BLOCK):
        found = "a damaged header" if block else "no end-of-archive mark"
        raise ValueError(f"{path}: {found} at byte {end}: damaged or cut short; fetch or write it again")
