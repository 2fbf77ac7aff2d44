"""Layouts learn the same from real features: RAVDESS, where it stands beside the checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import REPO, run

from shards import pack
from shards.sources import npz

FEATURES = REPO.parent / "shared" / "data" / "ravdess" / "ravdess_features.npz"


@pytest.mark.usefixtures("deepspeed_operator")
@pytest.mark.skipif(not FEATURES.is_file(), reason=f"{FEATURES} is not there")
def test_layouts_learn_the_same_from_real_features(tmp_path: Path) -> None:
    source = npz.read(str(FEATURES))
    pack(source.samples, str(tmp_path / "data"), classes=source.classes, progress=False)
    command = [sys.executable, "tests/distributed/matrix.py", "--data", str(tmp_path / "data"), "--fold", "3"]
    only = ["--ranks", "1", "2", "--accumulations", "1", "4", "--lessons", "gradient"]
    more_than_an_epoch = ["--steps", "40"]
    code, output = run([*command, *only, *more_than_an_epoch], tmp_path / "matrix.log")
    assert code == 0, output
    assert "16 layouts, 0 not equal to one process" in output
