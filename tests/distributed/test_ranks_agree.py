"""What ranks tell each other: sums, drift and its cure, negatives with gradient, the wish to stop.

The ranks themselves judge: see rank_checks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks_support import run_ranks

CHECKS = (
    "sums_and_objects",
    "drift_is_named_and_healed",
    "negatives_carry_gradient_over_ranks",
    "signals_and_counts_are_shared",
    "other_settings_are_refused",
    "an_evaluation_stops_on_all_ranks",
)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree(ranks: int, tmp_path: Path) -> None:
    run_ranks([{"check": check} for check in CHECKS], ranks, tmp_path)
