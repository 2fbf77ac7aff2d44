"""Passes: every utterance once, within the budget and the share of padding, the same for the same lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from awtpn.model.encoders.passes import Budget, plan_passes

UNLIMITED = Budget(1 << 40, 1.0)


def drawn(seed: int, count: int = 60) -> dict[str, list[list[int]]]:
    """Windows of utterances as encoders give them: 30 times longer or shorter, some missing, some long."""
    draws = np.random.default_rng(seed)
    seconds = np.exp(draws.uniform(np.log(0.3), np.log(9), count))
    missing = draws.random((2, count)) < 0.2
    sound = [[] if missing[0, i] else _cut(int(1600 * s)) for i, s in enumerate(seconds)]
    pictures = [
        [] if missing[1, i] and sound[i] else [4] * max(1, int(5 * s / 4)) for i, s in enumerate(seconds)
    ]
    return {"audio": sound, "video": pictures}


def _cut(samples: int, longest: int = 6400) -> list[int]:
    return [min(longest, samples - start) for start in range(0, samples, longest)]


def padded_and_own(windows: Sequence[Sequence[int]], rows: Sequence[int]) -> tuple[int, int]:
    """Sizes of a pass with and without padding."""
    sizes = [size for row in rows for size in windows[row]]
    return len(sizes) * max(sizes, default=0), sum(sizes)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("padding", [0.0, 0.2, 1.0])
def test_budget_and_padding_are_kept(seed: int, padding: float) -> None:
    windows = drawn(seed)
    budgets = {"audio": Budget(16_000, padding), "video": Budget(40, 1.0)}
    utterances = list(range(7, 60))
    passes = plan_passes(windows, budgets, utterances)
    assert sorted(row for rows in passes for row in rows) == utterances, "each once"
    assert all(passes)
    alone = 0
    for rows in passes:
        for modality, budget in budgets.items():
            padded, own = padded_and_own(windows[modality], rows)
            within = padded <= budget.size and padded - own <= budget.padding * padded
            assert within or len(rows) == 1
            alone += not within
    assert alone > 0, "some utterances are larger than a pass"
    assert len(passes) < len(utterances)
    assert passes == plan_passes(windows, budgets, utterances)


def test_a_pass_is_filled_before_the_next_one_begins() -> None:
    windows = drawn(0)
    budgets = {"audio": Budget(16_000, 0.2), "video": Budget(40, 1.0)}
    passes = plan_passes(windows, budgets, range(60))
    for rows, after in pairwise(passes):
        more = [*rows, after[0]]
        exceeds = [
            padded > budget.size or padded - own > budget.padding * padded
            for budget, (padded, own) in ((budgets[m], padded_and_own(windows[m], more)) for m in budgets)
        ]
        assert any(exceeds)


def test_similar_lengths_are_together() -> None:
    passes = plan_passes({"audio": [[5], [90], [6], [88], [], [7]]}, {"audio": Budget(180, 0.2)}, range(6))
    assert passes == [[1, 3], [5, 2, 0, 4]]


def test_utterances_that_lack_the_modality_cost_nothing() -> None:
    budgets = {"audio": Budget(10, 0.0)}
    assert plan_passes({"audio": [[], [], []]}, budgets, range(3)) == [[0, 1, 2]]
    assert plan_passes({"audio": [[], [11], []]}, budgets, range(3)) == [[1], [0, 2]]
    assert plan_passes({"audio": [[5], [], [5]]}, budgets, range(3)) == [[0, 2, 1]]


def test_without_utterances_there_is_no_pass() -> None:
    assert plan_passes({"audio": [[5], [5]]}, {"audio": UNLIMITED}, []) == []


def test_each_encoder_has_its_own_budget() -> None:
    windows = {"audio": [[10]] * 6, "video": [[1] * n for n in (1, 1, 1, 5, 5, 5)]}
    one = plan_passes(windows, {"audio": Budget(60, 0.0), "video": Budget(6, 0.0)}, range(6))
    assert one == [[0, 1, 2], [3], [4], [5]]
    other = plan_passes(windows, {"audio": Budget(20, 0.0), "video": UNLIMITED}, range(6))
    assert other == [[0, 1], [2, 3], [4, 5]]
