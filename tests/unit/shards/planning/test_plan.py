"""The plan's contract, over world sizes, shard counts, stream counts and resume points."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.planning.balance import balance_steps
from shards.planning.plan import (
    Plan,
    Work,
    default_streams,
    make_plan,
    places_of_rank,
    rows_of_step,
    shards_ahead,
)

BATCHES = [1, 2, 6, 8, 12, 24]


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def lengths(counts: Sequence[int]) -> Work:
    """Log-normal lengths of the rows of each shard."""
    drawn = [np.random.default_rng(i).lognormal(5, 0.6, n).astype(np.int64) for i, n in enumerate(counts)]
    return lambda shards: [drawn[s] for s in shards]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any))
    batch = draw(st.sampled_from(BATCHES))
    plan = make_plan(
        counts,
        batch,
        streams=draw(st.sampled_from([None, *divisors(batch)])),
        seed=draw(st.integers(0, 5)),
        shuffle=draw(st.booleans()),
        work=draw(st.sampled_from([None, lengths(counts)])),
    )
    # Short windows, so that small data crosses their edges.
    return replace(plan, window_rows=draw(st.integers(1, 40)), memo={})


def step_rows(plan: Plan, epoch: int, step: int, world_size: int = 1) -> list[tuple[int, int, int]]:
    """(place, shard, row) of a step, over all ranks."""
    found = []
    for rank in range(world_size):
        places = places_of_rank(plan.global_batch_size, rank, world_size)
        place, shard, row = rows_of_step(plan, epoch, step, *places)
        assert ((places[0] <= place) & (place < sum(places))).all()
        found += list(zip(place.tolist(), shard.tolist(), row.tolist(), strict=True))
    return found


def all_rows(plan: Plan) -> list[tuple[int, int]]:
    counts = np.zeros(len(plan.shard_order), np.int64)
    counts[plan.shard_order] = np.diff(plan.starts)
    return [(shard, row) for shard, count in enumerate(counts.tolist()) for row in range(count)]


@given(plan=plans(), epoch=st.integers(0, 3))
@settings(deadline=None)
def test_each_utterance_exactly_once_and_only_the_last_step_partial(plan: Plan, epoch: int) -> None:
    steps = [step_rows(plan, epoch, step) for step in range(plan.steps_per_epoch)]
    assert sorted((shard, row) for step in steps for _, shard, row in step) == all_rows(plan)
    for step in steps:
        places = [place for place, _, _ in step]
        assert places == sorted(set(places))
    assert all(len(step) == plan.global_batch_size for step in steps[:-1])
    assert steps[-1]


@given(plan=plans(), epoch=st.integers(0, 3), data=st.data())
@settings(deadline=None)
def test_same_global_batch_for_every_world_size(plan: Plan, epoch: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    alone = step_rows(plan, epoch, step)
    for world_size in divisors(plan.global_batch_size):
        assert step_rows(plan, epoch, step, world_size) == alone


@given(plan=plans(), epoch=st.integers(0, 3), data=st.data())
@settings(deadline=None)
def test_any_step_is_found_without_those_before(plan: Plan, epoch: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    for before in range(step):
        rows_of_step(plan, epoch, before, 0, plan.global_batch_size)
    assert step_rows(replace(plan, memo={}), epoch, step) == step_rows(plan, epoch, step)


@given(plan=plans(), epoch=st.integers(0, 3), data=st.data())
@settings(deadline=None)
def test_shards_ahead_covers_the_step(plan: Plan, epoch: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    world_size = data.draw(st.sampled_from(divisors(plan.global_batch_size)))
    for rank in range(world_size):
        places = places_of_rank(plan.global_batch_size, rank, world_size)
        _, shard, _ = rows_of_step(plan, epoch, step, *places)
        assert set(shard.tolist()) <= set(shards_ahead(plan, epoch, step, *places))


@given(plan=plans(), data=st.data())
@settings(deadline=None)
def test_a_rank_touches_only_its_streams_shards(plan: Plan, data: st.DataObject) -> None:
    world_size = data.draw(st.sampled_from(divisors(plan.streams)))
    touched: list[set[tuple[int, int]]] = []
    for rank in range(world_size):
        places = places_of_rank(plan.global_batch_size, rank, world_size)
        rows = set()
        for epoch in (0, 1):
            found = set()
            for step in range(plan.steps_per_epoch):
                _, shard, row = rows_of_step(plan, epoch, step, *places)
                found |= set(zip(shard.tolist(), row.tolist(), strict=True))
            # A rank has the same rows in every epoch: its node has downloaded all it will need.
            assert epoch == 0 or found == rows
            rows = found
        touched.append(rows)
    # Neighbours share a shard at most at their common edge.
    owners = [{shard for shard, _ in rows} for rows in touched]
    assert sum(map(len, owners)) <= len(set().union(*owners)) + world_size - 1


def test_order_differs_between_epochs_and_seeds_but_not_runs() -> None:
    counts = [50] * 8
    first = step_rows(make_plan(counts, 8, seed=1), 0, 0)
    assert first == step_rows(make_plan(counts, 8, seed=1), 0, 0)
    assert first != step_rows(make_plan(counts, 8, seed=1), 1, 0)
    assert first != step_rows(make_plan(counts, 8, seed=2), 0, 0)


def test_order_is_pinned() -> None:
    """A run resumed under a later version of this code must find the order it began with."""
    plan = make_plan([5, 4, 3, 6], 6, streams=2, seed=3)
    assert step_rows(plan, 1, 0) == PINNED


PINNED = [(0, 0, 0), (1, 1, 0), (2, 1, 3), (3, 3, 1), (4, 2, 0), (5, 2, 2)]


@given(
    work=st.lists(st.integers(0, 700), max_size=200), share=st.integers(1, 24), rotation=st.integers(0, 99)
)
@settings(deadline=None)
def test_balancing_loses_no_row_and_leaves_the_rest_of_a_step_in_place(
    work: list[int], share: int, rotation: int
) -> None:
    order = balance_steps(np.array(work, np.int64), share, rotation)
    assert sorted(order.tolist()) == list(range(len(work)))
    whole = len(work) // share * share
    assert order[whole:].tolist() == list(range(whole, len(work)))


@pytest.mark.parametrize(("streams", "world_size"), [(1, 4), (4, 2), (4, 4), (4, 8), (16, 8), (32, 4)])
def test_balancing_lowers_the_differences_between_ranks(streams: int, world_size: int) -> None:
    """Between ranks that share a stream, that share the streams, and where a stream has one place."""
    counts = [200] * 64
    work = lengths(counts)
    rows = np.concatenate([work([s])[0] for s in range(64)]).reshape(64, 200)

    def excess(plan: Plan) -> float:
        """By how much the longest rank of a step exceeds the mean, over steps."""
        found = []
        for step in range(plan.steps_per_epoch - 1):
            _, shard, row = rows_of_step(plan, 0, step, 0, 32)
            totals = rows[shard, row].reshape(world_size, -1).sum(1)
            found.append(totals.max() / totals.mean() - 1)
        return float(np.mean(found))

    drawn = excess(make_plan(counts, 32, streams=streams))
    assert excess(make_plan(counts, 32, streams=streams, work=work)) < 0.7 * drawn


def test_balanced_steps_differ_between_epochs() -> None:
    """Of two rows that met in one epoch, few meet in the next, even where one window holds all rows."""
    counts = [50] * 8
    plan = make_plan(counts, 8, streams=1, work=lengths(counts))

    def pairs(epoch: int) -> set[frozenset[tuple[int, int]]]:
        steps = [step_rows(plan, epoch, step) for step in range(plan.steps_per_epoch)]
        return {frozenset((a[1:], b[1:])) for rows in steps for i, a in enumerate(rows) for b in rows[:i]}

    assert len(pairs(0)) == 50 * 8 * 7 / 2
    assert len(pairs(0) & pairs(1)) < 0.06 * len(pairs(0))


def test_no_shuffle_is_the_natural_order() -> None:
    plan = make_plan([3, 0, 4], 2, shuffle=False)
    rows = [
        (shard, row) for step in range(plan.steps_per_epoch) for _, shard, row in step_rows(plan, 0, step)
    ]
    assert plan.streams == 1
    assert rows == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_shuffle_mixes_within_and_across_shards() -> None:
    plan = make_plan([1_000] * 8, 32, seed=0)
    _, shard, row = rows_of_step(plan, 0, 0, 0, 32)
    assert plan.streams == 2
    assert len(set(shard.tolist())) >= 3
    assert np.abs(np.diff(row)).mean() > 50


@pytest.mark.parametrize(
    ("shards", "batch", "streams"), [(1, 32, 1), (10, 32, 2), (400, 32, 32), (13, 30, 3), (10_000, 7, 7)]
)
def test_default_streams(shards: int, batch: int, streams: int) -> None:
    assert default_streams(shards, batch) == streams


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([], {}, "no utterances"),
        ([0, 0], {}, "no utterances"),
        ([5], {"streams": 3}, "3 streams do not divide the global batch of 8"),
        ([5], {"seed": -1}, "seed -1"),
    ],
)
def test_refused_plans(counts: list[int], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(counts, 8, **options)


def test_refused_ranks() -> None:
    with pytest.raises(ValueError, match="3 ranks do not divide the global batch of 8"):
        places_of_rank(8, 0, 3)
    with pytest.raises(ValueError, match="rank 4 of 4"):
        places_of_rank(8, 4, 4)


def test_hundred_million_utterances_on_4096_ranks() -> None:
    """Rank 37's whole epoch, and a resume in its midst, in a small part of 10 s and 1 GB."""
    batch, world_size = 4_096 * 32, 4_096
    tracemalloc.start()
    begin = time.perf_counter()
    plan = make_plan(np.full(10_000, 10_000), batch, seed=1)
    places = places_of_rank(batch, 37, world_size)
    rows = sum(len(rows_of_step(plan, 0, step, *places)[0]) for step in range(plan.steps_per_epoch))
    rows_of_step(make_plan(np.full(10_000, 10_000), batch, seed=1), 5, plan.steps_per_epoch // 2, *places)
    took = time.perf_counter() - begin
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == pytest.approx(100e6 / world_size, rel=0.01)
    assert took < 10
    assert peak < 100e6


def test_the_example_of_the_module() -> None:
    plan = make_plan([3, 3, 2], 4, streams=2, shuffle=False)
    steps = []
    for step in range(plan.steps_per_epoch):
        _, shard, row = rows_of_step(plan, 0, step, 0, 4)
        steps.append(" ".join(f"{'abc'[s]}{r}" for s, r in zip(shard, row, strict=True)))
    assert steps == ["a0 a1 b1 b2", "a2 b0 c0 c1"]
