"""One-line errors about a command line or a YAML file: what is wrong, and what would be right."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from awtpn.config.rank_errors import exit_with_line
from awtpn.config.suggestions import nearest, one_of
from shards.safe_io.printable import printable
from shards.storage.credentials import redact

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
WORDS |= {dict: "a mapping such as {a: 1, b: 2}"}
# How jsonargparse reports a key and the value that it refused.
WRONG_VALUE = re.compile(r'Parser key "([\w.]+)":\s.*(?:Got value|Given value): (.*)', re.DOTALL)
NO_VALUE = re.compile(r"argument (--\S+): expected one argument")
UNKNOWN_WORD = re.compile(r"unrecognized arguments: (\S+)")


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, without the page of usage that it prints before an error."""

    keys: Mapping[str, Any]
    """Dotted key -> type, for suggestions."""
    also: Sequence[str] = ("config",)
    """Further options that may have been meant."""
    listed: str = "--help lists all keys"
    """Where all keys are listed."""
    places: dict[str, str]
    """Dotted key -> file and line, while a file is read."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2 after one line on stderr."""
        exit_with_line(f"error: {printable(redact(self.explain(message)))}", 2)

    def explain(self, message: str) -> str:
        """jsonargparse's message as one line; the usual ones in our words."""
        if (found := WRONG_VALUE.match(message)) and found[1] in self.keys:
            place = f"{self.places[found[1]]}: " if found[1] in self.places else ""
            # Options of a file system may hold credentials, so they are never shown.
            value = "what is given" if found[1] == "data.storage_options" else f"{found[2].strip():.200}"
            return f"{place}{found[1]} takes {in_words(self.keys[found[1]])}, not {value}"
        if found := NO_VALUE.match(message):
            return f"{found[1]} needs a value"
        if found := UNKNOWN_WORD.match(message):
            word = found[1].partition("=")[0]
            if not word.startswith("--"):
                return f"{word} is no option: write keys as --key value, and a file as --config FILE"
            keys = [*self.keys, *self.also]
            return f"there is no {word}" + nearest(word.removeprefix("--"), keys, "--", self.listed)
        return " ".join(message.split())


def keys_of(section: type, prefix: str = "") -> dict[str, Any]:
    """The dotted keys of a configuration and the type of each."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(section).items():
        inner = isinstance(kind, type) and is_dataclass(kind)
        keys |= keys_of(kind, f"{prefix}{name}.") if inner else {prefix + name: kind}
    return keys


def in_words(kind: Any) -> str:
    """The values that a key takes, in words: "a whole number or null"."""
    return one_of(alternatives(kind))


def alternatives(kind: Any) -> list[str]:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(value) for value in inner]
    if origin in (Union, UnionType):
        return [words for one in inner for words in alternatives(one)]
    if origin is list:
        return ["a list such as [a, b]"]
    if origin is dict:
        return [WORDS[dict]]
    return [WORDS[kind]]
