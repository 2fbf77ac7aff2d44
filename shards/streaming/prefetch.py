"""Read batches ahead in a thread, and copy the next batch to the GPU while the current one is used.

`FeatureStream.epoch` uses both. Without them every step would wait for the disk, and for the copy.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from typing import TypeVar

import torch

from shards.streaming.batch import FeatureBatch

# How long to wait for the thread at the end. If it still retries a download then, it is not waited for: it is
# a daemon thread.
JOIN_S = 5.0

T = TypeVar("T")


def read_ahead(
    make: Callable[[threading.Event], Generator[T, None, None]],
    depth: int,
    budget: int,
    size_of: Callable[[T], int],
) -> Iterator[T]:
    """Iterate `make(stopped)` in a thread; its exceptions are raised here.

    The thread ends with the last item, or after the current one when the consumer closes this iterator, an
    exception ends the consumer's loop, or the process exits.

    It is one thread; the arrays of a batch are read by several (see `scattered_reads`). More threads here
    would mostly wait for the interpreter's lock.

    Args:
        make: opens the iterator, in the thread. It gets an event that is set when no more items are needed,
            since the thread may be waiting for a store at that time.
        depth: items that may be ready; 0 uses no thread and makes each item when it is asked for.
        budget: bytes that may be ready. The next item is made while fewer are, so one item may exceed it: an
            item of any size is read ahead.
        size_of: bytes of an item.

    Raises:
        RuntimeError: the process was forked since the first item; threads do not survive a fork.
    """
    stopped = threading.Event()
    if depth == 0:
        yield from make(stopped)
        return
    pid = os.getpid()
    # A queue and an event, since a condition costs several times as much, and each batch pays it.
    ready: SimpleQueue[tuple[T, int] | None] = SimpleQueue()  # None: the end
    room, lock = threading.Event(), threading.Lock()
    failure: list[BaseException] = []
    num_ready, ready_bytes = 0, 0

    def count(items: int, num_bytes: int) -> None:
        nonlocal num_ready, ready_bytes
        with lock:
            num_ready, ready_bytes = num_ready + items, ready_bytes + num_bytes
            has_room = not num_ready or (num_ready < depth and ready_bytes < budget)
            if has_room or stopped.is_set():
                room.set()
            else:
                room.clear()

    def produce() -> None:
        try:
            with closing(make(stopped)) as items:
                for item in items:
                    size = size_of(item)
                    count(1, size)
                    ready.put((item, size))
                    # Else this frame would refer to the batch, and its buffer, after the consumer has freed
                    # it.
                    del item
                    room.wait()
                    if stopped.is_set():
                        break
        # Of any kind: the consumer raises it.
        except BaseException as error:
            failure.append(error)
        finally:
            ready.put(None)

    thread = threading.Thread(target=produce, name="shards-read", daemon=True)

    def end() -> None:
        # In a fork the lock may be held for ever, by a thread that the fork does not have.
        if os.getpid() == pid:
            stopped.set()
            count(0, 0)
            thread.join(timeout=JOIN_S)

    thread.start()
    # At shutdown, Python ends a daemon thread when it returns from a function of torch, where C++ does not
    # allow it: the process would abort. So the thread is ended before.
    atexit.register(end)
    try:
        while True:
            if os.getpid() != pid:
                raise RuntimeError(
                    "this iterator was started before a fork; start it again in the new process"
                )
            found = ready.get()
            if found is None:
                break
            item, size = found
            del found  # as above
            count(-1, -size)
            yield item
            del item  # as above
        if failure:
            raise failure[0]
    finally:
        atexit.unregister(end)
        end()


def to_device_ahead(batches: Iterable[FeatureBatch], device: torch.device | str) -> Iterator[FeatureBatch]:
    """The batches on `device`; on CUDA each is copied there while the one before is used.

    Copies run on a CUDA stream of their own. They overlap with computation if the batches are in page-locked
    memory, as those of `FeatureStream` are in a process that uses CUDA. The host never waits for a copy; the
    consumer's current CUDA stream does. A batch's memory, on the host and on the device, is reused only when
    both CUDA streams have finished with it. On other devices a batch is moved when it is asked for; on the
    CPU it stays as it is.

    Args:
        batches: on the host.
        device: where to.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copy_stream = torch.cuda.Stream(device)
    waiting: tuple[FeatureBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            sent = batch.to(device, non_blocking=True), copy_stream.record_event()
        # The batch on the host can go: PyTorch's pool reuses its memory only after the copy.
        del batch
        if waiting is not None:
            yield _receive(*waiting)
        waiting = sent
        del sent
    if waiting is not None:
        yield _receive(*waiting)


def _receive(batch: FeatureBatch, copied: torch.cuda.Event) -> FeatureBatch:
    """Make the current CUDA stream wait for the copy, and mark the memory as used by this CUDA stream.

    Without `record_stream` the allocator, which knows only the stream of the copy, could reuse the memory
    while the current stream still reads it.
    """
    current = torch.cuda.current_stream(batch.label.device)
    current.wait_event(copied)
    batch.label.record_stream(current)
    batch.target.record_stream(current)
    for ragged in batch.features.values():
        ragged.values.record_stream(current)
        ragged.offsets.record_stream(current)
        if ragged.quantization is not None:
            ragged.quantization.record_stream(current)
    return batch
