"""Make a dataclass from JSON that others may have written; unknown fields and wrong types are refused.

Model cards and positions of checkpoints are read by this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
# torch and NumPy hold integers below this.
INTEGERS = 2**63


def from_record(
    kind: type[T], record: Any, at: str, *, ignore_unknown: bool = False, finite: bool = True
) -> T:
    """Make a dataclass of plain fields; fields that the record does not have keep their defaults.

    Args:
        kind: the dataclass; its fields are bool, int, float, str, Literal, lists, dicts or unions of these,
            or dataclasses of these, which it makes from mappings itself.
        record: the value read from JSON.
        at: its name in error messages.
        ignore_unknown: ignore fields that the dataclass does not have, instead of refusing them.
        finite: refuse floats that are NaN or infinite.

    Raises:
        ValueError: not a mapping, an unknown field, or a value of another type; names it. One line.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{at} is not a mapping")
    hints = get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = [name for name in record if name not in known]
    if unknown and not ignore_unknown:
        raise ValueError(f"{at} has a field {unknown[0]!r:.60}, which this code does not know")
    values = {name: value for name, value in record.items() if name in known}
    for name, value in values.items():
        if not _fits(value, hints[name], finite):
            raise ValueError(f"{at}.{name} cannot be {value!r:.60}")
    return kind(**values)


def _fits(value: Any, hint: Any, finite: bool) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, each, finite) for each in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0], finite) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1], finite) for each in value.values())
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return isinstance(value, Mapping) and all(
            name in hints and _fits(each, hints[name], finite) for name, each in value.items()
        )
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # A larger integer overflows in torch, also where a float is expected.
        small = not isinstance(value, int) or abs(value) < INTEGERS
        return number and small and (not finite or abs(value) < math.inf)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < INTEGERS
    return hint is Any or isinstance(value, hint)
