"""Default options for fsspec file systems: no request waits for ever or takes memory without limit."""

from __future__ import annotations

from typing import Any

CONNECT_S = 10
# Longest time between two pieces of an answer. There is no limit for a whole answer: a slow store is not an
# error.
READ_S = 20
SFTP = ("sftp", "ssh")
# By protocol, the extra of this package that installs its file system.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "sftp": "sftp", "ssh": "sftp"}


def with_timeouts(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Storage options, with our defaults for those that the user did not set.

    Args:
        url: fsspec URL.
        options: of the user; they take precedence.
    """
    protocol = url.partition("://")[0]
    defaults: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        # `retry` repeats requests and s3fs does too, so botocore repeats only once: attempts multiply.
        config = {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
            "retries": {"mode": "standard", "total_max_attempts": 2},
        }
        # s3fs holds the parts of a running download in memory: with this 4 x 16 MiB instead of 10 x 50 MiB.
        defaults = {"config_kwargs": config, "max_concurrency": 4, "default_block_size": 16 << 20}
    elif protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
        defaults = {"client_kwargs": {"timeout": timeout}}
    elif protocol in SFTP:
        defaults = {"timeout": CONNECT_S, "banner_timeout": CONNECT_S, "auth_timeout": CONNECT_S}
    return _merged(defaults, options)


def _merged(defaults: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(value, options[name])
        for name, value in defaults.items()
        if isinstance(value, dict) and isinstance(options.get(name), dict)
    }
    return defaults | options | both
