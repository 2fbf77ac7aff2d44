"""Pictures of a batch that are stored as JPEG: where their files are, and how they become arrays.

The files of a batch are read into one block of memory, one after the other, as arrays are. Then threads
decode them into the batch's memory.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from shards.cores import usable_cores
from shards.format.jpeg import decode_jpeg_into
from shards.streaming.buffer_pool import BufferPool
from shards.streaming.scattered_reads import Reads
from shards.streaming.shard_handle import ShardHandle

MOST_THREADS = 16
TASKS_PER_THREAD = 4  # pictures are handed out in parts, so that no thread waits long for the last one


@dataclass(frozen=True)
class JpegFiles:
    """The JPEG files of B utterances' pictures of one modality.

    Attributes:
        by_picture: a read for each picture.
        by_utterance: the same bytes with one size for each utterance, [B].
        pictures: number of each utterance's pictures, [B] int64.
        buffer: what they are read into; held, so that its memory is not reused before they are decoded.
    """

    by_picture: Reads
    by_utterance: Reads
    pictures: np.ndarray
    buffer: torch.Tensor


def decode_threads() -> int:
    """Number of threads that decode pictures: one for each core that the process may use."""
    return min(usable_cores(), MOST_THREADS)


@functools.cache
def decoders() -> ThreadPoolExecutor:
    """The threads that decode pictures for all streams of this process; they start when they are needed."""
    return ThreadPoolExecutor(decode_threads(), "shards-decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=decoders.cache_clear)  # a fork has none of the threads


def locate_jpegs(
    handles: Mapping[int, ShardHandle], shard: np.ndarray, row: np.ndarray, modality: str, pool: BufferPool
) -> JpegFiles:
    """Where the pictures of utterances are.

    Args:
        handles: of the shards.
        shard, row: of each utterance, [B] each.
        modality: stored as JPEG.
        pool: of the buffer to read them into.
    """
    found = [handles[s].pictures(modality, r) for s, r in zip(shard.tolist(), row.tolist(), strict=True)]
    pictures = np.array([len(offset) for offset, _ in found], np.int64)
    first = np.array([offset[0] if len(offset) else -1 for offset, _ in found], np.int64)
    total = np.array([size.sum() for _, size in found], np.int64)
    none = np.zeros(0, np.int64)
    offset = np.concatenate([none, *(offset for offset, _ in found)])
    size = np.concatenate([none, *(size for _, size in found)])
    buffer = pool.lease(int(total.sum()), False)
    memory = buffer.numpy().data
    by_picture = Reads(np.repeat(shard, pictures), offset, size, memory)
    return JpegFiles(by_picture, Reads(shard, first, total, memory), pictures, buffer)


def decode_jpegs(files: JpegFiles, values: torch.Tensor) -> dict[int, tuple[int, str]]:
    """Decode the files into `values` uint8 [sum of pictures, height, width, 3].

    Returns:
        By position of the utterance, the number of the first picture that cannot be decoded, and why.
    """
    ends, arrays = np.cumsum(files.by_picture.size), values.numpy()
    begins = ends - files.by_picture.size
    memory = files.by_picture.memory

    def decode(pictures: range) -> list[tuple[int, str]]:
        failed = []
        for i in pictures:
            try:
                decode_jpeg_into(memory[begins[i] : ends[i]], arrays[i])
            except ValueError as error:
                failed.append((i, str(error)))
        return failed

    share = max(1, -(-len(ends) // (TASKS_PER_THREAD * decode_threads())))
    parts = [range(i, min(i + share, len(ends))) for i in range(0, len(ends), share)]
    last = np.cumsum(files.pictures)
    found: dict[int, tuple[int, str]] = {}
    for i, cause in chain.from_iterable(decoders().map(decode, parts)):
        utterance = int(np.searchsorted(last, i, side="right"))
        number = i - int(last[utterance] - files.pictures[utterance])
        found.setdefault(utterance, (number, cause))
    return found
