"""No test gives up before a machine three times slower has had its time: limits are LIMIT, or longer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import LIMIT, REPO

WAIT = re.compile(
    r"(?:timeout=|\.wait\(|\.join\(|communicate\(|monotonic\(\) \+ |mark\.timeout\()(\d[\d_.]*)"
)
FILES = sorted(path for path in (REPO / "tests").rglob("*.py") if "benchmarks" not in path.parts)


def too_short(text: str) -> list[str]:
    """The waits whose limit is some seconds; shorter ones are pauses between two looks."""
    return [found[0] for found in WAIT.finditer(text) if 1 <= float(found[1].strip("._")) < LIMIT]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(REPO / "tests")) for path in FILES])
def test_a_limit_is_reached_by_a_hang_only(path: Path) -> None:
    assert too_short(path.read_text()) == [], "wait LIMIT of tests/support.py"


def test_short_limits_are_found() -> None:
    number = 30
    for words in (f"run(x, timeout={number})", f"process.wait({number})", f"time.monotonic() + {number}.5"):
        assert len(too_short(words)) == 1
    assert too_short("ended.wait(0.02); done.wait(LIMIT); time.monotonic() + LIMIT; join(600)") == []
