"""Read many arrays with few system calls: arrays that are close together in a file are read by one `preadv`.

The reader calls this once per batch. The arrays of an utterance follow each other in a tar, so one call reads
at least all of them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Between arrays that are read together there are tar headers, padding and small members. Copying up to this
# many bytes of them costs less than another call, which waits for the interpreter's lock when it returns.
LARGEST_GAP = 8192
# Buffers per call, below Linux's limit of 1,024.
BUFFERS_PER_CALL = 512
# Another thread gets a part of at least this many bytes: to wake it takes as long as to read some of them.
SMALLEST_PART = 512 << 10

# The bytes of gaps go here. Nobody reads them, so all threads may write here at the same time.
_GAP = memoryview(bytearray(LARGEST_GAP))


@dataclass(frozen=True)
class Reads:
    """N arrays to read into one block of memory, one after the other.

    Attributes:
        file: [N] number of the file of each array.
        offset, size: [N] each, in bytes; arrays of size 0 are not read.
        memory: of as many bytes as the sizes add up to.
    """

    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    memory: memoryview


def read_scattered(
    files: dict[int, tuple[int, Path]], reads: list[Reads], helpers: Executor, num_threads: int
) -> None:
    """Read all arrays, in the calling thread and in helpers.

    `preadv` releases the interpreter's lock while the kernel copies, so the threads copy at the same time.
    Between two calls a thread does hold the lock, so all that can be done before is done before.

    Args:
        files: descriptor and path of each file; the path is for error messages.
        reads: what to read.
        helpers: threads for all but the calling one.
        num_threads: how many threads read, the calling one among them; fewer if there is little to read.

    Raises:
        ValueError: a file ends within an array.
    """
    runs, total = _plan_runs(files, reads)
    # The threads take run after run from one iterator, so all end at about the same time.
    unread = iter(runs)
    num_helpers = min(num_threads, len(runs), total // SMALLEST_PART) - 1
    others = [helpers.submit(_read_runs, unread) for _ in range(num_helpers)]
    try:
        _read_runs(unread)
    finally:
        # Wait also after an error: the caller frees the memory, and the other threads may still write to it.
        wait(others)
    for other in others:
        other.result()


class _Run(NamedTuple):
    """Arrays that follow each other in a file, with gaps between them.

    Attributes:
        fd, path: of the file.
        buffers: for the arrays, and between them for the gaps.
        offset, size: what is read, in bytes.
    """

    fd: int
    path: Path
    buffers: list[memoryview]
    offset: int
    size: int


def _plan_runs(files: dict[int, tuple[int, Path]], reads: list[Reads]) -> tuple[list[_Run], int]:
    """The runs, in the order of files and offsets, and the number of bytes of all arrays."""
    # All arrays of all blocks of memory in one list, then sorted by file and offset.
    block = np.repeat(np.arange(len(reads)), [len(r.size) for r in reads])
    file, offset, size = (
        np.concatenate([getattr(r, name) for r in reads]) for name in ("file", "offset", "size")
    )
    end = np.concatenate([np.cumsum(r.size) for r in reads])
    order = np.lexsort((offset, file))
    order = order[size[order] > 0]
    if len(order) == 0:
        return [], 0
    file, offset, size, end, block = file[order], offset[order], size[order], end[order], block[order]

    stop = offset + size
    gap = offset[1:] - stop[:-1]
    apart = (file[1:] != file[:-1]) | (gap < 0) | (gap > LARGEST_GAP)
    # Half of the buffers of a call are arrays, the others are the gaps between them.
    first = _starts(apart, BUFFERS_PER_CALL // 2)
    last = np.append(first[1:], len(size)) - 1
    destinations = zip(block.tolist(), (end - size).tolist(), end.tolist(), strict=True)
    buffers: list[memoryview] = [_GAP] * (2 * len(size))
    buffers[::2] = [reads[b].memory[begin:stop] for b, begin, stop in destinations]
    inner = np.flatnonzero(~apart)
    for i, num_bytes in zip((2 * inner + 1).tolist(), gap[inner].tolist(), strict=True):
        buffers[i] = _GAP[:num_bytes]
    columns = file[first], 2 * first, 2 * last + 1, offset[first], stop[last] - offset[first]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [_Run(*files[f], buffers[low:high], begin, num) for f, low, high, begin, num in rows], int(
        size.sum()
    )


def _starts(apart: np.ndarray, longest: int) -> np.ndarray:
    """The first array of each run: the first of all, those where `apart` is set, and after each `longest`.

    Args:
        apart: [N - 1] whether each array but the first cannot be read together with the one before.
    """
    first = np.concatenate([[0], np.flatnonzero(apart) + 1])
    pieces = -(-np.diff(np.append(first, len(apart) + 1)) // longest)
    if len(first) == pieces.sum():
        return first
    nth = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    starts: np.ndarray = np.repeat(first, pieces) + nth * longest
    return starts


def _read_runs(runs: Iterator[_Run]) -> None:
    """Read the runs that this thread takes from the iterator."""
    preadv = getattr(os, "preadv", None)
    for run in runs:
        if preadv is None or preadv(run.fd, run.buffers, run.offset) != run.size:
            # It read less because of a signal, the kernel's limit per call or the file's end.
            offset = run.offset
            for view in run.buffers:
                read_into(run.fd, view, offset, run.path)
                offset += len(view)


def crc_mismatches(reads: Reads, crc: np.ndarray, helpers: Executor, num_parts: int) -> list[int]:
    """Positions in `reads` of the arrays whose CRC-32 differs from the one in `crc`.

    Args:
        reads: what was read; empty arrays are not compared.
        crc: [N] the CRC-32 of each array by its index; -1 where none is recorded, which is not compared.
        helpers, num_parts: as in `read_scattered`.
    """
    ends, sizes = np.cumsum(reads.size).tolist(), reads.size.tolist()
    arrays = [
        (i, end, size, wanted)
        for i, (end, size, wanted) in enumerate(zip(ends, sizes, crc.tolist(), strict=True))
        if size and wanted >= 0
    ]

    def compare(part: int) -> list[int]:
        return [
            i
            for i, end, size, wanted in arrays[part::num_parts]
            if zlib.crc32(reads.memory[end - size : end]) != wanted
        ]

    others = [helpers.submit(compare, part) for part in range(1, num_parts)]
    return sorted(sum((other.result() for other in others), compare(0)))


def read_into(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fill `view` with the bytes of a file from `offset` on; usually one system call.

    Raises:
        ValueError: the file ends before `view` is full.
    """
    done = 0
    while done < len(view):
        count = _read_some(fd, view[done:], offset + done)
        if count == 0:
            raise ValueError(
                f"{path}: ends at {offset + done} bytes, within an array; damaged, pack it again"
            )
        done += count


def _read_some(fd: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    # macOS before 11 has no preadv; this makes one more copy.
    data = os.pread(fd, len(view), offset)
    view[: len(data)] = data
    return len(data)
