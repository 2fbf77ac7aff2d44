"""Which metadata become columns of an index: single values of one kind, and numbers that utterances may lack.

A column of numbers that some utterances lack, since the field is null or absent, has the kind `OPTIONAL`. Its
array is float64, with NaN where the number is missing. A shard in which no utterance has the field has no
array of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shards.format.targets import EXACT, OPTIONAL
from shards.safe_io.file_names import is_text

# Characters. Longer text, such as transcripts, is not for selecting, and NumPy stores text at a fixed width.
LONGEST_COLUMN = 128
# Characters of a column's name. An index is a zip file, in which longer names, or zeros in them, cannot be.
LONGEST_NAME = 10_000
# The kind of whole numbers that float64 does not hold exactly. A column of them has the kind "int", but not
# if utterances lack some: different identifiers would become equal.
LARGE = "large int"
# The kind of a value that is null. Other values that are no column have the kind None.
NULL = "null"
# If more fields than this are absent in some utterances, none of them becomes a column: their names are then
# most often data themselves, and an index with an array for each would be large.
MOST_SPARSE = 256


def scalar_kind(value: Any) -> str | None:
    """Kind of a metadata value: "bool", "int", "large int", "float", "str" or "null".

    None if it cannot be selected by.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NULL
    if isinstance(value, str) and len(value) > LONGEST_COLUMN:
        return None
    # NumPy's int64 cannot hold it.
    if isinstance(value, int) and abs(value) >= 2**63:
        return None
    if isinstance(value, int) and abs(value) >= EXACT:
        return LARGE
    kind = type(value).__name__
    return kind if kind in ("bool", "int", "float", "str") else None


def column_kinds(found: Mapping[str, tuple[int, set[str | None]]], utterances: int) -> dict[str, str]:
    """The columns that metadata make, and the kind of each, in alphabetical order.

    Args:
        found: per field the number of utterances that have it (also with null), and the kinds of its values.
        utterances: number of all utterances.
    """
    sparse = sum(count < utterances for count, _ in found.values())
    columns = {}
    for name, (count, kinds) in sorted(found.items()):
        kind = _column_kind(kinds, count == utterances)
        dense = count == utterances or sparse <= MOST_SPARSE
        if name != "label" and kind is not None and dense and _can_be_named(name):
            columns[name] = kind
    return columns


def _can_be_named(name: str) -> bool:
    return len(name) <= LONGEST_NAME and "\0" not in name and is_text(name)


def _column_kind(kinds: set[str | None], everywhere: bool) -> str | None:
    """The kind of a column with values of these kinds; integers may mix with floats."""
    if kinds - {NULL} and kinds <= {"int", LARGE, "float", NULL}:
        if not everywhere or NULL in kinds:
            return None if LARGE in kinds else OPTIONAL
        return "float" if "float" in kinds else "int"
    return next(iter(kinds)) if everywhere and len(kinds) == 1 and NULL not in kinds else None


def index_columns(metas: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of a shard's utterances, arrays [U].

    Args:
        metas: metadata of each utterance.
    """
    found: dict[str, tuple[int, set[str | None]]] = {}
    for meta in metas:
        for name, value in meta.items():
            count, kinds = found.get(name, (0, set()))
            kinds.add(scalar_kind(value))
            found[name] = count + 1, kinds
    return {name: _array(name, kind, metas) for name, kind in column_kinds(found, len(metas)).items()}


def _array(name: str, kind: str, metas: Sequence[Mapping[str, Any]]) -> np.ndarray:
    values = [meta.get(name) for meta in metas]
    if kind == OPTIONAL:
        return np.array([math.nan if value is None else value for value in values], np.float64)
    return np.array(values)
