"""Cross-validation: folds, intervals and the table; two folds trained for a few steps, and taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from awtpn import crossvalidation
from awtpn.crossvalidation import Fold, Score
from shards import pack
from shards.sources import npz


def test_each_value_is_left_out_once() -> None:
    assert crossvalidation.leave_one_out([0, 1, 2]) == [Fold(0, [1, 2]), Fold(1, [0, 2]), Fold(2, [0, 1])]


def test_a_single_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two folds"):
        crossvalidation.leave_one_out(["Ses01"])


@pytest.mark.parametrize(
    "argument", ["--run.seed=1", "--run.dir", "--data.select.train", "--data.select.test.fold=1"]
)
def test_what_it_sets_itself_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="leave it out"):
        crossvalidation.check_arguments([argument, "1"], seeds=[0])


def test_a_seed_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        crossvalidation.check_arguments([], seeds=[0, 1, 0])


def test_interval_is_students() -> None:
    pytest.importorskip("scipy")
    # Mean 2, deviation 1, n = 3: half width t(0.975, 2) / sqrt(3) with t = 4.302653.
    assert crossvalidation.t_interval([1.0, 2.0, 3.0]) == pytest.approx(
        [2 - 2.484138, 2 + 2.484138], abs=1e-6
    )
    assert crossvalidation.t_interval([1.0]) is None


def test_pooling_of_steps() -> None:
    assert crossvalidation.pool(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist() == [2, 5, 1, 0]
    assert crossvalidation.pool(np.zeros((0, 2))).tolist() == [0, 0, 0, 0]


def test_table_shows_every_run_beside_its_folds_baseline() -> None:
    pytest.importorskip("scipy")
    f1 = {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.8, (1, 1): 0.8}
    scores = [Score(fold, seed, {"w-F1": x, "w-ACC": x}) for (fold, seed), x in f1.items()]
    baseline = [Score(fold, None, {"w-F1": 0.25 + fold, "w-ACC": 0.25}) for fold in (0, 1)]
    assert crossvalidation.fold_means(scores, "w-F1") == pytest.approx([0.6, 0.8])
    results = {"by": "fold", **crossvalidation.collect(scores, baseline)}
    assert results["mean"]["w-F1"] == pytest.approx(0.7)
    table = crossvalidation.format_scores(results).splitlines()
    assert table[2].split() == ["0", "0", "50.00", "50.00", "25.00", "25.00"]
    assert table[4].split() == ["1", "0", "80.00", "80.00", "125.00", "25.00"]
    assert table[6].split() == ["mean", "70.00", "70.00", "75.00", "25.00"]
    assert "4 runs" in table[7]
    assert "2 fold means" in table[8]


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Two folds of 16 utterances, two classes that differ in the mean."""
    rng = np.random.default_rng(0)
    label = np.arange(32) % 2
    np.savez(
        tmp_path / "tiny.npz",
        ids=np.array([f"u{i}" for i in range(32)]),
        audio=rng.normal(size=(32, 3, 4)) + 3 * label[:, None, None],
        video=rng.normal(size=(32, 1, 2)),
        label=label,
        fold=np.arange(32) // 16,
    )
    source = npz.read(tmp_path / "tiny.npz")
    pack(source.samples, str(tmp_path / "tiny"), classes=source.classes, progress=False)
    return str(tmp_path / "tiny")


def test_trains_every_fold_and_goes_on_where_it_stopped(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    folder = tmp_path / "cv"
    training = [f"--data.train={dataset}", "--model.shared_dim=8", "--train.epochs=1"]
    training += ["--train.global_batch_size=8"]
    results = crossvalidation.cross_validate(training, "fold", [0], folder)
    assert [(run["fold"], run["seed"]) for run in results["runs"]] == [(0, 0), (1, 0)]
    assert results["logistic_regression"]["mean"]["w-F1"] > 0.9
    assert "mean" in capsys.readouterr().out
    assert json.loads((folder / crossvalidation.RESULTS_FILE).read_text()) == results
    run = json.loads((folder / "fold-1-seed-0" / "results.json").read_text())
    assert run["test"]["utterances"] == 16

    monkeypatch.setattr(crossvalidation, "TRAIN_SCRIPT", tmp_path / "no such script.py")
    assert crossvalidation.cross_validate(training, "fold", [0], folder) == results, "done is done"
    with pytest.raises(ValueError, match=r"another optim\.lr.*give another --dir"):
        crossvalidation.cross_validate([*training, "--optim.lr=0.5"], "fold", [0], folder)
    with pytest.raises(RuntimeError, match=r"(?s)fold-0-seed-1 ended with status 2.*no such script"):
        crossvalidation.cross_validate(training, "fold", [0, 1], folder)
    with pytest.raises(ValueError, match=r"no column 'speaker'.*fold"):
        crossvalidation.cross_validate(training, "speaker", [0], folder)
