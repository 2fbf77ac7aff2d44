"""Calling a store again while it fails in ways that may pass, and giving up in bounded time."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shards.safe_io.printable import get_logger
from shards.storage.credentials import redact

# Pauses of 0.5, 1, 2, ... 16, 16 s: a server that restarts within about 45 s is waited for.
ATTEMPTS = 8
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 16.0
# Where each attempt hangs until its own timeout, fewer of them are enough.
RETRY_BUDGET_S = 120.0
# Wrong bytes may be a proxy's fault and pass; but each attempt moves a whole shard.
CONTENT_ATTEMPTS = 3

# Asking again changes nothing about these. (Stores answer FileNotFoundError to a wrong bucket, too; a missing
# package and an unknown storage option show at the first call.)
PERMANENT = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    TypeError,
)
# botocore's, google-auth's and paramiko's, which are no OSErrors: by name, since none of them need be there.
REFUSED = {
    *("NoCredentialsError", "PartialCredentialsError"),
    *("NoAuthTokenError", "RefreshError"),
    *("AuthenticationException", "BadHostKeyException"),
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Nor about these, which are no kinds of error of their own.
PERMANENT_ERRNOS = (*DISK_FULL, errno.EROFS, errno.ENAMETOOLONG)

T = TypeVar("T")

logger = get_logger(__name__)


class WrongContent(Exception):
    """What arrived is not what the manifest names: cut short on its way, or another file by now."""


def retrying(
    call: Callable[[], T],
    url: str,
    stop: threading.Event | None = None,
) -> T:
    """Call, and call again with growing pauses.

    Args:
        call: asks the store for something.
        url: for messages.
        stop: set when what is asked for is no longer wanted; nothing is asked, nor waited for, from then on.

    Raises:
        FileNotFoundError, PermissionError, ...: at once, with secrets removed.
        ValueError: what came was the wrong content, time and again.
        OSError: the last cause, after the last attempt; a full or read-only disk at once; or it was stopped.
    """
    stop = stop or threading.Event()
    begin = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        if stop.is_set():
            raise OSError(f"{url}: no longer wanted")
        try:
            return call()
        # Whatever it is: aiohttp's and botocore's errors for a server that died are no OSErrors.
        except Exception as error:
            cause = redact(error)
            if isinstance(error, PERMANENT):
                raise type(error)(f"{url}: {cause}") from None
            if _refused(error):
                raise PermissionError(
                    f"{url}: {type(error).__name__}: {cause}; check the credentials"
                ) from None
            if isinstance(error, OSError) and error.errno in PERMANENT_ERRNOS:
                raise OSError(error.errno, f"{url}: {cause}") from None
            most = CONTENT_ATTEMPTS if isinstance(error, WrongContent) else ATTEMPTS
            if attempt >= most or time.monotonic() - begin > RETRY_BUDGET_S:
                kind = ValueError if isinstance(error, WrongContent) else OSError
                raise kind(
                    f"{url}: {attempt} attempts failed, the last by {type(error).__name__}: {cause}"
                ) from None
            pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
            logger.warning(
                "%s: %s: %s; trying again in %.1f s", url, type(error).__name__, cause[:300], pause
            )
        stop.wait(pause)
    raise AssertionError("unreachable")


def _refused(error: Exception) -> bool:
    """Whether the store knows no such user, or not with these rights."""
    # gcsfs says nothing but the word.
    forbidden = type(error) is OSError and str(error).startswith("Forbidden")
    return forbidden or type(error).__name__ in REFUSED or getattr(error, "status", None) in (401, 403)
