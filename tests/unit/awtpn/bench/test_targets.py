"""The benchmark of targets compares variants on the same data, and its made-up data holds what it says."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import REPO

from shards import FeatureStream


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(REPO / "tests" / "benchmarks"))
    data: Any = importlib.import_module("target_data")
    monkeypatch.setattr(data, "SIZES", {"train": 60, "test": 30})
    return importlib.import_module("targets"), data


@pytest.mark.parametrize("task", ["values", "labels"])
def test_variants_are_compared_with_the_defaults(
    task: str, benchmarks: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets, _ = benchmarks
    out = tmp_path / "table.md"
    small = ["--dir", str(tmp_path), "--only", task, "--corpora", "2", "--variants", "align off"]
    targets.main([*small, "--out", str(out), "--train.max_steps", "3", "--model.shared_dim", "8"])
    assert out.read_text() == capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in out.read_text().splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == ["linear model", "defaults", "align off"]
    first, last = rows[0].index(f" {targets.COMPARED[task][0]} "), targets.COMPARED[task][0]
    linear, defaults = (float(row[first]) for row in rows[2:4])
    gained = float(rows[2][rows[0].index(f" {last}, difference ")].split()[0])
    assert gained == pytest.approx(linear - defaults, abs=2e-3)
    assert rows[3][-1].strip() == ""


def test_informative_steps_of_a_made_up_corpus_follow_the_values(
    benchmarks: tuple[Any, Any], tmp_path: Path
) -> None:
    """Linear models of the mean of the informative steps read a value's sign and common labels from it."""
    _, data = benchmarks
    url = data.pack_made(0, tmp_path / "made")
    stream = FeatureStream(url, split="train", target="values", shuffle=False, global_batch_size=60)
    (batch,) = stream.epoch(0)
    meta = dict(stream.metadata())
    steps = batch.features["audio"]
    means = np.stack(
        [
            of.double().numpy()[meta[key]["informative_audio"]].mean(0)
            for key, of in zip(batch.key, steps.values.split(steps.host_lengths), strict=True)
        ]
    )
    noise = np.concatenate(
        [
            np.delete(of.double().numpy(), meta[key]["informative_audio"], 0)
            for key, of in zip(batch.key, steps.values.split(steps.host_lengths), strict=True)
        ]
    )
    assert noise.std() > 1.5 * means.std()
    values = batch.host_target.numpy()
    assert np.isnan(values).any()
    assert not np.isnan(values).all(1).any()
    assert np.nanmin(values) >= -3
    assert np.nanmax(values) <= 3
    label = np.array([meta[key]["a"] for key in batch.key])
    apart = means[label == 1].mean(0) - means[label == 0].mean(0)
    assert ((means - means.mean(0)) @ apart > 0)[label == 1].mean() > 0.75
