"""Turn a path that a user wrote into a path on this machine, and refuse URLs where only paths are supported.

Without the check, `Path("s3://bucket/run")` would create a local folder named "s3:".
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from shards.storage.credentials import redact_url

# "s3://bucket/run", "simplecache::s3://...", and "s3:/bucket/run", into which Path turns the first.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)(?:::|:/)")
LOCAL_SCHEMES = ("file", "local")


def local_path(text: str | Path, what: str = "") -> Path:
    """`text` as a path: `~` and `~USER` are expanded, `file:///...` is the path in it.

    Args:
        text: what the user wrote.
        what: name of the key or option, for the error message.

    Raises:
        ValueError: a URL of another scheme than `file`, or a `~USER` that does not exist.
    """
    text, shown = str(text), f"{what} {redact_url(str(text))}".lstrip()
    if found := URL.match(text):
        scheme, rest = found[1].lower(), text[found.end() :]
        if scheme not in LOCAL_SCHEMES:
            raise ValueError(
                f"{shown}: object storage and other URLs are not supported yet for exports, outputs and the "
                f"folders of many runs ({scheme}: here): give a path on this machine; the folder of one run "
                "(run.dir) can be a URL"
            )
        if rest.startswith("/"):  # file://HOST/PATH, where the host may be left out
            host, _, rest = rest[1:].partition("/")
            if host not in ("", "localhost"):
                raise ValueError(f"{shown}: names a file of the host {host!r}; write file:///ABSOLUTE/PATH")
        text = f"/{rest}"
    elif text.lower().startswith("file:"):
        raise ValueError(f"{shown}: write file:///ABSOLUTE/PATH, or the path alone")
    # Expand the text and not a Path, which would turn "./~", a folder of that name, into "~".
    expanded = os.path.expanduser(text)
    if expanded == text and text.startswith("~"):
        user = text.partition("/")[0]
        raise ValueError(f"{shown}: no home folder is known for {user}; a file of that name: ./{user}")
    return Path(expanded)


def is_remote(text: str) -> bool:
    """Whether an address is a URL of another scheme than `file`."""
    found = URL.match(text)
    return found is not None and found[1].lower() not in LOCAL_SCHEMES


def local_or_url(text: str) -> str:
    """An address that may be a path or a URL: paths and file URLs become paths as in `local_path`."""
    found = URL.match(text)
    is_local = text.startswith("~") if found is None else found[1].lower() in LOCAL_SCHEMES
    return str(local_path(text)) if is_local else text
