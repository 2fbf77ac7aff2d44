"""Steps of equal work: an arrangement of a stream's rows that helps all numbers of ranks, depends on none.

The rows of a few consecutive steps, as drawn, are dealt anew to those steps: the longest first, each to the
step that has least so far; then each step's rows, in the same way, to its halves, their halves, and so on.
Every stream does so for itself, from the lengths of its own rows, so a rank still needs the indexes of its
own shards alone; and as every stream's steps come out alike, so do the totals of ranks, however many share
the streams, or a stream.

Few steps at a time, so that who meets whom is drawn anew in each epoch: were all rows of a window dealt at
once, the longest and the shortest would meet every time.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

# Steps over which rows are dealt: twice as many gain little.
STEPS = 8


def arranged(work: np.ndarray, share: int, turn: int) -> np.ndarray:
    """Order rows so that each `share` of them are about equal work, and so are equal parts of these.

    Args:
        work: [n] of each row, at least 0, in the order drawn.
        share: rows per step. Those that n has beyond a multiple of it stay where they are.
        turn: the step, counted round, that gets the longest row. Streams that have too few rows per step to
            be balanced alone balance each other where their turns differ.

    Returns:
        [n], the rows in their new order.
    """
    whole = len(work) // share * share
    edges = [*range(0, whole, STEPS * share), whole]
    found = [low + _balanced(work[low:high], share, turn) for low, high in pairwise(edges)]
    return np.concatenate([*found, np.arange(whole, len(work))])


def _balanced(work: np.ndarray, share: int, turn: int) -> np.ndarray:
    parts = np.argsort(-work, kind="stable")[None]
    for bins in (len(work) // share, *_prime_factors(share)):
        parts = _deal(parts, work, bins, turn)
    return parts.ravel()


def _deal(parts: np.ndarray, work: np.ndarray, bins: int, turn: int) -> np.ndarray:
    """Deal the rows of each part, the longest first, to bins of equally many rows and about equal work.

    Args:
        parts: [k, n] rows, by descending work within each part.
        work: of every row.
        bins: divides n.
        turn: the bin, counted round, that gets the first row.

    Returns:
        [k * bins, n / bins] rows, again by descending work.
    """
    k, n = parts.shape
    dealt = np.empty((k, bins, n // bins), parts.dtype)
    # Less than any row's work differs: it only decides between bins that have equally much.
    total = np.tile((np.arange(bins) - turn) % bins / (bins + 1), (k, 1))
    part = np.arange(k)[:, None]
    for nth in range(n // bins):
        rows = parts[:, nth * bins : (nth + 1) * bins]
        least_first = np.argsort(total, axis=1, kind="stable")
        dealt[part, least_first, nth] = rows
        total[part, least_first] += work[rows]
    return dealt.reshape(k * bins, n // bins)


def _prime_factors(n: int) -> list[int]:
    """Ascending: [2, 2, 3] of 12."""
    for p in range(2, n + 1):
        if n % p == 0:
            return [p, *_prime_factors(n // p)]
    return []
