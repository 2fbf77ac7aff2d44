"""How every command begins and ends: what it prints shows no credentials, and a user's error is one line."""

from __future__ import annotations

import io
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from awtpn.config.private_words import restore_private_words
from shards.safe_io.printable import printable_lines
from shards.storage.credentials import redact, remember_command


def run_command(
    command: Callable[[list[str]], object],
    words: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
    interrupted: str = "interrupted",
) -> None:
    """Run a command, without a credential in what it prints; an error that a user can cause ends in a line.

    Args:
        command: is given the words of the command line, without the program's name.
        words: default: those of `sys.argv`.
        errors: those that a user can cause; others end in a traceback.
        interrupted: what to say after Ctrl-C.

    Raises:
        SystemExit: with the line.
    """
    given = restore_private_words(sys.argv[1:] if words is None else words)
    remember_command(given)
    redact_output()
    if isinstance(stream := getattr(sys.stdout, "unredacted", None), io.TextIOWrapper):
        # A name of a file may hold bytes that are no text, or letters that this terminal has not.
        stream.reconfigure(errors="backslashreplace")
    try:
        command(given)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has seen enough: no complaint at exit either
    except errors as error:
        sys.exit(f"error: {printable_lines(redact(error))}")
    except KeyboardInterrupt:
        sys.exit(interrupted)


def redact_output() -> None:
    """From now on nothing that this process prints, warns of or logs shows a credential.

    Tracebacks, warnings and errors of threads are printed to `sys.stderr`, too. Libraries that log keep the
    streams that they found when they were imported, so records of the log are redacted where they are made.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))
    logging.setLogRecordFactory(RedactedRecord)


class RedactedStream:
    """A text stream that writes no credentials; in all else the stream that it is made of."""

    def __init__(self, stream: Any) -> None:
        self.unredacted = stream

    def write(self, text: str) -> int:
        """Write without credentials; returns the length of `text`, as callers expect."""
        self.unredacted.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unredacted, name)


class RedactedRecord(logging.LogRecord):
    """A record of the log whose message and traceback show no credentials."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exc_info and self.exc_info[0]:
            # Handlers print this text where there is one.
            self.exc_text = redact("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        """The message, with its arguments."""
        return redact(super().getMessage())


def data_output() -> io.TextIOBase:
    """Standard output for data, which is written as it is: a label may read like a short password."""
    stream: Any = sys.stdout
    return stream.unredacted if isinstance(stream, RedactedStream) else stream
