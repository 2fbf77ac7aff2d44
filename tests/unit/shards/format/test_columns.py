"""Metadata that become columns of an index: of each shard and of the dataset by one rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format.columns import MOST_SPARSE, column_kinds, index_columns, scalar_kind

Metas = list[dict[str, Any]]


def kinds_of(metas: Metas) -> dict[str, str]:
    found: dict[str, tuple[int, set[str | None]]] = {}
    for meta in metas:
        for name, value in meta.items():
            count, kinds = found.get(name, (0, set()))
            found[name] = count + 1, kinds | {scalar_kind(value)}
    return column_kinds(found, len(metas))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int"),
        ([1, 2.5], "float"),
        ([True, False], "bool"),
        (["a", "b"], "str"),
        ([1, None], "optional float"),
        ([None, 2.5], "optional float"),
        ([2.5, math.nan], "optional float"),
        ([None, None], None),
        (["a", None], None),
        ([True, None], None),
        ([True, 2], None),
        (["a", 1], None),
        ([[1], [2]], None),
        ([1, [2]], None),
        ([1, 2**63], None),
        ([1, 2**53], "int"),
        ([0.5, 2**53], "float"),
        ([None, 2**53], None),
        (["x" * 129, "y"], None),
    ],
)
def test_kinds(values: list[Any], kind: str | None) -> None:
    metas = [{"x": value, "label": "a"} for value in values]
    assert kinds_of(metas) == ({"x": kind} if kind else {})
    columns = index_columns(metas)
    assert list(columns) == (["x"] if kind else [])
    if kind == "optional float":
        assert columns["x"].dtype == np.float64
        np.testing.assert_array_equal(columns["x"], [math.nan if v is None else v for v in values])


def test_a_number_may_be_absent_but_no_other_value() -> None:
    metas = [{"number": 1, "text": "a", "flag": True}, {}]
    assert kinds_of(metas) == {"number": "optional float"}
    np.testing.assert_array_equal(index_columns(metas)["number"], [1, math.nan])


def test_names_that_an_index_cannot_have_are_no_columns() -> None:
    metas = [{"a\0b": 1, "\ud800": 1, "x" * 70_000: 1, "wütend": 1}]
    assert kinds_of(metas) == {"wütend": "int"}
    assert list(index_columns(metas)) == ["wütend"]


def test_fields_with_data_as_names_are_no_columns() -> None:
    metas = [{"fold": i, f"word-{i}": 1.0, "some": None if i else 1.0} for i in range(MOST_SPARSE + 1)]
    assert kinds_of(metas) == {"fold": "int", "some": "optional float"}
    assert list(index_columns(metas)) == ["fold", "some"]
    assert len(kinds_of(metas[:-1])) == MOST_SPARSE + 2


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.just(2**60)
    | st.floats(-5, 5)
    | st.text("ab", max_size=2)
)


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES), min_size=1, max_size=8), st.integers(1, 4))
def test_shards_have_the_columns_of_the_dataset(metas: Metas, size: int) -> None:
    """Whatever the shards: each has the array of a column of the dataset, if it has a value of it."""
    columns = kinds_of(metas)
    for start in range(0, len(metas), size):
        part = metas[start : start + size]
        arrays = index_columns(part)
        for name, kind in columns.items():
            values = [meta.get(name) for meta in part]
            if kind == "optional float" and all(value is None for value in values):
                assert name not in arrays
            elif kind == "optional float":
                expected = [math.nan if value is None else value for value in values]
                np.testing.assert_array_equal(arrays[name].astype(np.float64), expected)
            else:
                np.testing.assert_array_equal(arrays[name], values)
