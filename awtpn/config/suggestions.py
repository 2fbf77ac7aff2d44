"""Which name was probably meant by one that does not exist."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from shards.safe_io.printable import listed

# A word as short as this is part of too many others to suggest them.
SHORTEST_PART = 3


def nearest(key: str, keys: Iterable[str], prefix: str = "", listed: str = "--help lists all keys") -> str:
    """What to say behind "there is no KEY": similar keys, or else all keys of its section.

    Args:
        key: the one that does not exist, such as "train.epoch".
        keys: those that do.
        prefix: how suggestions begin, such as "--".
        listed: where all keys are listed.
    """
    keys = list(keys)
    if found := similar(key, keys):
        return f"; did you mean {' or '.join(prefix + name for name in found)}? ({listed})"
    section = key.rpartition(".")[0]
    own = [name.removeprefix(f"{section}.") for name in keys if section and name.startswith(f"{section}.")]
    own = [name for name in own if "." not in name]
    return (f"; {section} has {', '.join(own)}" if own else "") + f" ({listed})"


def similar(key: str, keys: Collection[str]) -> list[str]:
    """Up to three keys, the most similar first: with the same last word, else with a similar name."""
    word = key.rpartition(".")[2]
    last = {name: name.rpartition(".")[2] for name in keys}
    alike = (
        [name for name in keys if last[name] == word]
        or get_close_matches(key, keys, 2, 0.8)
        or [name for name in keys if _is_part(word, last[name]) or _is_part(last[name], word)]
        or [name for name in keys if last[name] in get_close_matches(word, last.values(), 2)]
    )
    return get_close_matches(key, alike, 3, 0)


def one_of(words: Iterable[Any]) -> str:
    """ "a, b or c"."""
    return listed(words, "or")


def _is_part(part: str, whole: str) -> bool:
    return len(part) >= SHORTEST_PART and part in whole
