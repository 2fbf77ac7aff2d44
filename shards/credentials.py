"""Keeping credentials out of every message: what may be one, and taking it out."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

# Variables from which file systems take credentials: AWS_SECRET_ACCESS_KEY, HF_TOKEN, ...
SECRET_VARIABLE = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL")
# Shorter values of such variables are flags, and blotting them out would make messages unreadable.
SHORTEST_VARIABLE = 8
# User and password in a URL, up to the last "@": a password may hold "/" and "@" that should be encoded, and
# better hide too much of a path than show half of it. A port is none, nor is what begins a chained URL.
USER = re.compile(r"//(?:[^/@:?]*:(?!:|\d{2,5}(?:[/?]|$))(?P<password>[^?]*)@|[^/@?]*@)")
# Pieces of a password that a file system took for a host or a port, worth blotting out.
SHORTEST_PIECE = 3
# Options that say where or how, not who.
HARMLESS_OPTION = re.compile(r"url|region|protocol|endpoint|version|mode|style")


def hide(url: str) -> str:
    """The URL without user, password and query (signed URLs carry credentials there)."""
    return USER.sub("//", url.partition("?")[0]).rstrip("/")


def hide_in_command(words: Sequence[str]) -> str:
    """A command line for the record: URLs without credentials, and none of the options for file systems."""
    shown, secret = [], False
    for word in words:
        name, mark, _ = word.partition("=")
        # Abbreviated, too, as argparse takes it.
        option = len(name) > len("--s") and "--storage_options".startswith(name)
        if secret:
            shown.append("***")
        elif option and mark:
            shown.append(f"{name}=***")
        else:
            address, fragment, split = USER.sub("//", word).partition("#")
            shown.append(hide(address) + fragment + split if "://" in word else word)
        secret = option and not mark
    return " ".join(shlex.quote(word) for word in shown)


def secrets_in(url: str, storage_options: dict[str, Any]) -> tuple[str, ...]:
    """Everything in URL, options and environment that may be a credential, the longest first.

    Better one word too many: the result is only used to blot out parts of messages.
    """
    passwords = [match["password"] for match in USER.finditer(url) if match["password"]]
    pieces = [piece for password in passwords for piece in re.split("[/@]", password)]
    found = {*passwords, *(piece for piece in pieces if len(piece) >= SHORTEST_PIECE)}
    found |= set(re.findall(r"\?(.+)$", url))
    pending = list(storage_options.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.items())
        elif isinstance(value, str) and value and not HARMLESS_OPTION.search(str(name)):
            found.add(value)
    for name, value in os.environ.items():
        if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST_VARIABLE:
            found.add(value)
    # A file system may show them encoded, or decode what came in the URL.
    found |= {quote(secret, safe="") for secret in found} | {unquote(secret) for secret in found}
    return tuple(sorted(found, key=lambda secret: (-len(secret), secret)))


def scrub(error: object, secrets: tuple[str, ...]) -> str:
    """The text of an error with every secret blotted out."""
    text = str(error)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
