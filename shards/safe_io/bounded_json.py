"""The one reader of JSON that others may have written: manifests, metadata, model cards, run records.

Python's own raises RecursionError for deep nesting, and gives integers of any length, which NumPy and floats
cannot take: errors that reach the user as a traceback, long after and far from the file. Of a key that an
object has twice it takes the last value without a word.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

# Ours nest 6 levels deep. Whoever walks through what was read may use several frames for a level.
DEEPEST = 64
# A float holds a number of 308 digits, so that such an integer can still be compared with one.
MOST_DIGITS = 300
# Characters of a key in an error message.
SHOWN_KEY = 80


def parse_json(text: str | bytes, at: str | Path) -> Any:
    """Read a JSON document whose nesting and integers are bounded, and whose objects have each key once.

    Args:
        text: of the document; bytes are UTF-8, -16 or -32.
        at: where it came from, for error messages.

    Raises:
        ValueError: not JSON, nested more than `DEEPEST` levels deep, with an integer of more than
            `MOST_DIGITS` digits, or a key twice in an object. One line.
    """
    try:
        found = json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"{at}: not JSON that can be read: nested too deeply") from None
    except _KeyTwiceError as error:
        raise ValueError(f"{at}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{at}: not JSON ({error})") from None
    # Most documents have too few brackets to be deep, and counting is quick.
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if raw.count(b"{") + raw.count(b"[") > DEEPEST:
        _check_depth(found, at)
    return found


def read_json(path: Path) -> Any:
    """Read a JSON file, as `parse_json` does.

    Raises:
        ValueError: as `parse_json`.
        OSError: the file cannot be read.
    """
    return parse_json(path.read_bytes(), path)


class _KeyTwiceError(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _KeyTwiceError(f"the key {twice[:SHOWN_KEY]!r} is there twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _check_depth(found: Any, at: str | Path) -> None:
    """Level by level, so that the walk itself cannot run out of stack."""
    level = [found]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"{at}: not JSON that can be read: nested more than {DEEPEST} levels deep")
