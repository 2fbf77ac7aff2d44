"""Progress of long work, on standard error: a bar on a terminal, plain lines in a file or a pipe.

The lines of a log come after a few seconds, then every 30 s, and at the end:

    extract: 120/4,000 clips (3 %), 4.1 clips/s, 0:15:46 left
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self, TypeAlias

from tqdm import tqdm

from shards.safe_io.printable import plural, printable

FIRST_S = 3.0  # from the start to the first line
INTERVAL_S = 30.0  # between lines

Progress: TypeAlias = "tqdm[Any] | ProgressLines"


def on_terminal() -> bool:
    return sys.stderr.isatty()


def progress_bar(
    what: str,
    unit: str,
    total: int | None = None,
    *,
    initial: int = 0,
    first_s: float = FIRST_S,
    show: bool = True,
) -> Progress:
    """Show how much of some work is done; use it in a `with` block, and call its `update`.

    Args:
        what: the name of the work.
        unit: what is counted, in the singular; "B" for bytes.
        total: how many there are; None if unknown.
        initial: how many are done already.
        first_s: seconds from the start to the first line of a log.
        show: False shows nothing.
    """
    if show and not on_terminal():
        return ProgressLines(what, unit, total, initial, first_s)
    return tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        unit_scale=unit == "B",
        dynamic_ncols=True,
        disable=not show,
    )


class ProgressLines:
    """What a log gets instead of a bar. Lines are written by calls of these methods, from any thread."""

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None,
        initial: int = 0,
        first_s: float = FIRST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.what, self.unit, self.total, self.initial, self.n = what, unit, total, initial, initial
        self.postfix = ""
        self._clock, self._started = clock, clock()
        self._due = self._started + first_s
        self._guard = threading.Lock()

    def update(self, count: int = 1) -> None:
        with self._guard:
            self.n += count
            self._write_if_due()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Set what stands at the end of the following lines; without `refresh`, none is written now."""
        with self._guard:
            self.postfix = text
            if refresh:
                self._write_if_due()

    def close(self) -> None:
        """Write the last line, unless nothing was done."""
        with self._guard:
            if self.n > self.initial:
                write_line(self._line(ended=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write_if_due(self) -> None:
        if (now := self._clock()) >= self._due:
            self._due = now + INTERVAL_S
            write_line(self._line())

    def _line(self, ended: bool = False) -> str:
        seconds = max(self._clock() - self._started, 1e-9)
        rate = (self.n - self.initial) / seconds
        text = f"{self.what}: {_count(self.n, self.total, self.unit)}"
        if self.total:
            text += f" ({100 * self.n // self.total} %)"
        if ended:
            text += f" in {duration(seconds)}"
        if rate:
            text += f", {speed(rate, self.unit)}"
        if rate and self.total and not ended:
            text += f", {duration(max(self.total - self.n, 0) / rate)} left"
        return f"{text}, {self.postfix}" if self.postfix and not ended else text


def write_line(text: str) -> None:
    """Write a line to standard error, after what was printed before."""
    if sys.stdout is not None:
        sys.stdout.flush()  # both often go to the same file
    print(printable(text), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in "0:15:46"."""
    return str(timedelta(seconds=round(seconds)))


def speed(rate: float, unit: str) -> str:
    """A rate per second, as in "4.1 clips/s", or for slow work "3.5 s per clip"."""
    if unit == "B":
        return f"{tqdm.format_sizeof(rate, 'B')}/s"
    if 0 < rate < 1:
        return f"{1 / rate:.1f} s per {unit}"
    return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}s/s"


def _count(done: int, total: int | None, unit: str) -> str:
    if unit == "B":
        return " of ".join(tqdm.format_sizeof(n, "B") for n in (done, total) if n is not None)
    return plural(done, unit) if total is None else f"{done:,}/{plural(total, unit)}"
