"""Negatives: of another class, within reach, uniform, and the same for every layout."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from awtpn.learning.negatives import (
    NONE,
    draw_other_class,
    draw_permutation,
    make_slot_table,
    read_slot_table,
)

# Per place: nobody, or a class and whether both streams are there.
PLACES = st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 3), st.booleans())), min_size=24, max_size=24)


def slot_table_of(places: list[tuple[int, bool] | None]) -> np.ndarray:
    place = np.array([i for i, p in enumerate(places) if p is not None], np.int64)
    label = np.array([p[0] for p in places if p is not None], np.int64)
    second = np.array([p[1] for p in places if p is not None], bool)
    return make_slot_table(len(places), place, label, np.stack([np.ones_like(second), second]))


def draw_other(slot_table: np.ndarray, group: int, seed: int, step: int, draw: int) -> np.ndarray:
    """The negatives of a slot table of two modalities."""
    label, present = read_slot_table(slot_table, 2)
    return draw_other_class(label, present.all(0), group, seed, step, draw)


@settings(max_examples=200, deadline=None)
@given(
    places=PLACES,
    group=st.sampled_from([2, 4, 8, 24]),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**9),
    draw=st.integers(0, 1),
)
def test_a_negative_is_of_another_class_of_the_group_with_both_streams(
    places: list[tuple[int, bool] | None], group: int, seed: int, step: int, draw: int
) -> None:
    negative = draw_other(slot_table_of(places), group, seed, step, draw)
    assert len(negative) == len(places)
    for i, found in enumerate(negative):
        me = places[i]
        mates = range(i // group * group, (i // group + 1) * group)
        candidates = [
            j
            for j in mates
            for p in [places[j]]
            if me is not None and p is not None and p[1] and p[0] != me[0]
        ]
        # NONE exactly where there is nobody, or nobody to draw.
        assert found in candidates if candidates else found == NONE


@settings(max_examples=100, deadline=None)
@given(places=PLACES, ranks=st.sampled_from([2, 3, 6]), seed=st.integers(0, 99), step=st.integers(0, 99))
def test_no_layout_changes_a_negative(
    places: list[tuple[int, bool] | None], ranks: int, seed: int, step: int
) -> None:
    """A rank that knows its own places alone draws what one that knows all would."""
    whole = draw_other(slot_table_of(places), 4, seed, step, 0)
    share = len(places) // ranks
    rosters = []
    for rank in range(ranks):
        own = range(rank * share, (rank + 1) * share)
        rosters.append(slot_table_of([p if i in own else None for i, p in enumerate(places)]))
        mine = draw_other(rosters[-1], 4, seed, step, 0)
        assert (mine[own.start : own.stop] == whole[own.start : own.stop]).all()
    assert (np.sum(rosters, axis=0) == slot_table_of(places)).all(), "rosters of ranks add up to the batch's"


def test_draws_are_uniform_over_the_candidates() -> None:
    places: list[tuple[int, bool] | None] = [
        (0, True),
        (1, True),
        (1, True),
        (2, True),
        (2, False),
        (1, True),
        None,
        (0, True),
    ]
    slot_table = slot_table_of(places)
    draws = np.array([draw_other(slot_table, 8, seed=11, step=s, draw=0) for s in range(6_000)])
    # The first has four candidates: three of class 1 and one of class 2.
    values, counts = np.unique(draws[:, 0], return_counts=True)
    assert values.tolist() == [1, 2, 3, 5]
    # Four standard deviations of a binomial count.
    assert (np.abs(counts - 1_500) < 4 * np.sqrt(6_000 * 0.25 * 0.75)).all()
    # Two places' draws are independent of each other, and so are the two losses'.
    other = np.array([draw_other(slot_table, 8, seed=11, step=s, draw=1) for s in range(6_000)])
    for first, second in ((draws[:, 0], draws[:, 7]), (draws[:, 0], other[:, 0])):
        assert abs((first == second).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 6_000)


def test_seed_step_and_draw_each_change_the_negatives() -> None:
    slot_table = slot_table_of([(i % 4, True) for i in range(64)])
    drawn = [draw_other(slot_table, 64, *names) for names in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all((drawn[0] != other).any() for other in drawn[1:])
    assert (drawn[0] == draw_other(slot_table, 64, 0, 0, 0)).all()


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, 20), first=st.integers(0, 40), seed=st.integers(0, 9), data=st.data())
def test_the_published_permutation(size: int, first: int, seed: int, data: st.DataObject) -> None:
    place = np.arange(first, first + size)
    complete = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    negative = draw_permutation(place, complete, seed, 4, 0)
    whole = draw_permutation(place, np.ones(size, bool), seed, 4, 0)
    assert sorted(whole) == place.tolist(), "each serves once"
    serves = np.isin(whole, place[complete])
    assert (negative[serves] == whole[serves]).all()
    assert (negative[~serves] == NONE).all()
