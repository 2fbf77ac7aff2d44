"""Files that operating systems leave beside others: they are nobody's data, in folders and in tars."""

from __future__ import annotations

# Windows' and Linux' folder views, macOS' icons, and the folder in which macOS' archiver keeps its own.
NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", ".ds_store", ".directory"}
# macOS keeps what a file system does not take of a file's attributes in "._NAME" beside it.
APPLE_DOUBLE = "._"


def is_clutter(name: str) -> bool:
    """Whether a file, by its name or one of its folders', is one that an operating system left.

    Args:
        name: a path with slashes.
    """
    return any(part.startswith(APPLE_DOUBLE) or part.lower() in NAMES for part in name.split("/"))
