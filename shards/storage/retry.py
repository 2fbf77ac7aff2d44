"""Repeat a request to a store while it fails with errors that may be temporary, for a limited time.

`store.call_store` wraps every request to a remote store in `retrying`, so that a run survives a server
restart or a lost connection. Errors that a repetition cannot change, such as a missing file, are raised at
once.
"""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shards.safe_io.printable import get_logger
from shards.storage.credentials import redact

# Pauses of 0.5, 1, 2, ... 16, 16 s, so that a server may take about 45 s to restart.
ATTEMPTS = 8
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 16.0
# No further attempt begins after this time: attempts that hang until their timeout take much longer than
# pauses.
RETRY_BUDGET_S = 120.0
# Wrong content may be a temporary error of a proxy; but each attempt transfers a whole shard, so there are
# few.
CONTENT_ATTEMPTS = 3

# Errors that a repetition does not change. (Stores raise FileNotFoundError for a wrong bucket too; a missing
# package or an unknown storage option raises ImportError or TypeError at the first call.)
PERMANENT = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ImportError,
    TypeError,
)
# Authentication errors of botocore, google-auth and paramiko, which are not OSErrors. By name, since these
# packages are optional.
AUTH_ERRORS = {
    *("NoCredentialsError", "PartialCredentialsError"),
    *("NoAuthTokenError", "RefreshError"),
    *("AuthenticationException", "BadHostKeyException"),
}
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Permanent errors that have no class of their own.
PERMANENT_ERRNOS = (*DISK_FULL, errno.EROFS, errno.ENAMETOOLONG)

T = TypeVar("T")

logger = get_logger(__name__)


class WrongContent(Exception):
    """A downloaded file is not the one that the manifest names: cut short in transfer, or replaced since."""


def retrying(
    call: Callable[[], T],
    url: str,
    stop: threading.Event | None = None,
) -> T:
    """Call, and repeat the call with growing pauses while it fails with errors that may be temporary.

    Args:
        call: sends a request to the store.
        url: for messages.
        stop: set when the result is no longer needed; no further attempt is made, and pauses end.

    Raises:
        FileNotFoundError, PermissionError, ...: permanent errors, at once, with secrets removed.
        ValueError: the content was wrong in all attempts.
        OSError: after the last attempt, with the last cause; at once for a full or read-only disk; or `stop`
            was set.
    """
    stop = stop or threading.Event()
    begin = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        if stop.is_set():
            raise OSError(f"{url}: no longer needed")
        try:
            return call()
        # Any exception: the errors of aiohttp and botocore for a lost server are not OSErrors.
        except Exception as error:
            cause = redact(error)
            if isinstance(error, PERMANENT):
                raise type(error)(f"{url}: {cause}") from None
            if _is_auth_error(error):
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
            # Random, so that many ranks do not ask a restarted server at the same moment.
            pause = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
            logger.warning(
                "%s: %s: %s; trying again in %.1f s", url, type(error).__name__, cause[:300], pause
            )
        stop.wait(pause)
    raise AssertionError("unreachable")


def _is_auth_error(error: Exception) -> bool:
    """Whether the store refuses the credentials or lacks a permission."""
    # gcsfs raises a plain OSError with this text.
    forbidden = type(error) is OSError and str(error).startswith("Forbidden")
    return forbidden or type(error).__name__ in AUTH_ERRORS or getattr(error, "status", None) in (401, 403)
