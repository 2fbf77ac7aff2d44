"""The benchmark of many shards makes datasets that are valid, and measures what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import many_shards
from support import LIMIT, environment

from shards.tools.verify import verify


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "d"
    many_shards.write(folder, 5, 60)
    return folder


def test_the_dataset_is_valid(dataset: Path) -> None:
    assert len(list(dataset.glob("*.tar"))) == 5
    # Copies of a shard have its keys, which are the only fault.
    faults = verify(str(dataset), progress=False).faults
    assert len(faults) == 4 * 60
    assert all(fault.cause.startswith("this key is also in train-00000") for fault in faults)


@pytest.mark.parametrize("case", ["first batch", "held out"])
def test_a_case_is_measured(dataset: Path, case: str) -> None:
    ran = subprocess.run(
        [sys.executable, many_shards.__file__, "--measure", str(dataset), case],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=LIMIT,
        env=environment(),
    )
    found = json.loads(ran.stdout)
    assert found["utterances"] == 300, "all are read, or in one of the two selections"
    assert found["s"] > 0
