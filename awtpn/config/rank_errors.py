"""Errors of ranks that a launcher started: what several ranks say appears once on each host.

A mistyped key makes every rank of a host print the same line. The first rank that has a line to print writes
it, and then enters it into a small file in the temporary folder; a rank that finds its line there ends with
the same status, and prints nothing. The file is locked meanwhile, so a rank that is silent has seen the line
printed. Without the file (a full disk, no locks) every rank prints.

torchrun ends with a summary of the failed ranks. It takes the text of each from the file that the environment
variable TORCHELASTIC_ERROR_FILE names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from shards.safe_io.json_text import json_text
from shards.storage.credentials import redact
from shards.storage.file_lock import open_locked

# Variables that tell two launches apart, where process ids alone do not: containers may share the file.
LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
PATIENCE_S = 5.0  # most time to wait for a rank that is printing
KEPT_S = 3600.0  # entries of the file that are older are removed
SAME = "the same error"
LOST = "lost the connection to a rank that had failed"
# What gloo and NCCL say where another rank has ended.
LOST_CONNECTION = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)


def exit_with_line(text: str, status: int = 1) -> NoReturn:
    """End this process after a line on stderr, which other ranks of this host do not repeat.

    Raises:
        SystemExit: with `status`; with the text itself, which Python prints, where this is the only rank.
    """
    if not _has_other_ranks() and status == 1:
        _tell_torchrun(text)
        sys.exit(text)
    with _first_to_print(text) as first:
        _tell_torchrun(text if first else SAME, later=not first)
        if first:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
    sys.exit(status)


def exit_with_traceback(error: Exception) -> None:
    """Among several ranks, end this process with the traceback of an unexpected error.

    The very same traceback is printed once on each host, and none where the connection was lost to a rank
    that has told its error. Where this is the only rank, this function does nothing.

    Raises:
        SystemExit: with status 1, as of any uncaught exception.
    """
    if not _has_other_ranks():
        return
    lost = any(words in str(error) for words in LOST_CONNECTION)
    with _first_to_print("".join(traceback.format_exception(error)), unless_any=lost) as first:
        summary = redact("".join(traceback.format_exception_only(error)).strip())
        _tell_torchrun(summary if first else LOST if lost else SAME, later=not first)
        if first:
            sys.excepthook(type(error), error, error.__traceback__)  # torch's begins each line with the rank
            sys.stderr.flush()
    sys.exit(1)


def _has_other_ranks() -> bool:
    ranks = os.environ.get("WORLD_SIZE", "")
    return ranks.isdecimal() and int(ranks) > 1


# --- The file of printed errors ------------------------------------------------------------------


@contextlib.contextmanager
def _first_to_print(text: str, unless_any: bool = False) -> Iterator[bool]:
    """Whether this rank is to print `text`, which it does in the block; see the module.

    Args:
        text: that other ranks may print, too.
        unless_any: do not print it either if a rank has printed any other text.
    """
    file = _open_printed() if _has_other_ranks() else None
    if file is None:
        yield True
        return
    with file:
        launch, digest = _launch(), hashlib.sha256(text.encode(errors="replace")).hexdigest()
        printed = _read(file)
        # What was printed before this process began is of an earlier launch from the same terminal.
        told = [entry for entry in printed if entry[0] == launch and float(entry[2]) >= _began()]
        if told if unless_any else any(entry[1] == digest for entry in told):
            yield False
            return
        yield True
        now = time.time()
        kept = [entry for entry in printed if float(entry[2]) > now - KEPT_S]
        with contextlib.suppress(OSError):  # a full disk: the others print it again
            file.seek(0)
            file.truncate()
            file.write("".join(f"{' '.join(e)}\n" for e in [*kept, (launch, digest, repr(now))]).encode())


def _open_printed() -> BinaryIO | None:
    """Open and lock the file of printed errors; None where that is impossible."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            path = Path(tempfile.gettempdir()) / f"awtpn-errors-{os.getuid()}"
            file = open_locked(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.01)
            continue
        except OSError:
            return None
        if os.fstat(file.fileno()).st_uid == os.getuid():
            return file
        file.close()  # another user made it, and decides on its content
        return None


def _read(file: BinaryIO) -> list[tuple[str, str, str]]:
    """Launch, digest and time of each text that was printed; lines that are damaged are left out."""
    entries = []
    for line in file.read().decode(errors="replace").splitlines():
        words = line.split()
        with contextlib.suppress(ValueError):
            launch, digest, when = words
            float(when)
            entries.append((launch, digest, when))
    return entries


def _launch() -> str:
    """What all ranks of this launch on this host have in common whose errors go to the same place."""
    output = ""
    with contextlib.suppress(OSError):
        # Logs of one file per rank: each shall have the error.
        found = os.fstat(2)
        output = f"{found.st_dev}:{found.st_ino}" if stat.S_ISREG(found.st_mode) else ""
    facts = [socket.gethostname(), os.getppid(), output, *map(os.environ.get, LAUNCH_VARIABLES)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _began() -> float:
    """When this process began."""
    import psutil  # here: only an error needs it

    return float(psutil.Process().create_time())


# --- torchrun ------------------------------------------------------------------------------------


def _tell_torchrun(text: str, later: bool = False) -> None:
    """Write the text that torchrun's summary shows for this rank; elsewhere do nothing.

    Args:
        text: one line or several.
        later: not the first rank that failed; the summary calls the one with the earliest second the cause.
    """
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not name:
        return
    extra = {"timestamp": str(int(time.time()) + later)}
    with contextlib.suppress(OSError):
        part = Path(f"{name}.part")
        part.write_text(json_text({"message": {"message": text, "extraInfo": extra}}))
        part.replace(name)
