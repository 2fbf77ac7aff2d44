"""Pointers that Git LFS leaves in the place of large files, where these were not fetched with the rest."""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec"


def refuse_pointer(path: str | Path, shown: str | None = None) -> None:
    """Refuse a Git LFS pointer; a file that cannot be opened is left to whoever opens it next.

    Args:
        path: of the file, on local disk.
        shown: how to name it in the message.

    Raises:
        ValueError: it is a pointer; says how to fetch the file itself.
    """
    try:
        with open(path, "rb") as file:
            first = file.read(len(POINTER))
    except OSError:
        return
    refuse_pointer_text(first, shown or str(path))


def refuse_pointer_text(content: bytes | str, shown: str) -> None:
    """`refuse_pointer` of content that was read already.

    Raises:
        ValueError: as there.
    """
    first = content[: len(POINTER)]
    if (first.encode(errors="replace") if isinstance(first, str) else first) == POINTER:
        raise ValueError(
            f"{shown}: a Git LFS pointer and not the file itself; run `git lfs pull` in its repository "
            "(git-lfs must be installed)"
        )
