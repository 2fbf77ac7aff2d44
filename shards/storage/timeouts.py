"""Defaults of file systems that would else wait for ever, or take memory without bound."""

from __future__ import annotations

from typing import Any

CONNECT_S = 10
# Between two pieces of an answer, not for all of it: a slow store may take its time.
READ_S = 20
SFTP = ("sftp", "ssh")
# Which extra of this package brings the file system of a protocol.
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "sftp": "sftp", "ssh": "sftp"}


def with_timeouts(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Storage options with our defaults where the user has set none.

    Args:
        url: fsspec URL.
        options: the user's; they rule.
    """
    protocol = url.partition("://")[0]
    defaults: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        # Retries are ours; s3fs adds its own, but botocore need not multiply them.
        config = {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
            "retries": {"mode": "standard", "total_max_attempts": 2},
        }
        # s3fs keeps the parts of a download under way in memory: 4 x 16 MiB, not 10 x 50 MiB.
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
