"""Ranks that do not divide the global batch: when they are allowed, and what each of them has."""

from __future__ import annotations

import itertools

import pytest

from awtpn.distributed.batch_layout import (
    Layout,
    check_negatives,
    make_layout,
    negatives_cross_micro_batches,
)
from awtpn.distributed.elastic import is_range, nodes_may_change, nodes_of, warn_of_shared_store
from awtpn.learning.settings import LossConfig
from shards import places_of_rank


@pytest.mark.parametrize(
    ("words", "nodes"),
    [
        (["torchrun", "--nnodes", "1:4", "train.py"], "1:4"),
        (["python", "-m", "torch.distributed.run", "--nnodes=2:3", "train.py"], "2:3"),
        (["torchrun", "--nnodes", "2", "train.py"], "2"),
        (["torchrun", "--standalone", "train.py"], None),
        (["torchrun", "--nnodes"], None),
    ],
)
def test_the_option_of_torchrun(words: list[str], nodes: str | None) -> None:
    assert nodes_of(words) == nodes


@pytest.mark.parametrize(
    ("nodes", "ranges"), [("1:4", True), ("2:2", False), ("2", False), ("", False), ("a:b", False)]
)
def test_a_range_of_nodes(nodes: str, ranges: bool) -> None:
    assert is_range(nodes) == ranges
    assert nodes_may_change({"TORCHELASTIC_RUN_ID": "x", "PET_NNODES": nodes}) == ranges
    assert not nodes_may_change({"PET_NNODES": nodes}), "not started by torchrun"


@pytest.mark.parametrize(
    ("nodes", "now", "restarts", "warns"),
    [("1:4", "1", "0", True), ("4", "4", "3", True), ("4", "4", "0", False), ("1", "1", "3", False)],
)
def test_a_store_that_all_restarts_share_is_warned_of_on_several_nodes(
    nodes: str, now: str, restarts: str, warns: bool
) -> None:
    of_torchrun = {"TORCHELASTIC_RUN_ID": "x", "PET_NNODES": nodes, "GROUP_WORLD_SIZE": now}
    of_torchrun |= {"TORCHELASTIC_MAX_RESTARTS": restarts, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    warning = warn_of_shared_store(of_torchrun)
    assert (warning is not None and "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in warning) == warns
    assert warn_of_shared_store(of_torchrun | {"TORCHELASTIC_USE_AGENT_STORE": "False"}) is None


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("micro_batch", [None, 1, 3])
def test_ranks_share_all_places_and_have_equally_many_micro_batches(
    batch: int, ranks: int, micro_batch: int | None
) -> None:
    layout = make_layout(batch, micro_batch, ranks, uneven=True)
    end, sizes = 0, []
    for rank in range(ranks):
        first, places = places_of_rank(batch, rank, ranks, uneven=True)
        edges = layout.edges(first, places)
        assert (edges[0], edges[-1], len(edges)) == (end, end + places, layout.accumulation + 1)
        sizes += [b - a for a, b in itertools.pairwise(edges)]
        end += places
    assert end == batch
    assert max(sizes) == layout.micro_batch <= (micro_batch or batch)
    assert layout.even == (min(sizes) == max(sizes))
    if layout.even:
        assert layout == make_layout(batch, layout.micro_batch, ranks)


def test_negatives_of_unequal_ranks() -> None:
    both, layout = ["audio", "video"], make_layout(32, None, 3, uneven=True)
    assert layout == Layout(32, 11, 1, even=False)
    assert negatives_cross_micro_batches(LossConfig(), both, layout)
    assert negatives_cross_micro_batches(LossConfig(negatives="global"), both, layout)
    check_negatives(LossConfig(), both, layout)
    with pytest.raises(ValueError, match="negatives=reference permutes micro-batches"):
        check_negatives(LossConfig(negatives="reference"), both, layout)
