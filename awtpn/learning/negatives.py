"""Negatives of the cross-modal losses: for each utterance another one.

A negative is a function of (seed, step, place in the global batch), so it is the same for any number of ranks
and any accumulation. It is drawn before the step's first forward, since the normalizers count valid ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NONE = -1  # no valid negative
# The two losses that use negatives draw them independently, as the published code does.
DRAWS = ("inter", "contrast")


def make_slot_table(size: int, place: Ints, label: Ints, complete: NDArray[np.bool_]) -> Ints:
    """What a draw needs to know about each place of the global batch: int64 [size].

    0: empty, or not on this rank; otherwise 1 + 2 * label + (1 if the utterance has both modalities).
    The sum of all ranks' slot tables is the slot table of the whole batch.
    """
    slot_table = np.zeros(size, dtype=np.int64)
    slot_table[place] = 1 + 2 * label + complete
    return slot_table


def complete_slots(slot_table: Ints) -> NDArray[np.bool_]:
    """Places [P] of a slot table whose utterance has both modalities."""
    return (slot_table > 0) & ((slot_table - 1) % 2 == 1)


def draw_other_class(slot_table: Ints, group: int, seed: int, step: int, draw: int) -> Ints:
    """For each place, a place of the same group that has another class and both modalities, or NONE.

    Args:
        slot_table: [P] from `make_slot_table`, P a multiple of `group`.
        group: size of a group of consecutive places; P for the whole batch.
        seed, step, draw: seed of the draw; `draw` is an index into `DRAWS`.

    Returns:
        [P] places, uniform over the candidates; NONE where there is no candidate, or no utterance.
    """
    size = len(slot_table)
    assert size % group == 0
    negative = np.full(size, NONE, dtype=np.int64)
    label = (slot_table - 1) // 2
    candidates = np.flatnonzero(complete_slots(slot_table))
    # Sorted by group, then by label, the candidates of another class are a group's range minus one block.
    classes = int(label.max(initial=0)) + 1
    block_of = (np.arange(size) // group) * classes + label
    order = candidates[np.argsort(block_of[candidates], kind="stable")]
    blocks = block_of[order]
    anchors = np.flatnonzero(slot_table > 0)
    first = (anchors // group) * classes
    group_begin, group_end = np.searchsorted(blocks, first), np.searchsorted(blocks, first + classes)
    block_begin = np.searchsorted(blocks, block_of[anchors])
    block_size = np.searchsorted(blocks, block_of[anchors], side="right") - block_begin
    others = group_end - group_begin - block_size
    pick = group_begin + (_uniform(seed, step, draw, anchors) * others).astype(np.int64)
    pick += np.where(pick >= block_begin, block_size, 0)
    found = others > 0
    negative[anchors[found]] = order[pick[found]]
    return negative


def draw_permutation(place: Ints, complete: NDArray[np.bool_], seed: int, step: int, draw: int) -> Ints:
    """The published code's negatives: one permutation of the micro-batch, which ignores classes.

    An utterance can be its own negative or have the same class. Other micro-batches give other negatives.

    Returns:
        The negative's place for each place [B]; NONE where the negative misses a modality.
    """
    order = np.argsort(_uniform(seed, step, draw, place), kind="stable")
    return np.where(complete[order], place[order], NONE)


def _uniform(seed: int, step: int, draw: int, place: Ints) -> NDArray[np.float64]:
    """One number in [0, 1) per place: a counter-based generator (splitmix64's finalizer, chained)."""
    state = np.zeros(len(place), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in (seed, step, draw, place):
            state = (state ^ np.asarray(word, dtype=np.int64).astype(np.uint64)) + np.uint64(
                0x9E3779B97F4A7C15
            )
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
