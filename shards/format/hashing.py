"""SHA-256 of files: the manifest names every shard and index by it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hash_of(file)


def hash_of(file: BinaryIO) -> str:
    """SHA-256 of an open file, in hexadecimal; rewinds it."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return digest
