"""How every command begins and ends: its output shows no credentials, and a user's error is one line."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from awtpn.config.private_words import restore_private_words
from awtpn.config.rank_errors import exit_with_line, exit_with_traceback
from shards.safe_io.printable import printable_lines
from shards.storage.credentials import redact, remember_command


def run_command(
    command: Callable[[list[str]], object],
    words: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
    interrupted: str = "interrupted",
) -> None:
    """Run a command; its output shows no credentials, and an error that a user can cause ends in one line.

    Args:
        command: called with the words of the command line, without the program's name.
        words: of the command line; default: those of `sys.argv`.
        errors: types of those that a user can cause; others end in a traceback.
        interrupted: what to say after Ctrl-C.

    Raises:
        SystemExit: with the one-line error, which is printed once on each host.
    """
    given = restore_private_words(sys.argv[1:] if words is None else words)
    remember_command(given)
    redact_output()
    if not sys.stderr.isatty():
        # Other libraries draw bars into log files, too. tqdm reads this when it is imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
    if isinstance(stream := getattr(sys.stdout, "unredacted", None), io.TextIOWrapper):
        # A file name may hold bytes that are not text, or characters that this terminal cannot encode.
        stream.reconfigure(errors="backslashreplace")
    try:
        command(given)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of the pipe has closed it; Python must not report that again at exit
    except errors as error:
        exit_with_line(f"error: {printable_lines(redact(error))}")
    except KeyboardInterrupt:
        exit_with_line(interrupted)
    except Exception as error:
        exit_with_traceback(error)
        raise


def redact_output() -> None:
    """From now on hide credentials in everything that this process prints or logs.

    Tracebacks, warnings and errors of threads go to `sys.stderr`, too. Loggers keep the stream that they
    found at import, so log records are redacted when they are made.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))
    logging.setLogRecordFactory(RedactedRecord)


class RedactedStream:
    """A text stream that hides credentials; everything else is passed to the wrapped stream."""

    def __init__(self, stream: Any) -> None:
        self.unredacted = stream

    def write(self, text: str) -> int:
        """Write the redacted text; returns the length of `text`, as callers expect."""
        self.unredacted.write(redact(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unredacted, name)


class RedactedRecord(logging.LogRecord):
    """A log record whose message and traceback show no credentials."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exc_info and self.exc_info[0]:
            # Handlers print this text instead of formatting the exception themselves.
            self.exc_text = redact("".join(traceback.format_exception(*self.exc_info)).rstrip("\n"))

    def getMessage(self) -> str:
        """The message, with its arguments."""
        return redact(super().getMessage())


def data_output() -> io.TextIOBase:
    """Standard output without redaction, for data: a label may equal a short password."""
    stream: Any = sys.stdout
    return stream.unredacted if isinstance(stream, RedactedStream) else stream
