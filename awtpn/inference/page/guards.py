"""Which requests are refused, and the headers of all responses.

Any web page that the user opens can send requests to a server on the user's machine. Three checks keep such
pages out:

- The `Host` header must name this machine. A foreign page whose name was rebound to 127.0.0.1 (DNS rebinding)
  still sends its own name.
- A POST must come from the page itself: its `Origin` is the address in `Host`.
- A POST must carry the token that is written into the page. A foreign page cannot read it.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

TOKEN_HEADER = "X-Page-Token"

HEADERS = {
    # The page's own files, the pictures in an answer (data:), and the clip in the player (blob:).
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "awtpn",  # the default would name the versions of Python and aiohttp
}


class RefusedRequest(Exception):
    """A request that is not answered: the HTTP status, and one line for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def check_host(headers: Mapping[str, str], listens_on: str) -> None:
    """Refuse a request to a name that is not this machine's.

    Args:
        headers: of the request.
        listens_on: the address of `--host`.

    Raises:
        RefusedRequest: another name, or none.
    """
    name = _host_name(headers.get("Host", ""))
    if name is None or not _is_own_name(name, listens_on):
        raise RefusedRequest(
            403,
            "this name is not an address of awtpn serve: open the address that its terminal shows",
        )


def check_origin(headers: Mapping[str, str], token: str) -> None:
    """Refuse a POST that does not come from the page itself.

    Args:
        headers: of the request.
        token: that is written into the page.

    Raises:
        RefusedRequest: the origin or the token is another one, or missing.
    """
    origin = urlsplit(headers.get("Origin", ""))
    is_own = origin.scheme in ("http", "https") and origin.netloc.lower() == headers.get("Host", "").lower()
    if not is_own or headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise RefusedRequest(403, "another web page sent this clip: send it from the page of awtpn serve")
    if not hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), token.encode()):
        raise RefusedRequest(403, "this page is of an earlier awtpn serve: reload it")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str | None:
    """The name in a `Host` header without its port, in lower case; None if it has none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _is_own_name(name: str, listens_on: str) -> bool:
    if is_loopback(name):
        return True
    if is_loopback(listens_on):
        return False
    if name in {listens_on.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True  # a number cannot be rebound
