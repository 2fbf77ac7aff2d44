"""Read JSON that others may have written: manifests, metadata, model cards, run records.

Python's own reader raises RecursionError for deep nesting and accepts integers of any length, which NumPy and
floats cannot hold: the user would get a traceback much later that does not name the file. If an object has a
key twice, it silently takes the last value. All files that others may have written are read by it.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

# Levels of nesting. Our files have 6. Recursive code that reads the result may use several frames per level.
DEEPEST = 64
# Digits of an integer. Floats hold numbers of up to 308 digits, so such an integer can be compared with a
# float.
MOST_DIGITS = 300
# Characters of a key that an error message shows.
SHOWN_KEY = 80


def parse_json(text: str | bytes, at: str | Path) -> Any:
    """Read a JSON document, with limits on nesting and integers, and without duplicate keys.

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
    # Counting brackets is fast, and most documents have too few of them to be nested too deeply.
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
    """Check the nesting level by level, without recursion, which could itself run out of stack."""
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
