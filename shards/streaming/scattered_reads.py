"""Read many arrays with few system calls: arrays that are close together in a file are read by one `preadv`.

The reader calls this once per batch. The arrays of an utterance follow each other in a tar, so one call reads
at least all of them.
"""

from __future__ import annotations

import os
import zlib
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Between arrays that are read together there are tar headers, padding and small members. Copying up to this
# many bytes of them costs less than another call, which waits for the interpreter's lock when it returns.
LARGEST_GAP = 8192
# Buffers per call, below Linux's limit of 1,024.
BUFFERS_PER_CALL = 512

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
    files: dict[int, tuple[int, Path]], reads: list[Reads], helpers: Executor, num_parts: int
) -> None:
    """Read all arrays, a part of them in each of `num_parts` threads.

    `preadv` releases the interpreter's lock while the kernel copies, so the threads copy at the same time.

    Args:
        files: descriptor and path of each file; the path is for error messages.
        reads: what to read.
        helpers: threads for all parts but one, which the calling thread reads.
        num_parts: number of parts.

    Raises:
        ValueError: a file ends within an array.
    """
    # All arrays of all blocks of memory in one list, then sorted by file and offset.
    block = np.repeat(np.arange(len(reads)), [len(r.size) for r in reads])
    file, offset, size = (
        np.concatenate([getattr(r, name) for r in reads]) for name in ("file", "offset", "size")
    )
    end = np.concatenate([np.cumsum(r.size) for r in reads])
    order = np.lexsort((offset, file))
    order = order[size[order] > 0]
    file, offset, size, end, block = file[order], offset[order], size[order], end[order], block[order]

    gap = offset[1:] - (offset[:-1] + size[:-1])
    apart = (file[1:] != file[:-1]) | (gap < 0) | (gap > LARGEST_GAP)
    destinations = zip(block.tolist(), (end - size).tolist(), end.tolist(), strict=True)
    views = [reads[b].memory[begin:stop] for b, begin, stop in destinations]
    gaps, offsets, run_ends = gap.tolist(), offset.tolist(), np.flatnonzero(apart).tolist()
    # A run is read by one call. Half of its buffers are arrays, the others are the gaps between them.
    runs, first = [], 0
    for last in [*run_ends, len(views) - 1] if views else []:
        for low in range(first, last + 1, BUFFERS_PER_CALL // 2):
            high = min(low + BUFFERS_PER_CALL // 2, last + 1)
            runs.append((*files[int(file[low])], views[low:high], offsets[low:high], gaps[low : high - 1]))
        first = last + 1

    def read_part(part: int) -> None:
        for run in runs[part::num_parts]:
            _read_run(*run)

    others = [helpers.submit(read_part, part) for part in range(1, num_parts)]
    try:
        read_part(0)
    finally:
        # Wait also after an error: the caller frees the memory, and the other threads may still write to it.
        wait(others)
    for other in others:
        other.result()


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


def _read_run(fd: int, path: Path, views: list[memoryview], offsets: list[int], gaps: list[int]) -> None:
    """Read arrays that follow each other in a file, with gaps between them."""
    if hasattr(os, "preadv"):
        buffers = views[:1]
        for view, gap in zip(views[1:], gaps, strict=True):
            buffers += (_GAP[:gap], view)
        if os.preadv(fd, buffers, offsets[0]) == offsets[-1] + len(views[-1]) - offsets[0]:
            return
    # There is no preadv, or it read less: because of a signal, the kernel's limit per call or the file's end.
    for view, offset in zip(views, offsets, strict=True):
        read_into(fd, view, offset, path)


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
