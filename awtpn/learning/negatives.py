"""Negatives of the cross-modal losses: for each utterance another one.

A negative is a function of (seed, step, place in the global batch), so it is the same for any number of ranks
and any accumulation. It is drawn before the step's first forward, since the normalizers count valid ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

NONE = -1  # no valid negative
# The two losses that use negatives draw them independently, as the published code does.
DRAWS = ("inter", "contrast")


def make_slot_table(size: int, place: Ints, label: Ints, present: NDArray[np.bool_]) -> Ints:
    """What a draw needs to know about each place of the global batch: int64 [size].

    0: empty, or not on this rank; otherwise 1 + the utterance's label and modalities, packed into one number.
    The sum of all ranks' slot tables is the slot table of the whole batch.

    Args:
        size: places of the global batch.
        place, label: [B] of this rank's utterances.
        present: [M, B] whether an utterance has modality m.
    """
    bits = 1 << np.arange(len(present))
    slot_table = np.zeros(size, dtype=np.int64)
    slot_table[place] = 1 + (label << len(present)) + bits @ present
    return slot_table


def read_slot_table(slot_table: Ints, modalities: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Label [P] of each place, -1 where there is no utterance, and its modalities [M, P]."""
    packed = slot_table - 1
    present = (packed >> np.arange(modalities)[:, None]) & 1 == 1
    return packed >> modalities, present & (slot_table > 0)


def draw_other_class(
    label: Ints, complete: NDArray[np.bool_], group: int, seed: int, step: int, draw: int
) -> Ints:
    """For each place, a complete place of the same group that has another class, or NONE.

    Args:
        label: [P] classes, -1 where there is no utterance; P is a multiple of `group`.
        complete: [P] whether the utterance has the two modalities that are compared.
        group: size of a group of consecutive places; P for the whole batch.
        seed, step, draw: seed of the draw; `draw` is its number.

    Returns:
        [P] places, uniform over the candidates; NONE where there is no candidate, or no utterance.
    """
    size = len(label)
    assert size % group == 0
    negative = np.full(size, NONE, dtype=np.int64)
    candidates = np.flatnonzero(complete)
    # Sorted by group, then by label, the candidates of another class are a group's range minus one block.
    classes = int(label.max(initial=0)) + 1
    block_of = (np.arange(size) // group) * classes + label
    order = candidates[np.argsort(block_of[candidates], kind="stable")]
    blocks = block_of[order]
    anchors = np.flatnonzero(label >= 0)
    first = (anchors // group) * classes
    group_begin, group_end = np.searchsorted(blocks, first), np.searchsorted(blocks, first + classes)
    block_begin = np.searchsorted(blocks, block_of[anchors])
    block_size = np.searchsorted(blocks, block_of[anchors], side="right") - block_begin
    others = group_end - group_begin - block_size
    pick = group_begin + (uniform(seed, step, draw, anchors) * others).astype(np.int64)
    pick += np.where(pick >= block_begin, block_size, 0)
    found = others > 0
    negative[anchors[found]] = order[pick[found]]
    return negative


def complete_pairs(present: NDArray[np.bool_], pairs: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """[N, P] whether an utterance has both modalities of a pair.

    Args:
        present: [M, P] whether it has modality m.
        pairs: N pairs of modalities.
    """
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    complete: NDArray[np.bool_] = present[first] & present[second]
    return complete


def draw_for_pairs(
    complete: NDArray[np.bool_], numbers: Sequence[int], draw: Callable[[NDArray[np.bool_], int], Ints]
) -> Ints:
    """[N, len(DRAWS), P] the negatives of N pairs of modalities, which draw independently of each other.

    Args:
        complete: [N, P] of `complete_pairs`.
        numbers: N numbers of the pairs; each pair draws by its own.
        draw: of a pair's complete utterances and the number of the draw: the negatives.
    """
    draws = range(len(DRAWS))
    drawn = [
        [draw(of_pair, n * len(DRAWS) + d) for d in draws]
        for n, of_pair in zip(numbers, complete, strict=True)
    ]
    return np.array(drawn, dtype=np.int64).reshape(len(complete), len(DRAWS), complete.shape[1])


def draw_permutation(place: Ints, complete: NDArray[np.bool_], seed: int, step: int, draw: int) -> Ints:
    """The published code's negatives: one permutation of the micro-batch, which ignores classes.

    An utterance can be its own negative or have the same class. Other micro-batches give other negatives.

    Returns:
        The negative's place for each place [B]; NONE where the negative misses a modality.
    """
    order = np.argsort(uniform(seed, step, draw, place), kind="stable")
    return np.where(complete[order], place[order], NONE)


def uniform(seed: int, step: int, draw: int, place: Ints) -> NDArray[np.float64]:
    """One number in [0, 1) per place: a counter-based generator (splitmix64's finalizer, chained).

    It depends on the place in the global batch, not on the rank: the same numbers for every layout.
    """
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
