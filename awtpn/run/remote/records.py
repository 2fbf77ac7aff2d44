"""The records of a run at its URL: all small files, sent again as a whole when they change.

Objects cannot be appended to. So `metrics.jsonl` is sent in numbered parts: `metrics.jsonl` has the first
lines, up to `PART_BYTES`, `metrics-00001.jsonl` the next, and so on. Only the last part grows, and only that
is sent again. TensorBoard's writer begins a new event file at the same size (`awtpn.tracking.tensorboard`).
`status.json` is sent last, so that "done" at the URL means that all other records are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from awtpn.run.atomic_write import write_atomically
from awtpn.run.record import STATUS_FILE
from awtpn.run.remote import files
from shards.storage.store import Store

METRICS = "metrics.jsonl"
PART_BYTES = 4 << 20
METRICS_PART = re.compile(r"metrics(?:-(\d{5}))?\.jsonl")
RUN_FILE = "run.json"  # names the run: see `session`
# What belongs to a run, at the URL and in the local folder; nothing else is sent, fetched or removed.
RECORD = re.compile(
    r"config(-\d+)?\.yaml|status\.json|results\.json|metrics(-\d{5})?\.jsonl|predictions-[\w-]+\.jsonl"
    r"|report\.(html|md)|trackers\.json|tensorboard/.+|profile/.+|stacks/.+"
    r"|earlier-results-\d{8}-\d{6}/.+"
)


def is_record(name: str) -> bool:
    """Whether a file of a run folder, by its name in it, is one of its records."""
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "" for part in parts)
    return not hidden and "\\" not in name and RECORD.fullmatch(name) is not None


def local_records(folder: Path) -> dict[str, Path]:
    """The records in a local run folder, by their names in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_record(name) and path.is_file() and not path.is_symlink():
            found[name] = path
    return found


def part_name(number: int) -> str:
    return f"metrics-{number:05d}.jsonl" if number else METRICS


def part_number(name: str) -> int | None:
    """The number of a part of metrics.jsonl at the URL; None for another file."""
    found = METRICS_PART.fullmatch(name)
    return int(found[1] or 0) if found else None


@dataclass
class Parts:
    """How far a local metrics.jsonl has been cut into parts.

    Attributes:
        inode: of the file. When a run is resumed, the file is replaced, and cut from its beginning.
        ends: in bytes, of the parts that are full.
        sent: bytes that are at the URL.
        at_url: number of parts there.
    """

    inode: int = 0
    ends: list[int] = field(default_factory=list)
    sent: int = -1
    at_url: int = 0


class RecordSender:
    """Sends the records of a local run folder that changed since the last call.

    Args:
        store: the run folder at the URL.
        folder: the local one.
        at_url: the names of the records that are at the URL.
        part_bytes: of a part of the metrics.
    """

    def __init__(
        self, store: Store, folder: Path, at_url: Iterable[str] = (), part_bytes: int = PART_BYTES
    ) -> None:
        self.store, self.folder, self.part_bytes = store, folder, part_bytes
        names = [name for name in at_url if is_record(name)]
        numbers = [number for name in names if (number := part_number(name)) is not None]
        self.at_url = {name for name in names if part_number(name) is None}
        self.sent: dict[str, tuple[int, int, int]] = {}
        self.parts = Parts(at_url=max(numbers, default=-1) + 1)

    def assume_sent(self) -> None:
        """Take the records as they are now for those at the URL, from where they were just fetched."""
        for name, path in local_records(self.folder).items():
            self.sent[name] = _state(path)
        if (path := self.folder / METRICS).is_file():
            with path.open("rb") as file:
                self.parts = Parts(_inode(path), at_url=self.parts.at_url)
                for _, start, content in cut(file, self.parts.ends, self.part_bytes):
                    self.parts.sent = start + len(content)

    def send_changed(self) -> None:
        """Send what changed, and delete at the URL what was removed here.

        Raises:
            OSError: the store cannot be reached or refuses; the next call goes on from there.
        """
        found = local_records(self.folder)
        for name in sorted(self.at_url - found.keys()):
            files.delete(self.store, [name])
            self.at_url.discard(name)
        # Parts of metrics are no files here: a local file of such a name is left from a copy of the URL.
        others = [name for name in found if part_number(name) is None]
        for name in sorted(others, key=lambda name: name == STATUS_FILE):
            if name == STATUS_FILE and METRICS in found:
                self._send_metrics(found[METRICS])
            self._send_if_changed(name, found[name])
        if METRICS in found and STATUS_FILE not in found:
            self._send_metrics(found[METRICS])

    def _send_if_changed(self, name: str, path: Path) -> None:
        try:
            state = _state(path)
            if self.sent.get(name) == state:
                return
            content = path.read_bytes()
        except FileNotFoundError:
            return  # replaced or removed at this moment; the next call sees what it is
        files.put_bytes(self.store, name, content)
        self.sent[name] = state
        self.at_url.add(name)

    def _send_metrics(self, path: Path) -> None:
        with path.open("rb") as file:
            inode = _inode(path)
            if inode != self.parts.inode:
                self.parts = Parts(inode, at_url=self.parts.at_url)
            parts = self.parts
            for number, start, content in cut(file, parts.ends, self.part_bytes):
                end = start + len(content)
                if end <= parts.sent:
                    continue  # nothing new in it
                files.put_bytes(self.store, part_name(number), content)
                parts.sent, parts.at_url = end, max(parts.at_url, number + 1)
        # Of a longer file, before the run was set back to an earlier step.
        used = len(parts.ends) + 1
        while parts.at_url > used:
            files.delete(self.store, [part_name(parts.at_url - 1)])
            parts.at_url -= 1


def cut(file: BinaryIO, ends: list[int], part_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, start and content of the parts of a file of lines, from the last one that is not full on.

    A line that is being written at this moment is left out.

    Args:
        file: opened for reading bytes.
        ends: of the full parts; those that become full are added.
        part_bytes: no part is larger, unless it is a single line.
    """
    while True:
        start = ends[-1] if ends else 0
        file.seek(start)
        content = file.read(part_bytes)
        while content and b"\n" not in content and (more := file.read(part_bytes)):
            content += more
        whole = content[: content.rfind(b"\n") + 1]
        is_full = len(content) >= part_bytes and bool(whole)
        number = len(ends)
        if is_full:
            ends.append(start + len(whole))
        yield number, start, whole
        if not is_full:
            return


def join_parts(folder: Path, parts: Iterable[bytes]) -> None:
    """Write metrics.jsonl of a local run folder from its parts, in their order."""
    write_atomically(folder / METRICS, b"".join(parts))


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _inode(path: Path) -> int:
    return path.stat().st_ino
