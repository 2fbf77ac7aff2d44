"""Ahead of need: batches made in a thread, and copied to a GPU while it works on the one before."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

import torch

from shards.streaming.batch import FeatureBatch

# A reader amid a retried download is not waited for any longer; its thread dies with the process.
JOIN_S = 5.0

T = TypeVar("T")


def read_ahead(
    make: Callable[[threading.Event], Generator[T, None, None]],
    depth: int,
    budget: int,
    size_of: Callable[[T], int],
) -> Iterator[T]:
    """Iterate `make(stopped)` in a thread of its own; its exceptions come out here.

    One thread; within a batch, reading is shared among several (see `reads`). Further ones here
    would mostly wait for the interpreter's lock.

    Args:
        make: opens the iterator, in the thread that reads it. It is given an event that is set when nobody
            wants more: the thread may be waiting for a store then.
        depth: items that may lie ready; 0 reads without a thread, when asked.
        budget: bytes that may lie ready. Reading goes on while less do, so that one item may exceed it:
            however large, an item is read ahead.
        size_of: bytes of an item.

    Raises:
        RuntimeError: the process was forked since the first item: no thread comes along.
    """
    stopped = threading.Event()
    if depth == 0:
        yield from make(stopped)
        return
    born = os.getpid()
    changed = threading.Condition()
    ready: deque[tuple[T, int]] = deque()
    failure: list[BaseException] = []
    held, done = 0, False

    def may_go_on() -> bool:
        return stopped.is_set() or not ready or (len(ready) < depth and held < budget)

    def produce() -> None:
        nonlocal held, done
        try:
            with closing(make(stopped)) as items:
                for item in items:
                    size = size_of(item)
                    with changed:
                        ready.append((item, size))
                        held += size
                        # Else this thread would keep a batch, and its buffer, that the consumer has let go.
                        del item
                        changed.notify()
                        changed.wait_for(may_go_on)
                        if stopped.is_set():
                            break
        except BaseException as error:
            failure.append(error)
        finally:
            with changed:
                done = True
                changed.notify()

    thread = threading.Thread(target=produce, name="shards-read", daemon=True)

    def end() -> None:
        # After a fork the lock may be held for ever, by a thread that is not there.
        if os.getpid() == born:
            stopped.set()
            with changed:
                changed.notify()
            thread.join(timeout=JOIN_S)

    thread.start()
    # While the interpreter shuts down, Python ends a daemon thread as it returns from a function of torch,
    # where C++ does not allow that: the process would abort. So this thread ends before.
    atexit.register(end)
    try:
        while True:
            if os.getpid() != born:
                raise RuntimeError(
                    "an iterator begun before a fork ends with it: begin it in the new process"
                )
            with changed:
                changed.wait_for(lambda: ready or done)
                if not ready:
                    break
                item, size = ready.popleft()
                held -= size
                changed.notify()
            yield item
            del item
        if failure:
            raise failure[0]
    finally:
        atexit.unregister(end)
        end()


def to_device_ahead(batches: Iterable[FeatureBatch], device: torch.device | str) -> Iterator[FeatureBatch]:
    """The batches on `device`; on CUDA each is copied there while the one before is worked on.

    Copies run on a stream of their own, and overlap with work where the batches lie in page-locked memory, as
    those of `FeatureStream` do in a process that uses CUDA. The host never waits for them: the consumer's
    current stream does. A batch's memory on either side is reused only when all that was asked of it on both
    streams has been done. Anywhere but on CUDA a batch is moved when its turn comes: on the CPU it passes
    unchanged.

    Args:
        batches: on the host.
        device: where to.
    """
    device = torch.device(device)
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    copies = torch.cuda.Stream(device)
    waiting: tuple[FeatureBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            sent = batch.to(device, non_blocking=True), copies.record_event()
        # The host's side is no longer needed: its pool knows of the copy.
        del batch
        if waiting is not None:
            yield _receive(*waiting)
        waiting = sent
        del sent
    if waiting is not None:
        yield _receive(*waiting)


def _receive(batch: FeatureBatch, copied: torch.cuda.Event) -> FeatureBatch:
    """Let the current stream wait for a batch's copy, and its memory for the current stream's work."""
    current = torch.cuda.current_stream(batch.label.device)
    current.wait_event(copied)
    batch.label.record_stream(current)
    for ragged in batch.features.values():
        ragged.values.record_stream(current)
        ragged.offsets.record_stream(current)
    return batch
