"""Utterances that a run leaves out are counted once, told of by shard, and bounded."""

from __future__ import annotations

import pytest

from awtpn.checkpoint import Position
from awtpn.damage import account_for_damaged

URL = "s3://bucket/corpus"


def test_each_counts_once_and_each_shard_is_told_of_once() -> None:
    told: dict[str, str] = {}
    position = Position(damaged=["a"])  # by an earlier start
    first = account_for_damaged({"a": "x.tar: gone", "b": "x.tar: gone"}, told, position, 3, URL)
    assert first == ["x.tar: gone: left out: a, b"]
    assert position.damaged == ["a", "b"]
    assert account_for_damaged({"c": "x.tar: gone", "a": "x.tar: gone"}, told, position, 3, URL) == []
    assert position.damaged == ["a", "b", "c"]


def test_more_than_the_budget_are_refused_with_names_and_fix() -> None:
    told, position = {"a": "x.tar: gone"}, Position(damaged=["a"])
    found = {f"k{i}": f"y{i % 12}.tar: cut short" for i in range(24)} | {
        f"z{i}": "z.tar: bad" for i in range(9)
    }
    with pytest.raises(ValueError, match=r"34 training utterances .* data.damaged_budget 33:\n") as caught:
        account_for_damaged(found, told, position, 33, URL)
    text = str(caught.value)
    assert "\nx.tar: gone: a\ny0.tar: cut short: k0, k12\n" in text
    assert "\nand 6 more causes\n" in text
    assert f"`awtpn shards verify {URL}`" in text
    with pytest.raises(ValueError, match=r"z\.tar: bad: z0, z1, z2, z3, z4, z5, z6, z7 and 1 more"):
        account_for_damaged({k: v for k, v in found.items() if k[0] == "z"}, {}, Position(), 8, URL)
