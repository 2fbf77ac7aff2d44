"""A reduced comparison of models, trained: two small datasets and three models, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from experiments_support import train_here

from awtpn.cli import main
from awtpn.experiments.comparison import compare, datasets
from awtpn.experiments.runner import Job
from shards import Sample
from shards.registry import Parameter
from shards.sources.base import Source

MODALITIES = ("audio", "video")
SUITE: dict[str, Any] = {
    "datasets": {
        "folded": {"source": "folded.npz", "format": "npz", "by": "fold"},
        "split": {"source": "split.npz", "format": "npz"},
        "gone": {"source": "gone.npz", "format": "npz"},
    },
    "models": {"logistic-regression": "linear", "awtpn": {}, "uniform weights": {"model.awm": "uniform"}},
    "grid": {"optim.lr": [1e-3, 1e-2]},
    "nested": ["split"],
}
SHORT = ["--model.shared_dim", "8", "--train.global_batch_size", "8", "--train.max_steps", "3"]
SHORT += ["--train.pictures", "never"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of two classes that differ in the mean, and a suite of them."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    label = np.arange(32) % 2
    arrays = {
        "ids": np.array([f"u{i}" for i in range(32)]),
        "audio": rng.normal(size=(32, 3, 4)) + 2 * label[:, None, None],
        "video": rng.normal(size=(32, 1, 2)),
        "label": label,
    }
    np.savez(folder / "folded.npz", **arrays, fold=np.arange(32) // 16)
    np.savez(
        folder / "split.npz", **arrays, split=np.array(["train", "val", "test", "train"])[np.arange(32) // 8]
    )
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE, sort_keys=False))
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[Job]]:
    """The jobs of each call of `train_all`; they are trained in this process."""
    calls: list[list[Job]] = []

    def train(jobs: Sequence[Job], **_: Any) -> None:
        calls.append(list(jobs))
        train_here(jobs)

    monkeypatch.setattr(compare, "train_all", train)
    return calls


def test_a_suite_is_packed_trained_and_reported(
    sources: Path, tmp_path: Path, trained: list[list[Job]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare-models", "--suite", str(sources / "suite.yaml"), "--sources", str(sources)]
    words += ["--dir", str(tmp_path), "--seeds", "1", "--nested", *SHORT]
    main(words)
    first, second = trained
    places = [str(job.run_dir.relative_to(tmp_path)) for job in first]
    plain = ["folded/{}/fold-0-seed-1", "folded/{}/fold-1-seed-1", "split/{}/seed-1"]
    inner = [f"nested/split/{{}}/sweep/optim.lr={lr}/seed-0" for lr in ("0.001", "0.01")]
    assert sorted(places) == sorted(
        p.format(m) for p in (*plain, *inner) for m in ("awtpn", "uniform-weights")
    )
    assert [str(job.run_dir.relative_to(tmp_path)) for job in second] == [
        "nested/split/awtpn/seed-0",
        "nested/split/uniform-weights/seed-0",
    ]
    results = json.loads((tmp_path / "comparison.json").read_text())
    assert results["left_out"] == {"gone": "there is no gone.npz in the folder of --sources"}
    assert list(results["datasets"]) == ["folded", "split"]
    folded, split = results["datasets"].values()
    assert [run["fold"] for run in folded["models"]["awtpn"]["runs"]] == [0, 1]
    assert folded["differences"]["awtpn"]["logistic-regression"]["w-F1"]["over"] == "folds"
    assert split["differences"]["awtpn"]["logistic-regression"]["w-F1"]["over"] == "utterances"
    assert split["models"]["logistic-regression"]["mean"]["w-F1"] > 0.9
    # 4 and 2 features to 8, a classifier of 2 classes, 2 prototypes, statistics; adaptive weights have 4 maps
    # of 8 x 8.
    uniform = 5 * 8 + 3 * 8 + 2 * 9 + 2 * 8 + 2 * 6 * 2
    weights = {name: of["weights"] for name, of in split["models"].items()}
    assert weights == {"logistic-regression": 2 * 13, "awtpn": uniform + 4 * 64, "uniform weights": uniform}
    assert results["nested"]["datasets"]["split"]["chosen"]["awtpn"].keys() <= {
        "optim.lr=0.001",
        "optim.lr=0.01",
    }
    assert "| folded | 2 folds by fold | " in capsys.readouterr().out
    assert (tmp_path / "comparison.html").is_file()
    # The same command trains and fits nothing again.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*/baseline.json")}
    before |= {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*/results.json")}
    assert len(before) == 2 + 12
    main(words)
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert json.loads((tmp_path / "comparison.json").read_text()) == results
    other = sources / "other.yaml"
    entry = {**SUITE["datasets"]["split"], "pack": {"labels": ["a", "b"]}}
    other.write_text(yaml.safe_dump({**SUITE, "datasets": {"split": entry}}, sort_keys=False))
    with pytest.raises(SystemExit, match="holds data of other settings than split has: give another --dir"):
        main(
            [
                "compare-models",
                "--suite",
                str(other),
                "--sources",
                str(sources),
                "--dir",
                str(tmp_path),
                *SHORT,
            ]
        )


def test_curves_change_one_property_of_made_up_data(
    sources: Path, tmp_path: Path, trained: list[list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(source: str, utterances: int, noise: float) -> Source:
        assert source == "-"
        rng = np.random.default_rng(0)
        samples = (
            Sample(
                f"{split}{i}", split, "ab"[i % 2], {m: rng.normal(i % 2, noise, (3, 4)) for m in MODALITIES}
            )
            for split in ("train", "val", "test")
            for i in range(utterances)
        )
        return Source(samples, ["a", "b"], {}, 3 * utterances)

    parameters = {name: Parameter("int", (), 0, "") for name in ("source", "utterances", "noise")}
    entry = SimpleNamespace(options=parameters, load=lambda: make)
    monkeypatch.setattr(datasets, "find_sources", lambda kind: {"made-up": entry})
    suite = {
        "datasets": {"mine": {"format": "made-up", "pack": {"utterances": 8, "noise": 1}}},
        "models": {"linear": "linear", "awtpn": {}, "uniform": {"model.awm": "uniform"}},
        "curves": {
            "format": "made-up",
            "base": {"utterances": 8, "noise": 1},
            "parameters": {"utterances": [8, 16], "noise": [1]},
            "models": ["linear", "awtpn"],
        },
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    out = tmp_path / "out"
    words = ["--suite", str(tmp_path / "suite.yaml"), "--dir", str(out), "--models", "awtpn", "linear"]
    main(["compare-models", *words, "--curves", *SHORT])
    assert [str(job.run_dir.relative_to(out)) for job in trained[0]] == [
        "mine/awtpn/seed-0",
        "curves/base/awtpn/seed-0",
        "curves/utterances=16/awtpn/seed-0",
    ]
    results = json.loads((out / "comparison.json").read_text())
    rows = results["curves"]["parameters"]["utterances"]
    assert [row["dataset"] for row in rows] == ["base", "utterances=16"]
    assert [results["curves"]["datasets"][row["dataset"]]["utterances"] for row in rows] == [8, 16]
    assert rows[0]["difference"]["over"] == "utterances"
    html = (out / "comparison.html").read_text()
    assert html.count("<svg") == 2


def test_own_data_takes_the_models_of_the_suite(
    sources: Path, tmp_path: Path, trained: list[list[Job]]
) -> None:
    data, suite = str(tmp_path / "mine"), str(sources / "suite.yaml")
    plain = {"datasets": SUITE["datasets"], "models": {"awtpn": {}}}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "others.yaml").write_text(yaml.safe_dump(SUITE | {"nested_models": ["uniform weights"]}))
    main(["pack", str(sources / "split.npz"), data, "--format", "npz"])
    words = ["compare-models", "--suite", suite, "--data.train", data, "--dir", str(tmp_path / "out"), *SHORT]
    main([*words, "--models", "logistic-regression", "awtpn"])
    assert [str(job.run_dir.relative_to(tmp_path)) for job in trained[0]] == ["out/mine/awtpn/seed-0"]
    results = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert list(results["datasets"]["mine"]["models"]) == ["logistic-regression", "awtpn"]
    for more, message in (
        (["--curves"], "--curves is for the suite's data"),
        (
            ["--models", "awtnp"],
            "there is no model 'awtnp'; it has logistic-regression, awtpn, uniform weights",
        ),
        (
            ["--nested", "--suite", str(tmp_path / "plain.yaml")],
            "the suite has no grid for awtpn to choose from",
        ),
        (
            ["--nested", "--suite", str(tmp_path / "others.yaml")],
            "the tables show the differences of awtpn, which is not among the suite's nested_models",
        ),
        (
            ["--models", "logistic-regression", "awtpn", "--loss.class_weights", "balanced"],
            r"baseline\.json was made with another loss\.class_weights: give another --dir",
        ),
        (["--run.seed", "3"], "cross-validation sets run.seed itself"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*words, *more])
    with pytest.raises(SystemExit, match="the suite names the column of each of its datasets"):
        main(["compare-models", "--suite", suite, "--by", "fold"])
