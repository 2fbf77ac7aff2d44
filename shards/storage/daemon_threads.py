"""A thread pool for requests to a store, which does not keep the process alive.

The interpreter joins the threads of a ThreadPoolExecutor at exit, so a download that retries for minutes
would delay the end of the process by minutes. Daemon threads are not joined.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads(Executor):
    """A ThreadPoolExecutor of daemon threads.

    Args:
        max_threads: largest number of threads; each call of `submit` starts one, until there are so many.
        name: of the threads.

    `submit` must be called from one thread only.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads, self._name = max_threads, name
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, partial(call, *args, **kwargs)))
        if len(self._threads) < self._max_threads:
            thread = threading.Thread(target=_run_calls, args=(self._calls,), name=self._name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        while cancel_futures:
            try:
                waiting = self._calls.get_nowait()
            except Empty:
                break
            if waiting is not None:
                waiting[0].cancel()
        # Each thread ends at the first None that it takes.
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads if wait else ():
            thread.join()


def _run_calls(calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]) -> None:
    while (item := calls.get()) is not None:
        future, call = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = call()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        # Else this frame would hold the result, and its memory, until the next call.
        del item, future, call
