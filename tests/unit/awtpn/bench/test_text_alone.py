"""The benchmarks of text alone and of missing modalities measure what they say, on small data."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from support import REPO, pack_corpus

from awtpn.cli import main as awtpn


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "tests" / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_both_are_measured_on_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_width: Any = importlib.import_module("text_width")
    text_alone: Any = importlib.import_module("text_alone")
    monkeypatch.setattr(text_width, "SIZES", {"train": 160, "val": 40, "test": 40})
    rows = text_alone.of_corpus(0, [16, 32], tmp_path, ["--train.max_steps", "3"])
    assert [row[:2] for row in rows] == [["0", "16"], ["0", "32"]]
    assert all(0 <= float(cell) <= 100 for row in rows for cell in row[2:])


@pytest.mark.usefixtures("benchmarks")
def test_a_modality_is_hidden_from_a_trained_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing: Any = importlib.import_module("missing_modalities")
    data = pack_corpus(tmp_path / "corpus")
    small = ["--model.shared_dim", "16", "--train.epochs", "6", "--train.pictures", "never"]
    awtpn(["train", "--data.train", data, "--run.dir", str(tmp_path / "runs" / "a"), *small])
    found = missing.of_run(tmp_path / "runs" / "a")
    assert list(found)[:3] == ["nothing missing", "without audio", "without video"]
    assert len({found["nothing missing"], found["without audio"], found["without video"]}) == 3
    missing.main([tmp_path / "runs"])
    assert "| without video, sum kept |" in capsys.readouterr().out
