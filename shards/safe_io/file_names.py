"""File names of all operating systems: files that the systems add, names that are not UTF-8, Unicode forms.

A file name on disk is bytes. Python reads bytes that are not UTF-8 as lone surrogates, which JSON in UTF-8
and terminals refuse. And a letter such as "é" may be one character (Unicode form NFC) or a letter and its
accent (NFD): macOS unpacks archives with names in NFD, while most tables have NFC.
"""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

# Files for the folder views of Windows and Linux, icons of macOS, and the folder that the archiver of macOS
# adds.
CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", ".ds_store", ".directory"}
# macOS stores attributes that a file system does not support in a file "._NAME" beside the file.
APPLE_DOUBLE = "._"
# Folders whose listings are kept in memory.
LISTED_FOLDERS = 256


def is_clutter(name: str) -> bool:
    """Whether an operating system added this file, by its name or the name of one of its folders.

    Args:
        name: a path with slashes.
    """
    return any(part.startswith(APPLE_DOUBLE) or part.lower() in CLUTTER for part in name.split("/"))


def is_text(name: str) -> bool:
    """Whether a name is valid text, without bytes that are not UTF-8 (lone surrogates)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: Any) -> Any:
    """Strings, also in mappings and lists, with bytes that are not UTF-8 escaped: "tr\\xe4urig"."""
    if isinstance(value, str):
        return value if is_text(value) else _escaped(value)
    if isinstance(value, dict):
        return {as_text(name): as_text(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(each) for each in value]
    return value


def _escaped(text: str) -> str:
    # Surrogates that do not stand for a byte, which JSON may contain, are escaped by their number.
    return (
        "".join(f"\\x{ord(mark) - 0xDC00:02x}" if 0xDC80 <= ord(mark) <= 0xDCFF else mark for mark in text)
        .encode(errors="backslashreplace")
        .decode()
    )


def composed(text: str) -> str:
    """Text in Unicode's form NFC, in which a letter and its accent are one character."""
    return unicodedata.normalize("NFC", text)


def existing(path: Path) -> Path:
    """The file of this name; if there is none, the file of the same name in another Unicode form.

    Args:
        path: as a table names it.

    Returns:
        `path` itself if it exists, or if not exactly one other file has the name in another form.
    """
    if str(path).isascii() or os.path.exists(path):
        return path
    parent = existing(path.parent)
    try:
        names = _names(str(parent), os.stat(parent).st_mtime_ns)
    except (OSError, ValueError):
        return path
    found = names.get(composed(path.name), [])
    return parent / found[0] if len(found) == 1 else path


@lru_cache(LISTED_FOLDERS)
def _names(folder: str, changed_ns: int) -> dict[str, list[str]]:
    """The names in a folder, by their form NFC. `changed_ns` is part of the cache's key only."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(composed(name), []).append(name)
    return names
