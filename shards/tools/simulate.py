"""What an epoch would ask of a cluster, told from the plan alone: no shard is read.

Counts of shards, bytes and steps are exact. Balance and shuffling are measured on a sample of steps and
ranks, which the report states; of a dataset the indexes of the shards that these touch are read, for the
lengths of their utterances, which the manifest does not tell. Those of a made-up one are drawn around their
mean as those of speech are spread.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shards.format.schema import Manifest, choose_split
from shards.planning.cache_demand import working_set
from shards.planning.plan import WINDOW, Plan, Work, make_plan, places_of_rank, rows_of_step, shards_of_places
from shards.safe_io.printable import join_lines
from shards.storage.store import Store
from shards.streaming.reader import INDEX_THREADS, ShardReader
from shards.tools.info import format_bytes

SAMPLED_STEPS, SAMPLED_RANKS = 16, 512

# Standard deviation of the logarithm of lengths, and the extremes over the mean: those of spoken utterances.
LENGTH_SPREAD, SHORTEST, LONGEST = 0.55, 1 / 7, 4.3
# A synthetic utterance: its mean segments and frames, and bytes for each (1,024 and 512 features of float16).
SYNTHETIC_STEPS, SYNTHETIC_STEP_BYTES = 210, 1_700


@dataclass(frozen=True)
class SplitSizes:
    """The part of a split that a plan depends on.

    Attributes:
        name: for the report.
        utterances, bytes: [shards] int64 each; bytes with the index.
        work: segments and frames of each utterance of shards.
        drawn: whether `work` is made up.
    """

    name: str
    utterances: np.ndarray
    bytes: np.ndarray
    work: Work
    drawn: bool


@dataclass(frozen=True)
class Spread:
    """Smallest, mean and largest of a figure over nodes or steps."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class Report:
    """What an epoch asks of a cluster.

    Attributes:
        sizes: of the split.
        nodes, gpus_per_node, global_batch_size, streams: what was asked, and the plan's number of streams.
        steps_per_epoch: the last of them has `last_step` utterances.
        window: rows of a stream among which a row may change places.
        node_bytes, node_shards: fetched per node in the course of an epoch, and no others in further ones.
        fetched_bytes: over all nodes; a shard that several nodes need counts for each.
        cache_bytes: an upper bound of what a node needs at a time: the smallest `cache_limit` that is taken.
        sampled_steps, sampled_ranks: those on which what follows was measured.
        excess: by which part the rank with the most segments and frames exceeds the mean rank of its step.
        excess_unbalanced: the same without the balancing of steps.
        distance: between two utterances of a batch, in rows as stored: the mean over that of a perfect
            shuffle, a third of all rows.
        neighbour_distance: the same for utterances in consecutive places, which mostly share a stream.
        same_shard: the chance that two utterances of a batch come from one shard; `same_shard_ideal` is that
            of a perfect shuffle.
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
    neighbour_distance: float
    same_shard: float
    same_shard_ideal: float


def split_sizes(store: Store, manifest: Manifest, split: str) -> SplitSizes:
    """The sizes of a split of a dataset.

    Raises:
        ValueError: there is no such split.
    """
    split = choose_split(manifest, split, store.url)
    shards = manifest.splits[split].shards
    reader = ShardReader(store, manifest, split)

    def work(shards: list[int]) -> list[np.ndarray]:
        with ThreadPoolExecutor(INDEX_THREADS) as threads:
            return list(threads.map(reader.work, shards))

    return SplitSizes(
        name=f"{store.url}#{split}",
        utterances=np.array([shard.utterances for shard in shards], np.int64),
        bytes=np.array([shard.bytes + shard.index_bytes for shard in shards], np.int64),
        work=work,
        drawn=False,
    )


def synthetic_sizes(size: str) -> SplitSizes:
    """The sizes of a made-up data set, such as "100000000x10000": utterances x shards.

    Raises:
        ValueError: it says something else.
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
    """Plan an epoch of a sizes for a cluster, and tell what comes of it.

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
    sample = _sample(plan, sizes, ranks)
    plain = _sample(replace(plan, work=None, memo={}), sizes, ranks)
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
        neighbour_distance=float(np.mean(sample["neighbour_distance"]) / (plan.rows / 3)),
        same_shard=float(np.mean(sample["same_shard"])),
        same_shard_ideal=float(np.square(fractions).sum()),
    )


def _sample(plan: Plan, sizes: SplitSizes, ranks: int) -> dict[str, list[float]]:
    """Per sampled step, consecutive ones of the middle of an epoch: balance and quality of the shuffle."""
    first_row = np.cumsum(sizes.utterances) - sizes.utterances
    work: dict[int, np.ndarray] = {}
    found: dict[str, list[float]] = {
        name: [] for name in ("excess", "distance", "neighbour_distance", "same_shard")
    }
    chosen = np.unique(np.linspace(0, ranks - 1, min(ranks, SAMPLED_RANKS)).astype(int)).tolist()
    # All but the last, which may be partial, if there are others.
    full = max(1, plan.steps_per_epoch - 1)
    begin = max(0, min(full // 2, full - SAMPLED_STEPS))
    for step in range(begin, min(begin + SAMPLED_STEPS, full)):
        totals, stored, shards, apart = [], [], [], []
        for rank in chosen:
            places = places_of_rank(plan.global_batch_size, rank, ranks)
            _, shard, row = rows_of_step(plan, 0, step, *places)
            new = [s for s in np.unique(shard).tolist() if s not in work]
            work |= dict(zip(new, sizes.work(new), strict=True))
            totals.append(sum(int(work[s][r]) for s, r in zip(shard.tolist(), row.tolist(), strict=True)))
            stored.append(first_row[shard] + row)
            shards.append(shard)
            apart.append(np.abs(np.diff(stored[-1])))
        found["excess"].append(max(totals) * len(totals) / sum(totals) - 1)
        found["neighbour_distance"].append(_mean(np.concatenate(apart)))
        found["distance"].append(_mean_distance(np.concatenate(stored)))
        _, count = np.unique(np.concatenate(shards), return_counts=True)
        pairs = max(1, count.sum() * (count.sum() - 1))
        found["same_shard"].append(float((count * (count - 1)).sum() / pairs))
    return found


def _mean_distance(positions: np.ndarray) -> float:
    """Mean distance over all pairs."""
    n = len(positions)
    # In order, the k-th is subtracted from all after it and diminished by all before it.
    weight = 2 * np.arange(n) - n + 1
    return float((np.sort(positions) * weight).sum() / max(1, n * (n - 1) // 2))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _drawn_work(shard: int, utterances: int) -> np.ndarray:
    """Segments and frames of each utterance of a made-up shard: log-normal about their mean."""
    rng = np.random.default_rng(shard)
    spread = rng.lognormal(-(LENGTH_SPREAD**2) / 2, LENGTH_SPREAD, utterances)
    work: np.ndarray = np.maximum(1, SYNTHETIC_STEPS * np.clip(spread, SHORTEST, LONGEST)).astype(np.int64)
    return work


def _spread(values: list[Any]) -> Spread:
    return Spread(float(min(values)), float(np.mean(values)), float(max(values)))


def format_report(report: Report) -> str:
    """The report as text, a line per figure."""
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
            "longest rank",
            f"{r.excess.mean:.1%} above the mean rank of its step, {r.excess.high:.1%} at worst",
        ),
        ("  unbalanced", f"{r.excess_unbalanced.mean:.1%}, {r.excess_unbalanced.high:.1%} at worst"),
        ("apart in storage", f"a batch's utterances {r.distance:.0%} as far as after a perfect shuffle"),
        ("  neighbours", f"{r.neighbour_distance:.0%}"),
        ("  same shard", f"{r.same_shard:.3%} of pairs; {r.same_shard_ideal:.3%} after a perfect shuffle"),
        ("sampled", f"the last five: {r.sampled_steps} steps, {r.sampled_ranks} ranks, {lengths}"),
    ]
    return join_lines(f"{name:<17} {text}" for name, text in lines)
