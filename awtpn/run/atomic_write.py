"""Write files so that a reader sees either the old file or the complete new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from shards.safe_io.json_text import json_text


def prepare_place(path: Path) -> None:
    """Make the parent folder of the file `path`.

    Raises:
        ValueError: no file can be written there, because something else is in its place; names it.
        OSError: the folder cannot be made.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{path} cannot be written: {path.parent} is or lies in a file") from None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It is renamed to `path` when the block succeeds, else removed.

    The parent folder is made if it does not exist.

    Raises:
        ValueError: as `prepare_place`.
        OSError: it cannot be written; names `path`, not the temporary path.
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
        with contextlib.suppress(OSError):  # for example a name that is too long
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`.

    Raises:
        ValueError, OSError: as `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON.

    Raises:
        ValueError: a number in it is NaN or infinite; says where. Or as `atomic_path`.
        OSError: as `atomic_path`.
    """
    write_atomically(path, json_text(value, indent=1) + "\n")


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[TextIO]:
    """A text file to write to. It replaces `path` when the block succeeds; else `path` is unchanged.

    Raises:
        ValueError, OSError: as `atomic_path`.
    """
    with atomic_path(path) as temporary, temporary.open("w") as file:
        yield file
