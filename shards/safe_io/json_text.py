"""Write JSON as the standard defines it, without NaN and infinity, so that every program can read it.

Python's own writer writes the words NaN and Infinity, which jq, JavaScript and most other readers refuse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """`value` as JSON; in one line, unless `indent` is given.

    Raises:
        ValueError: a number in it is NaN or infinite; says where.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    except ValueError:
        if (found := find_not_finite(value)) is None:
            raise
        raise ValueError(f"{found[0] or 'the value'} is {found[1]}, which JSON cannot hold") from None


def find_not_finite(value: Any, at: str = "") -> tuple[str, float] | None:
    """The first number in nested mappings and lists that is NaN or infinite, with its position ("optim.lr").

    Args:
        value: to search.
        at: position of `value` itself: "optim" gives "optim.lr".
    """
    if isinstance(value, float):
        return None if math.isfinite(value) else (at, float(value))
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = ((f"{at}.{key}" if at else str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{at}[{place}]", part) for place, part in enumerate(value))
    return next((found for name, part in parts if (found := find_not_finite(part, name))), None)
