"""Names of files as systems have them: clutter among them, bytes that are no text, letters in two forms.

A name on a disk is bytes. Python reads those that are not UTF-8 as half characters (surrogates), which
neither JSON in UTF-8 nor a terminal takes. And a letter such as "é" is one character or two, the letter and
its accent (the Unicode forms NFC and NFD): macOS unpacks names in the second, most tables have the first.
"""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

# Windows' and Linux' folder views, macOS' icons, and the folder in which macOS' archiver keeps its own.
CLUTTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", ".ds_store", ".directory"}
# macOS keeps what a file system does not take of a file's attributes in "._NAME" beside it.
APPLE_DOUBLE = "._"
LISTED_FOLDERS = 256


def is_clutter(name: str) -> bool:
    """Whether a file, by its name or one of its folders', is one that an operating system left.

    Args:
        name: a path with slashes.
    """
    return any(part.startswith(APPLE_DOUBLE) or part.lower() in CLUTTER for part in name.split("/"))


def is_text(name: str) -> bool:
    """Whether a name is text, and not bytes that are none."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: Any) -> Any:
    """Strings, also those in mappings and lists, with bytes that are no text escaped: "tr\\xe4urig"."""
    if isinstance(value, str):
        return value if is_text(value) else _escaped(value)
    if isinstance(value, dict):
        return {as_text(name): as_text(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(each) for each in value]
    return value


def _escaped(text: str) -> str:
    # Half characters that stand for no byte, as JSON can bring them, are escaped by their number.
    return (
        "".join(f"\\x{ord(mark) - 0xDC00:02x}" if 0xDC80 <= ord(mark) <= 0xDCFF else mark for mark in text)
        .encode(errors="backslashreplace")
        .decode()
    )


def composed(text: str) -> str:
    """Text in the form in which a letter and its accent are one character (NFC)."""
    return unicodedata.normalize("NFC", text)


def existing(path: Path) -> Path:
    """The file of this name, or where there is none the one of the same name in another Unicode form.

    Args:
        path: as a table names it.

    Returns:
        `path` itself if it is there, or no other, or more than one in its place.
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
    """The names in a folder, by their composed form."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(composed(name), []).append(name)
    return names
