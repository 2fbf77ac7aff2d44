"""List the members of a tar with their offsets, and refuse a tar that is damaged or cut short.

`tarfile` reads a damaged header as the end of the archive, without an error; here it is an error. Members
that readers would drop or confuse are refused too: symbolic links, devices, sparse files, and two members of
one name. A hard link has the offset and size of its target.

Indexing a shard (`index`) and scanning tars of other programs (`tools.scan_tar`) use it.
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.safe_io.file_names import as_text, is_clutter, is_text

BLOCK = 512
# Names of member types for error messages.
DEVICES = {tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe"}


@dataclass(frozen=True)
class Header:
    """Where a file of a tar is.

    Attributes:
        name: in the tar.
        offset, size: of its content, in bytes; for a hard link those of its target.
    """

    name: str
    offset: int
    size: int

    @property
    def folder(self) -> str:
        """The folder of the file, "" at the top."""
        return self.name.removeprefix("./").rpartition("/")[0]

    @property
    def base(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    @property
    def key(self) -> str:
        """Key of its utterance by webdataset's rule: the name up to the first dot of its last part."""
        stem = self.base.partition(".")[0]
        return f"{self.folder}/{stem}" if self.folder else stem

    @property
    def ending(self) -> str:
        """What follows the key, without the dot."""
        return self.base.partition(".")[2]


@dataclass(frozen=True)
class Member:
    """A file of a tar, which is one of an utterance's files, with its content.

    Attributes:
        name: in the tar.
        key: of the utterance; see `Header`.
        extension: what follows the key, in lower case, without the dot.
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
    """All files of an uncompressed tar, by webdataset's rule for names.

    Raises:
        ValueError: as `headers`.
    """
    for header, content in contents(path, headers(path)):
        yield Member(header.name, header.key, header.ending.lower(), header.offset, header.size, content)


def contents(path: Path, found: list[Header]) -> Iterator[tuple[Header, IO[bytes]]]:
    """Each of these files of a tar with its content; one content is in memory at a time.

    Raises:
        ValueError: the tar ends within a file.
    """
    with open(path, "rb") as file:
        for header in found:
            file.seek(header.offset)
            content = file.read(header.size)
            if len(content) != header.size:
                raise ValueError(f"{path}: {header.name}: cut short; fetch or write the tar again")
            yield header, io.BytesIO(content)


def headers(path: Path) -> list[Header]:
    """Where all files of an uncompressed tar are, in order; without files that operating systems add.

    Raises:
        ValueError: the tar is damaged or cut short (names the byte), a member cannot be read as a file, or
            two members have one name (names the member).
    """
    found: dict[str, Header] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                # webdataset gives its own metadata names like __this__.
                if info.isdir() or is_clutter(info.name) or _is_note(info.name):
                    continue
                plain = posixpath.normpath(info.name)
                if plain in found:
                    raise ValueError(
                        f"{path}: {info.name}: is in the tar twice, and unpacking would keep the last; write "
                        "the tar again with one"
                    )
                found[plain] = _header(info, found, f"{path}: {as_text(info.name)}")
            # Where tarfile stopped. A complete tar has a block of zeros there.
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error}); fetch or write it again") from None
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
    if block != bytes(BLOCK):
        what = "a damaged header" if block else "no end-of-archive mark"
        raise ValueError(f"{path}: {what} at byte {end}: damaged or cut short; fetch or write it again")
    return list(found.values())


def _header(info: tarfile.TarInfo, found: dict[str, Header], at: str) -> Header:
    """Where a member's content is.

    Raises:
        ValueError: it has no content in the tar that can be read as it is.
    """
    if not is_text(info.name):
        raise ValueError(f"{at}: its name is not in UTF-8; write the tar again with such names")
    if info.islnk():
        target = found.get(posixpath.normpath(info.linkname))
        if target is None:
            raise ValueError(
                f"{at}: a hard link to {as_text(info.linkname)}, which is not in the tar before it; write "
                "the tar with tar --hard-dereference"
            )
        return Header(info.name, target.offset, target.size)
    if info.issym():
        raise ValueError(
            f"{at}: a symbolic link to {as_text(info.linkname)}; write the tar with the files themselves: "
            "tar --dereference"
        )
    if info.issparse():
        raise ValueError(f"{at}: a sparse file; write the tar without sparse files")
    if not info.isfile():
        kind = DEVICES.get(info.type, f"a member of the type {info.type!r}")
        raise ValueError(f"{at}: is {kind}, not a file; write the tar again without it")
    if info.size < 0:
        raise ValueError(f"{at}: a size of {info.size} bytes; fetch or write the tar again")
    return Header(info.name, info.offset_data, info.size)


def _is_note(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
