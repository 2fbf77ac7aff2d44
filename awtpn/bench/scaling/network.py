"""Seconds of a collective on a stated network: bandwidth terms of a ring, latency terms of a tree.

W ranks are on N nodes of g ranks. A reduce-scatter first runs within each node, then between nodes, where
each of a node's g ranks reduces its share; a node's ranks together have the node's bandwidth:

    seconds = (g - 1) / g * bytes / inner + (N - 1) / N * bytes / outer
              + ceil(log2 g) * inner latency + ceil(log2 N) * outer latency

An all-gather takes the same time, an all-reduce twice as long. So one rank needs none, and the two levels do
not overlap. (The bandwidth terms are those of Patarasuk and Yuan, 2009, "Bandwidth optimal all-reduce
algorithms for clusters of workstations"; libraries choose trees where latency counts.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["all_reduce", "reduce_scatter", "all_gather"]


@dataclass(frozen=True)
class Network:
    """A cluster's links.

    Attributes:
        ranks_per_node: ranks that share a node.
        inner, outer: bytes/s in each direction, of a rank within its node and of a node to the others.
        inner_latency, outer_latency: seconds of a hop.
    """

    ranks_per_node: int
    inner: float
    outer: float
    inner_latency: float
    outer_latency: float


def collective_s(network: Network, kind: Kind, size: float, ranks: int, calls: float = 1.0) -> float:
    """Seconds of `calls` collectives of `size` bytes together.

    Args:
        size: of the whole tensor: what an all-gather returns, what a reduce-scatter takes.
        ranks: W, node after node.
    """
    own, nodes = min(ranks, network.ranks_per_node), math.ceil(ranks / network.ranks_per_node)
    seconds = (own - 1) / own * size / network.inner + (nodes - 1) / nodes * size / network.outer
    hops = _hops(own) * network.inner_latency + _hops(nodes) * network.outer_latency
    return (seconds + calls * hops) * (2 if kind == "all_reduce" else 1)


def _hops(members: int) -> int:
    return math.ceil(math.log2(members))
