"""Order the rows of a window so that steps, and equal parts of steps, take about equal work.

A step takes as long as its slowest rank. So the rows of a window are ordered such that all steps, and within
a step all ranks, get about the same number of time steps. The order does not depend on the number of ranks:
each step is split into halves of equal work, these again, and so on, so the shares of 2, 4, 8, ... ranks are
balanced too.

1. The window's rows are split into groups of GROUP_STEPS steps. Each group gets rows of all lengths.
2. A group's rows go to its steps by the greedy rule of scheduling (longest processing time first): the
   longest row first, each to the step with the least work so far.
3. Each step's rows go to its parts by the same rule, and so on.

Groups keep the shuffle random: if a whole window were balanced at once, its longest and its shortest rows
would be in the same step in every epoch. Each stream is balanced on its own, from the lengths of its own
rows, so a rank needs only the indexes of its own shards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shards.format.schema import Modality

# Steps per group.
GROUP_STEPS = 8


def work_of(steps: Mapping[str, np.ndarray], modalities: Mapping[str, Modality]) -> np.ndarray:
    """The work of utterances: their time steps, summed over modalities.

    Where a modality holds recordings it is their bytes in a batch: a picture is far more work than a time
    step of sound.

    Args:
        steps: time steps by modality, [U] each.
        modalities: those that are read, one at least.

    Returns:
        [U] int64.
    """
    if any(modality.recording for modality in modalities.values()):
        return batch_bytes(steps, modalities)
    return np.stack([steps[name] for name in modalities]).sum(0, np.int64)


def batch_bytes(steps: Mapping[str, np.ndarray], modalities: Mapping[str, Modality]) -> np.ndarray:
    """Bytes of each utterance's arrays in a batch, over all modalities; arguments and result of `work_of`.

    Pictures that are stored as JPEG take many times the memory of their files. So the size of a dataset on
    disk says little about the memory that training needs.
    """
    sizes = [steps[name].astype(np.int64) * m.step_bytes for name, m in modalities.items()]
    return np.stack(sizes).sum(0, np.int64)


def balance_steps(work: np.ndarray, rows_per_step: int, rotation: int) -> np.ndarray:
    """Order rows so that steps of `rows_per_step` rows, and equal parts of steps, take about equal work.

    Args:
        work: [n] of each row, at least 0, in the order drawn.
        rows_per_step: rows of this stream in a step. Rows after the last full step keep their order.
        rotation: number of the step, modulo the steps, that gets the longest row. If streams have too few
            rows per step to be balanced on their own, different rotations make them balance each other.

    Returns:
        [n], the rows in their new order.
    """
    in_steps = len(work) // rows_per_step * rows_per_step
    group_rows = GROUP_STEPS * rows_per_step
    num_groups = in_steps // group_rows
    in_groups = num_groups * group_rows
    groups = _split_evenly(work[:in_groups], num_groups)
    # The last group holds the steps that remain, fewer than GROUP_STEPS.
    rest = np.arange(in_groups, in_steps)[None]
    found = [_balance(work, rows, rows_per_step, rotation).ravel() for rows in (groups, rest) if rows.size]
    return np.concatenate([*found, np.arange(in_steps, len(work))])


def _split_evenly(work: np.ndarray, groups: int) -> np.ndarray:
    """Groups with the same mix of lengths, [groups, n / groups] rows."""
    if groups == 0:
        return np.zeros((0, 0), np.int64)
    # Each line holds `groups` rows of similar length, and gives one of them to each group.
    lines = np.argsort(-work, kind="stable").reshape(-1, groups)
    # Rows are numbered in the order drawn, so sorting a line by number assigns its rows at random.
    return np.sort(np.sort(lines, axis=1).T, axis=1)


def _balance(work: np.ndarray, groups: np.ndarray, rows_per_step: int, rotation: int) -> np.ndarray:
    """Order the rows of groups: first split into steps, then each step into equal parts, down to single rows.

    Args:
        work: of every row.
        groups: [G, n] rows, in the order drawn.
        rows_per_step, rotation: as of `balance_steps`.
    """
    longest_first = np.argsort(-work[groups], axis=1, kind="stable")
    parts = np.take_along_axis(groups, longest_first, axis=1)
    for bins in (groups.shape[1] // rows_per_step, *_prime_factors(rows_per_step)):
        parts = _assign(parts, work, bins, rotation)
    return parts


def _assign(parts: np.ndarray, work: np.ndarray, bins: int, rotation: int) -> np.ndarray:
    """Split each part into bins of equally many rows and about equal work.

    Args:
        parts: [k, n] rows, by descending work within each part.
        work: of every row.
        bins: divides n.
        rotation: number of the bin, modulo `bins`, that gets the first row.

    Returns:
        [k * bins, n / bins] rows, again by descending work.
    """
    k, n = parts.shape
    assigned = np.empty((k, bins, n // bins), parts.dtype)
    # The start values are below 1, the smallest difference of work (work is a whole number). So they
    # decide only between bins with equal work.
    total = np.tile((np.arange(bins) - rotation) % bins / (bins + 1), (k, 1))
    part = np.arange(k)[:, None]
    for nth in range(n // bins):
        # The longest rows that are left, one for each bin: bins get equally many rows.
        rows = parts[:, nth * bins : (nth + 1) * bins]
        least_first = np.argsort(total, axis=1, kind="stable")
        assigned[part, least_first, nth] = rows
        total[part, least_first] += work[rows]
    return assigned.reshape(k * bins, n // bins)


def _prime_factors(n: int) -> list[int]:
    """Ascending: [2, 2, 3] of 12."""
    for p in range(2, n + 1):
        if n % p == 0:
            return [p, *_prime_factors(n // p)]
    return []
