"""Steps of equal work: an arrangement of a stream's rows that helps all numbers of ranks, depends on none.

The rows of a window are dealt to groups of a few consecutive steps: of rows of about one length each group
gets as many, which ones is drawn. A group's rows are dealt to its steps, the longest first, each to the step
that has least so far; then each step's rows, in the same way, to its halves, their halves, and so on. Every
stream does so for itself, from the lengths of its own rows, so a rank still needs the indexes of its own
shards alone; and as every stream's steps come out alike, so do the totals of ranks, however many share the
streams, or a stream.

Groups are there so that who meets whom is drawn anew in each epoch: were a whole window dealt to the step
that has least, its longest and its shortest rows would meet every time.
"""

from __future__ import annotations

import numpy as np

# Steps in a group.
STEPS = 8


def balance_steps(work: np.ndarray, share: int, rotation: int) -> np.ndarray:
    """Order rows so that each `share` of them are about equal work, and so are equal parts of these.

    Args:
        work: [n] of each row, at least 0, in the order drawn.
        share: rows per step. Those that n has beyond a multiple of it stay where they are.
        rotation: the step, counted round, that gets the longest row. Streams that have too few rows per step to
            be balanced alone balance each other where their turns differ.

    Returns:
        [n], the rows in their new order.
    """
    whole = len(work) // share * share
    grouped = whole // (STEPS * share) * (STEPS * share)
    groups = [*_alike(work[:grouped], grouped // (STEPS * share)), np.arange(grouped, whole)]
    found = [group[_balanced(work[group], share, rotation)] for group in groups if len(group)]
    return np.concatenate([*found, np.arange(whole, len(work))])


def _alike(work: np.ndarray, groups: int) -> np.ndarray:
    """Groups of rows that are alike in their lengths, [groups, n / groups]."""
    if groups == 0:
        return np.zeros((0, 0), np.int64)
    like = np.argsort(-work, kind="stable").reshape(-1, groups)
    # Rows come in the order drawn: among those of about one length it tells who goes to which group.
    return np.sort(np.sort(like, axis=1).T, axis=1)


def _balanced(work: np.ndarray, share: int, rotation: int) -> np.ndarray:
    parts = np.argsort(-work, kind="stable")[None]
    for bins in (len(work) // share, *_prime_factors(share)):
        parts = _deal(parts, work, bins, rotation)
    return parts.ravel()


def _deal(parts: np.ndarray, work: np.ndarray, bins: int, rotation: int) -> np.ndarray:
    """Deal the rows of each part, the longest first, to bins of equally many rows and about equal work.

    Args:
        parts: [k, n] rows, by descending work within each part.
        work: of every row.
        bins: divides n.
        rotation: the bin, counted round, that gets the first row.

    Returns:
        [k * bins, n / bins] rows, again by descending work.
    """
    k, n = parts.shape
    dealt = np.empty((k, bins, n // bins), parts.dtype)
    # Less than any row's work differs: it only decides between bins that have equally much.
    total = np.tile((np.arange(bins) - rotation) % bins / (bins + 1), (k, 1))
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
