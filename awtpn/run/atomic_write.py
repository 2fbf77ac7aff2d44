"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from shards.safe_io.json_text import json_text


def prepare_place(path: Path) -> None:
    """Make the folder that the file `path` is to lie in.

    Raises:
        ValueError: no file can be written there, since something else is; names it.
        OSError: the folder cannot be made.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{path} cannot be written: {path.parent} is or lies in a file") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` once the block ends well; else it is removed.

    The folder is made if need be.

    Raises:
        ValueError: as `prepare_place`.
        OSError: it cannot be written; names `path`, and not the temporary.
    """
    prepare_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # such as too long a name
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` so that a reader sees the old file or the new one, never half of one.

    Raises:
        ValueError, OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Replace `path`, in a folder that is made if need be, by `value` as JSON.

    Raises:
        ValueError: a number in it is NaN or infinite; says where. Or as `replacing`.
        OSError: as `replacing`.
    """
    write_atomically(path, json_text(value, indent=1) + "\n")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """A text file to write to, which is at `path` once the block ends well; else what was there stays.

    Raises:
        ValueError, OSError: as `replacing`.
    """
    with replacing(path) as temporary, temporary.open("w") as file:
        yield file
