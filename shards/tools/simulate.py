"""`awtpn shards simulate`: what the nodes of a cluster would read in an epoch, computed from the plan alone.

The numbers of shards, bytes and steps are exact. Balance and shuffling are measured on a sample of steps and
ranks, which the report states. For that, the lengths of utterances come from the indexes of the shards in the
sample; for a synthetic dataset they are drawn from a log-normal distribution, as those of speech.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from shards.format.schema import Manifest, choose_split
from shards.planning.balance import batch_bytes
from shards.planning.cache_demand import working_set
from shards.planning.plan import WINDOW, Plan, Work, make_plan, places_of_rank, rows_of_step, shards_of_places
from shards.safe_io.printable import table_lines
from shards.storage.store import Store
from shards.streaming.reader import ShardReader
from shards.tools.info import format_bytes

SAMPLED_STEPS, SAMPLED_RANKS = 16, 512

# Lengths of spoken utterances: standard deviation of the logarithm, and the extremes divided by the mean.
LENGTH_SPREAD, SHORTEST, LONGEST = 0.55, 1 / 7, 4.3
# A synthetic utterance: its mean number of segments and frames, and bytes of one (1,024 or 512 float16
# features).
SYNTHETIC_STEPS, SYNTHETIC_STEP_BYTES = 210, 1_700


@dataclass(frozen=True)
class SplitSizes:
    """The sizes of a split's shards and utterances, on which a plan depends.

    Attributes:
        name: for the report.
        utterances, bytes: [shards] int64 each; bytes with the index.
        work: gives the time steps of each utterance of shards.
        batch_bytes: gives the bytes of each utterance's arrays in a batch.
        drawn: whether `work` is drawn at random.
    """

    name: str
    utterances: np.ndarray
    bytes: np.ndarray
    work: Work
    batch_bytes: Work
    drawn: bool


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of a figure over nodes or steps."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Report:
    """What the nodes of a cluster read in an epoch.

    Attributes:
        sizes: of the split.
        nodes, gpus_per_node, global_batch_size: as given.
        streams: number of canonical streams of the plan.
        steps_per_epoch: the last of them has `last_step` utterances.
        window: rows of a canonical stream within which a row is shuffled.
        node_bytes, node_shards: downloaded per node in the first epoch; later epochs need the same shards.
        fetched_bytes: over all nodes; a shard that several nodes need counts once for each.
        cache_bytes: an upper bound of what a node needs at a time: the smallest `cache_limit` that is
            accepted.
        sampled_steps, sampled_ranks: number of steps and ranks on which the following figures were measured.
        excess: by how much the rank with the most work (time steps) exceeds the mean rank of its
            step, as a fraction of the mean.
        excess_unbalanced: the same without balancing.
        distance: mean distance between two utterances of a batch, in rows as stored, as a fraction of that of
            a perfect shuffle, which is a third of all rows.
        neighbor_distance: the same for utterances at consecutive places, which mostly are of one stream.
        same_shard: probability that two utterances of a batch are from one shard; `same_shard_ideal` is that
            of a perfect shuffle.
        rank_bytes: that the arrays of a rank's batch take in memory, pictures decoded; over all sampled
            steps and ranks.
    """

    sizes: SplitSizes
    nodes: int
    gpus_per_node: int
    global_batch_size: int
    streams: int
    steps_per_epoch: int
    last_step: int
    window: int
    node_bytes: Spread
    node_shards: Spread
    fetched_bytes: int
    cache_bytes: int
    sampled_steps: int
    sampled_ranks: int
    excess: Spread
    excess_unbalanced: Spread
    distance: float
    neighbor_distance: float
    same_shard: float
    same_shard_ideal: float
    rank_bytes: Spread


def split_sizes(store: Store, manifest: Manifest, split: str) -> SplitSizes:
    """The sizes of a split of a dataset; the lengths of utterances are read from the indexes when needed.

    Raises:
        ValueError: there is no such split.
    """
    split = choose_split(manifest, split, store.url)
    shards = manifest.splits[split].shards
    reader = ShardReader(store, manifest, split)

    def memory(shard: int) -> np.ndarray:
        return batch_bytes(reader.index(shard).steps, manifest.modalities)

    def of_shards(read: Callable[[int], np.ndarray], shards: list[int]) -> list[np.ndarray]:
        return list(reader.map(read, shards))

    return SplitSizes(
        name=f"{store.url}#{split}",
        utterances=np.array([shard.utterances for shard in shards], np.int64),
        bytes=np.array([shard.bytes + shard.index_bytes for shard in shards], np.int64),
        work=partial(of_shards, reader.work),
        batch_bytes=partial(of_shards, memory),
        drawn=False,
    )


def synthetic_sizes(size: str) -> SplitSizes:
    """The sizes of a synthetic dataset, such as "100000000x10000": utterances x shards.

    Raises:
        ValueError: `size` is not of that form.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size.replace("_", ""))
    if match is None:
        raise ValueError(f"{size!r}: must be UTTERANCESxSHARDS, such as 100000000x10000")
    utterances, shards = int(match[1]), int(match[2])
    counts = np.diff(np.arange(shards + 1) * utterances // shards)
    return SplitSizes(
        name=size,
        utterances=counts,
        bytes=counts * (SYNTHETIC_STEPS * SYNTHETIC_STEP_BYTES),
        work=lambda shards: [_drawn_work(shard, int(counts[shard])) for shard in shards],
        batch_bytes=lambda shards: [
            _drawn_work(shard, int(counts[shard])) * SYNTHETIC_STEP_BYTES for shard in shards
        ],
        drawn=True,
    )


def simulate(
    sizes: SplitSizes,
    nodes: int,
    gpus_per_node: int,
    global_batch_size: int,
    *,
    streams: int | None = None,
    seed: int = 0,
    window: int = WINDOW,
) -> Report:
    """Plan an epoch for a cluster, and report what it needs.

    Args:
        sizes: of the split.
        nodes, gpus_per_node: one rank per GPU; a node's ranks are consecutive.
        global_batch_size: utterances per step over all ranks.
        streams, seed, window: see `plan`.

    Raises:
        ValueError: the split is empty, the ranks or streams do not divide the global batch, or an index is
            damaged.
        OSError: the store cannot be reached.
    """
    if nodes < 1 or gpus_per_node < 1:
        raise ValueError(f"{nodes} nodes with {gpus_per_node} GPUs each: there must be at least one of each")
    ranks = nodes * gpus_per_node
    _, share = places_of_rank(global_batch_size, 0, ranks)
    plan = make_plan(
        sizes.utterances,
        global_batch_size,
        streams=streams,
        seed=seed,
        window=window,
        work=sizes.work,
    )
    node_places = share * gpus_per_node
    needed = [shards_of_places(plan, node * node_places, node_places) for node in range(nodes)]
    node_bytes = [int(sizes.bytes[shards].sum()) for shards in needed]
    sample = _sample(plan, sizes, ranks, with_bytes=True)
    plain = _sample(replace(plan, work=None, memo={}), sizes, ranks, with_bytes=False)
    fractions = sizes.utterances / plan.rows
    return Report(
        sizes=sizes,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        global_batch_size=global_batch_size,
        streams=plan.streams,
        steps_per_epoch=plan.steps_per_epoch,
        last_step=plan.rows - (plan.steps_per_epoch - 1) * global_batch_size,
        window=plan.window_rows,
        node_bytes=_spread(node_bytes),
        node_shards=_spread([len(shards) for shards in needed]),
        fetched_bytes=sum(node_bytes),
        cache_bytes=max(
            working_set(plan, sizes.bytes, node * node_places, node_places) for node in range(nodes)
        ),
        sampled_steps=len(sample["excess"]),
        sampled_ranks=min(ranks, SAMPLED_RANKS),
        excess=_spread(sample["excess"]),
        excess_unbalanced=_spread(plain["excess"]),
        distance=float(np.mean(sample["distance"]) / (plan.rows / 3)),
        neighbor_distance=float(np.mean(sample["neighbor_distance"]) / (plan.rows / 3)),
        same_shard=float(np.mean(sample["same_shard"])),
        same_shard_ideal=float(np.square(fractions).sum()),
        rank_bytes=_spread(sample["rank_bytes"]),
    )


def _sample(plan: Plan, sizes: SplitSizes, ranks: int, *, with_bytes: bool) -> dict[str, list[float]]:
    """Balance and quality of the shuffle in consecutive steps in the middle of an epoch.

    `with_bytes` measures the memory of ranks' batches, too.
    """
    first_row = np.cumsum(sizes.utterances) - sizes.utterances
    work: dict[int, np.ndarray] = {}
    memory: dict[int, np.ndarray] = {}
    found: dict[str, list[float]] = {
        name: [] for name in ("excess", "distance", "neighbor_distance", "same_shard", "rank_bytes")
    }
    chosen = np.unique(np.linspace(0, ranks - 1, min(ranks, SAMPLED_RANKS)).astype(int)).tolist()
    # Without the last step, which may be partial, unless it is the only one.
    full = max(1, plan.steps_per_epoch - 1)
    begin = max(0, min(full // 2, full - SAMPLED_STEPS))
    for step in range(begin, min(begin + SAMPLED_STEPS, full)):
        totals, stored, shards, apart = [], [], [], []
        for rank in chosen:
            places = places_of_rank(plan.global_batch_size, rank, ranks)
            _, shard, row = rows_of_step(plan, 0, step, *places)
            new = [s for s in np.unique(shard).tolist() if s not in work]
            work |= dict(zip(new, sizes.work(new), strict=True))
            rows = list(zip(shard.tolist(), row.tolist(), strict=True))
            totals.append(sum(int(work[s][r]) for s, r in rows))
            if with_bytes:
                memory |= dict(zip(new, sizes.batch_bytes(new), strict=True))
                found["rank_bytes"].append(sum(int(memory[s][r]) for s, r in rows))
            stored.append(first_row[shard] + row)
            shards.append(shard)
            apart.append(np.abs(np.diff(stored[-1])))
        found["excess"].append(max(totals) * len(totals) / sum(totals) - 1)
        found["neighbor_distance"].append(_mean(np.concatenate(apart)))
        found["distance"].append(_mean_distance(np.concatenate(stored)))
        _, count = np.unique(np.concatenate(shards), return_counts=True)
        pairs = max(1, count.sum() * (count.sum() - 1))
        found["same_shard"].append(float((count * (count - 1)).sum() / pairs))
    return found


def _mean_distance(positions: np.ndarray) -> float:
    """Mean distance over all pairs."""
    n = len(positions)
    # In ascending order, the k-th position is added in k pairs and subtracted in n - 1 - k pairs.
    weight = 2 * np.arange(n) - n + 1
    return float((np.sort(positions) * weight).sum() / max(1, n * (n - 1) // 2))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _drawn_work(shard: int, utterances: int) -> np.ndarray:
    """Segments and frames of each utterance of a synthetic shard, from a log-normal distribution."""
    rng = np.random.default_rng(shard)
    spread = rng.lognormal(-(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD, utterances)
    work: np.ndarray = np.maximum(1, SYNTHETIC_STEPS * np.clip(spread, SHORTEST, LONGEST)).astype(np.int64)
    return work


def _spread(values: list[Any]) -> Spread:
    return Spread(float(min(values)), float(np.mean(values)), float(max(values)))


def format_report(report: Report) -> str:
    """The report as text, one figure per line."""
    r, sizes = report, report.sizes
    lengths = "lengths drawn" if sizes.drawn else "lengths as indexed"
    shards = f"{r.node_shards.low:,.0f} - {r.node_shards.high:,.0f} of {len(sizes.utterances):,}"
    lines = [
        (
            "data",
            f"{sizes.name}: {sizes.utterances.sum():,} utterances, {format_bytes(float(sizes.bytes.sum()))}",
        ),
        ("ranks", f"{r.nodes:,} nodes x {r.gpus_per_node} GPUs, global batch {r.global_batch_size:,}"),
        ("steps per epoch", f"{r.steps_per_epoch:,}, the last of {r.last_step:,} utterances"),
        ("streams", f"{r.streams:,}, each shuffled within windows of {r.window:,} utterances"),
        ("shards per node", f"{shards}, mean {r.node_shards.mean:,.1f}"),
        ("bytes per node", f"{format_bytes(r.node_bytes.low)} - {format_bytes(r.node_bytes.high)}"),
        (
            "fetched in all",
            f"{format_bytes(r.fetched_bytes)}, {r.fetched_bytes / sizes.bytes.sum():.2f} x the data",
        ),
        ("cache per node", f"{format_bytes(r.cache_bytes)} at a time at most ({r.cache_bytes:,} bytes)"),
        (
            "memory of a batch",
            f"{format_bytes(r.rank_bytes.mean)} per rank, {format_bytes(r.rank_bytes.high)} at most",
        ),
        (
            "longest rank",
            f"{r.excess.mean:.1%} above the mean rank of its step, {r.excess.high:.1%} at worst",
        ),
        ("  unbalanced", f"{r.excess_unbalanced.mean:.1%}, {r.excess_unbalanced.high:.1%} at worst"),
        (
            "apart in storage",
            f"utterances of a batch: {r.distance:.0%} of the distance after a perfect shuffle",
        ),
        ("  neighbors", f"{r.neighbor_distance:.0%}"),
        ("  same shard", f"{r.same_shard:.3%} of pairs; {r.same_shard_ideal:.3%} after a perfect shuffle"),
        (
            "sampled",
            f"the six lines above, on {r.sampled_steps} steps, {r.sampled_ranks} ranks, {lengths}",
        ),
    ]
    return "\n".join(table_lines(lines))
