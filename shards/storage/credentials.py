"""Remove credentials from everything that is printed, logged, raised or recorded.

Code that gets a URL, storage options or a command line calls `remember_secrets` or `remember_command` first.
From then on `redact` replaces these secrets in any text, and also what looks like a secret: user, password
and query of a URL, an authorization header, a token of a known form.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import yaml

from shards.safe_io.bounded_yaml import parse_yaml

REDACTED = "***"
# Shorter secrets are replaced in URLs and options only: a secret "a" would match everywhere in a text.
SHORTEST = 4
# Shorter secrets are replaced only as whole words: "pass" is not replaced in "passes".
SHORTEST_WITHIN_WORDS = 8
# Pieces of a password which a file system took for a host or a port are replaced if they have this length.
SHORTEST_PIECE = 3
# A user name is not secret, but some services take a token in its place. Longer "names" count as tokens.
LONGEST_NAME = 15

# Variables from which file systems take credentials: AWS_SECRET_ACCESS_KEY, HF_TOKEN, ...
SECRET_VARIABLE = re.compile(
    r"((^|_|API)KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?|CONNECTION_STRING)S?(_|$)"
)
# Shorter values of such variables are flags, not secrets; replacing them would make messages unreadable.
SHORTEST_VARIABLE = 8
# User and password in a URL, up to the last "@": a password may hold "/", "@", "?" and "#" that the user did
# not encode; it is better to hide too much of a path than to show a part of the password. A port is not a
# password, and neither is "::" of a chained URL. (`Path` turns "//" into "/".)
USER = re.compile(
    r"(?P<slashes>:/{1,2}|//)"
    r"(?:(?P<user>[^/@:?#\s]*):(?!:|\d{2,5}(?:[/?#]|$))(?P<password>[^?]*|[^/@]*)@|(?P<alone>[^/@?#\s]*)@)"
)
# The protocols whose URLs name a container before the "@", or a user who needs no password.
NO_TOKEN = re.compile(r"(abfss?|wasbs?|az|sftp|ssh|ftp|smb|hdfs|webhdfs)$")
# Options that are not secret: addresses, modes, user names. And options that are secret even if they are
# numbers.
HARMLESS_OPTION = re.compile(
    r"url|region|protocol|endpoint|version|mode|style|profile|project|encoding|agent|accept|content-"
    r"|account_name|user(name)?$|login$|host",
    re.IGNORECASE,
)
SECRET_OPTION = re.compile(r"pass|pw|secret|token|key|auth|pin$|credential", re.IGNORECASE)
# Options that hold the user name which HTTP encodes together with the password.
NAME_OPTION = re.compile(r"user|login|^key$", re.IGNORECASE)

STORAGE_OPTIONS = "storage_options"
# What looks like a secret, in any text.
URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/{1,2}[^\s\"'<>]+")
OPTION_IN_TEXT = re.compile(
    r"""(--[\w.]*storage_options  # and what follows: =VALUE; an entry's .NAME VALUE; quoted text or a mapping
        (?: (?==) | (?:\.[\w.]+)?["']?[\s=,]+(?=["'{]) | (?:\.[\w.]+)[\s=]+ ) =?)
        (?!['"]?\*{3}) (?: '[^']*'(?:"'"'[^']*')* | "(?:[^"\\]|\\.)*" | \{[^}]*\}* | [^\s'"{]+ )""",
    re.VERBOSE,
)
HEADER_IN_TEXT = re.compile(
    r"(?i)\b((?:proxy-)?authorization|x-api-key|x-amz-security-token|cookie)([\"']?\s*[:=]\s*[\"']?)"
    r"(?:(?:basic|bearer|token)\s+)?[^\s\"',}]+"
)
FIELD_IN_TEXT = re.compile(
    r"(?i)\b(password|passwd|client_secret|secret_access_key|secret_key|aws_secret\w*|api_?key|access_token"
    r"|auth_token|account_key|sas_token)([\"']?\s*[:=]\s*[\"']?)(?!\*)[^\s\"',;&}]{4,}"
)
TOKEN_IN_TEXT = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9]{16,}\w*|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"
)

# All secrets of this process. A dict, since its changes are atomic: a lock could be held at a fork.
_remembered: dict[str, None] = {}
_compiled: tuple[int, re.Pattern[str] | None] = (0, None)


# --- Where secrets are ---------------------------------------------------------------------------


def redact_url(url: str) -> str:
    """The URL without user, password and query (signed URLs have credentials there), to be shown.

    The fragment stays if it is the name of a split.
    """
    address, mark, fragment = _without_user(url).partition("#")
    if "=" in fragment:
        fragment = REDACTED
    return address.partition("?")[0].rstrip("/") + mark + fragment.partition("?")[0]


def _without_user(url: str) -> str:
    return USER.sub(lambda found: found["slashes"], url)


def secrets_in(url: str = "", storage_options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Everything in URL, options and environment that may be a credential, the longest first.

    It may contain words that are not secret: they are only used to replace parts of messages.
    """
    found = {*_of_url(url), *_of_options(storage_options or {}), *_of_environment()}
    # A file system may show them in encoded form, or decode those that came in the URL.
    return tuple(
        sorted({form for secret in found if secret for form in _forms(secret)}, key=lambda x: (-len(x), x))
    )


def _of_url(url: str) -> Iterator[str]:
    for found in USER.finditer(url):
        password, user = found["password"], found["user"] or found["alone"]
        if password:
            yield password
            yield from (piece for piece in re.split("[/@?#]", password) if len(piece) >= SHORTEST_PIECE)
            yield _basic(user, password)
        protocol = url[: found.start()].rpartition("::")[2].rpartition("=")[2]
        # In "TOKEN@", "TOKEN:@" and "TOKEN:x-oauth-basic@" the user name is the token.
        if user and not NO_TOKEN.match(protocol):
            bare = password in (None, "", "x-oauth-basic")
            if len(user) > LONGEST_NAME or (bare and len(user) >= SHORTEST):
                yield user
                yield _basic(user, password or "")
    rest = _without_user(url)
    query, fragment = rest.partition("?")[2], rest.partition("#")[2]
    for part in (query, fragment if "=" in fragment else ""):
        yield part
        for name, _, value in (field.partition("=") for field in re.split("[&?#]", part)):
            if SECRET_OPTION.search(name) or len(value) >= SHORTEST_VARIABLE:
                yield value


def _of_options(options: Mapping[Any, Any]) -> Iterator[str]:
    names, words = [], []
    for name, value in options.items():
        for secret in _of_value(str(name), value):
            yield secret
            words.append(secret)
        if isinstance(value, str) and NAME_OPTION.search(str(name)):
            names.append(value)
    yield from (_basic(name, word) for name in names for word in words)


def _of_value(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _of_options(value)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _of_value(name, each)
    elif isinstance(value, bytes):
        yield from _of_value(name, value.decode(errors="replace"))
    elif isinstance(value, str):
        harmless = HARMLESS_OPTION.search(name) and not SECRET_OPTION.search(name)
        if value and (not harmless or (NAME_OPTION.search(name) and len(value) > LONGEST_NAME)):
            yield value
            # "Bearer TOKEN"; a connection string, "AccountName=me;AccountKey=..."
            yield from (word for word in re.split(r"\s+", value) if len(word) >= SHORTEST_VARIABLE)
            yield from (word for word in re.findall(r"(?:Key|Signature|sig)=([^;&\s]+)", value))
        if "://" in value:
            yield from _of_url(value)
    elif isinstance(value, int | float) and not isinstance(value, bool) and SECRET_OPTION.search(name):
        yield str(value)


def _of_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        # The path of a file that holds credentials is not secret.
        if SECRET_VARIABLE.search(name) and len(value) >= SHORTEST_VARIABLE and not os.path.exists(value):
            yield value


def _basic(user: str, password: str) -> str:
    """User and password as HTTP sends them; both may be encoded in the URL."""
    return base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode().rstrip("=")


def _forms(secret: str) -> Iterator[str]:
    """The encodings in which libraries, shells and web pages show a secret."""
    for plain in {secret, unquote(secret)}:
        coded = plain.encode(errors="surrogateescape")
        yield plain
        yield from (quote(coded, safe=""), quote(coded), quote_plus(coded), quote(quote(coded, safe="")))
        yield from (json.dumps(plain)[1:-1], repr(plain)[1:-1], html.escape(plain))
        if len(plain) >= SHORTEST:
            yield base64.b64encode(coded).decode().rstrip("=")
            yield base64.urlsafe_b64encode(coded).decode().rstrip("=")


# --- Remembered secrets --------------------------------------------------------------------------


def remember_secrets(url: str = "", storage_options: Mapping[str, Any] | None = None) -> None:
    """Make `redact` replace everything in URL, options and environment that may be a credential."""
    for secret in secrets_in(url, storage_options):
        if len(secret) >= SHORTEST:
            _remembered.setdefault(secret)


def remember_command(words: Sequence[str]) -> None:
    """`remember_secrets` of a command line. Call it before parsing, whose errors may quote the words."""
    remember_secrets()
    for i, word in enumerate(words):
        if ":/" in word:
            remember_secrets(word)
        name, mark, value = word.partition("=")
        if names_storage_options(name):
            given = [value] if mark else [*words[i + 1 : i + 2]]
            if given and given[0].startswith("{") and not given[0].endswith("}"):
                # The user did not quote it, so the shell split it into words.
                rest = words[i + 1 :] if mark else words[i + 2 :]
                end = next((n for n, other in enumerate(rest) if other.endswith("}")), len(rest))
                until = next((n for n, other in enumerate(rest) if other.startswith("--")), len(rest))
                given += rest[: min(end + 1, until)]
            remember_written(name.rpartition(".")[2], " ".join(given))
        elif STORAGE_OPTIONS in word:  # --data '{"storage_options": {...}}'
            remember_written("", value if mark and name.startswith("--") else word)


def remember_written(name: str, text: str) -> None:
    """`remember_secrets` of an option's value as written on a command line: JSON, YAML or a word."""
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = None
    if not isinstance(value, Mapping):
        # It may be malformed, and an error message may quote it: every word that may be a value counts as
        # secret.
        pieces = re.findall(r"(?<=[:=\s\"'])[^\"',{}\[\]\s]*[^\"',:{}\[\]\s](?![^\"',{}\[\]\s])", f" {text}")
        value = {"secret": [text, *pieces]} if re.search(r"[{\[:]", text) else {name: text}
    remember_secrets(storage_options=value)


def forget_secrets() -> None:
    """Forget all secrets, for tests."""
    _remembered.clear()


def names_storage_options(option: str) -> bool:
    """Whether it is `--storage_options`, an entry of it, or an abbreviation or misspelling of it."""
    if not option.startswith("--"):
        return False
    return any(
        (part and STORAGE_OPTIONS.startswith(part))
        or SequenceMatcher(None, part, STORAGE_OPTIONS).ratio() > 0.8
        for part in option[2:].replace("-", "_").split(".")
    )


def _pattern() -> re.Pattern[str] | None:
    global _compiled
    secrets = list(_remembered)
    if len(secrets) != _compiled[0]:
        parts = []
        for secret in sorted(secrets, key=len, reverse=True):
            alone = len(secret) < SHORTEST_WITHIN_WORDS
            parts.append(
                rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])" if alone else re.escape(secret)
            )
        _compiled = len(secrets), re.compile("|".join(parts)) if parts else None
    return _compiled[1]


# --- Redaction -----------------------------------------------------------------------------------


def redact(text: object) -> str:
    """The text with all secrets replaced: those that were remembered, and what looks like one."""
    shown = str(text)
    if (pattern := _pattern()) is not None:
        shown = pattern.sub(REDACTED, shown)
    shown = OPTION_IN_TEXT.sub(rf"\1{REDACTED}", shown)
    shown = HEADER_IN_TEXT.sub(rf"\1\2{REDACTED}", shown)
    shown = FIELD_IN_TEXT.sub(rf"\1\2{REDACTED}", shown)
    shown = TOKEN_IN_TEXT.sub(REDACTED, shown)
    return URL_IN_TEXT.sub(_redact_match, shown) if ":/" in shown else shown


def _redact_match(found: re.Match[str]) -> str:
    shown = _without_user(found[0])
    # Our own messages write "URL?..." for a query that they do not show.
    shown = re.sub(r"\?(?!\.\.\.)[^\s#)\]]+", f"?{REDACTED}", shown)
    return re.sub(r"#[^\s)\]]*=[^\s)\]]*", f"#{REDACTED}", shown)


def shown_words(words: Sequence[str]) -> list[str]:
    """The words of a command line to be shown: URLs without credentials, and no storage options.

    Words that differ from the given ones hold secrets.
    """
    shown, secret = [], False
    for word in words:
        name, mark, _ = word.partition("=")
        option = names_storage_options(name)
        if secret:
            shown.append(REDACTED)
        elif option and mark:
            shown.append(f"{name}={REDACTED}")
        elif not option and STORAGE_OPTIONS in word:  # --data '{"storage_options": {...}}'
            shown.append(f"{name}={REDACTED}" if mark and name.startswith("--") else REDACTED)
        else:
            shown.append(redact(redact_url(word) if ":/" in word else word))
        secret = option and not mark
    return shown


def redact_command(words: Sequence[str]) -> str:
    """A command line without secrets, to be recorded."""
    return " ".join(shlex.quote(word) for word in shown_words(words))


def has_secrets(word: str) -> bool:
    """Whether a word of a command line holds a credential, in a URL or in storage options."""
    return STORAGE_OPTIONS in word or redact(word) != word
