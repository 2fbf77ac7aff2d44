"""One-line errors about a command line or a YAML file: what is wrong, and what would be right."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from shards.safe_io.printable import printable
from shards.storage.credentials import redact

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
WORDS |= {dict: "a mapping such as {a: 1, b: 2}"}
# How jsonargparse reports a key and the value that it refused.
WRONG_VALUE = re.compile(r'Parser key "([\w.]+)":\s.*(?:Got value|Given value): (.*)', re.DOTALL)
UNKNOWN_WORD = re.compile(r"unrecognized arguments: (\S+)")


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, without the page of usage that it prints before an error."""

    keys: Mapping[str, Any]
    """Dotted key -> type, for suggestions."""
    places: dict[str, str]
    """Dotted key -> file and line, while a file is read."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2 after one line on stderr."""
        sys.stderr.write(f"error: {printable(redact(explain(message, self.keys, self.places)))}\n")
        sys.exit(2)


def keys_of(section: type, prefix: str = "") -> dict[str, Any]:
    """The dotted keys of a configuration and the type of each."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(section).items():
        inner = isinstance(kind, type) and is_dataclass(kind)
        keys |= keys_of(kind, f"{prefix}{name}.") if inner else {prefix + name: kind}
    return keys


def explain(message: str, keys: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """jsonargparse's message as one line; the usual ones in our words."""
    if (found := WRONG_VALUE.match(message)) and found[1] in keys:
        place = f"{places[found[1]]}: " if found[1] in places else ""
        # Options of a file system may hold credentials, so they are never shown.
        value = "what is given" if found[1] == "data.storage_options" else f"{found[2].strip():.200}"
        return f"{place}{found[1]} takes {in_words(keys[found[1]])}, not {value}"
    if found := UNKNOWN_WORD.match(message):
        word = found[1].partition("=")[0]
        if not word.startswith("--"):
            return f"{word} is no option: write keys as --key value, and a file as --config FILE"
        return f"there is no {word}" + nearest(word.removeprefix("--"), keys)
    return " ".join(message.split())


def nearest(key: str, keys: Mapping[str, Any]) -> str:
    """Suggest keys: those with the same last word, else with a similar name, else all of its section."""
    section, _, word = key.rpartition(".")
    last = {name: name.rpartition(".")[2] for name in keys}
    alike = (
        [name for name in keys if last[name] == word]
        or get_close_matches(key, keys, 2, 0.8)
        or [name for name in keys if len(word) > 2 and (word in last[name] or last[name] in word)]
        or [name for name in keys if last[name] in get_close_matches(word, last.values(), 2)]
    )
    if alike:
        alike = get_close_matches(key, alike, 3, 0)  # the most similar first
        return f"; did you mean {' or '.join(alike)}? (--help lists all keys)"
    own = [last[name] for name in keys if section and name == f"{section}.{last[name]}"]
    return (f"; {section} has {', '.join(own)}" if own else "") + " (--help lists all keys)"


def in_words(kind: Any) -> str:
    """The values that a key takes, in words: "a whole number or null"."""
    words = alternatives(kind)
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


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
