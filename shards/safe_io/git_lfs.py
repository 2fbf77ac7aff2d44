"""Refuse Git LFS pointers: small text files that stand for large files which were not downloaded.

Without this, the reader of such a file would say that it is damaged.
"""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec"


def refuse_pointer(path: str | Path, shown: str | None = None) -> None:
    """Refuse a file that is a Git LFS pointer. A file that cannot be opened is not refused here.

    Args:
        path: of the file, on local disk.
        shown: its name in the error message; default: the path.

    Raises:
        ValueError: it is a pointer; says how to download the file itself.
    """
    try:
        with open(path, "rb") as file:
            first = file.read(len(POINTER))
    except OSError:
        return
    refuse_pointer_text(first, shown or str(path))


def refuse_pointer_text(content: bytes | str, shown: str) -> None:
    """`refuse_pointer` for content that was read already.

    Raises:
        ValueError: as in `refuse_pointer`.
    """
    first = content[: len(POINTER)]
    if (first.encode(errors="replace") if isinstance(first, str) else first) == POINTER:
        raise ValueError(
            f"{shown}: a Git LFS pointer and not the file itself; run `git lfs pull` in its repository "
            "(git-lfs must be installed)"
        )
