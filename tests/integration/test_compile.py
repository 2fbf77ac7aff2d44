"""train.compile changes nothing but speed: the compiled run is the eager one, for lengths of all kinds."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from ranks_support import run_ranks
from support import arguments, assert_like_runs, run


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_equals_the_eager_one(corpus: str, tmp_path: Path) -> None:
    eager, compiled = (
        arguments(
            {
                "data.train": corpus,
                "run.dir": tmp_path / name,
                "model.shared_dim": 16,
                "model.dropout": 0.0,
                "train.global_batch_size": 16,
                "train.epochs": 2,
                "train.compile": name == "compiled",
            }
        )
        for name in ("eager", "compiled")
    )
    run_ranks([{"train": eager}], 1, tmp_path)
    code, output = run([sys.executable, "launch/train.py", *compiled], tmp_path / "compiled.log")
    assert code == 0, output
    assert_like_runs(tmp_path / "eager", tmp_path / "compiled")
