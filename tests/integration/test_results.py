"""From a real run: predictions on disk, whatever the ranks; a report; an export that has the figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import CLASSES, run

from awtpn import Predictor
from awtpn.cli import main
from awtpn.metrics.classification import summarize
from awtpn.run.predictions import read_predictions
from awtpn.training.trainer import main as train
from shards import FeatureStream

SETTINGS = ["--model.shared_dim", "16", "--train.global_batch_size", "16", "--train.epochs", "2"]


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "short"
    train(["--data.train", corpus, "--run.dir", str(folder), *SETTINGS])
    return folder


def test_every_utterance_has_one_prediction_in_plan_order(trained: Path, corpus: str) -> None:
    lines = read_predictions(trained / "predictions-test.jsonl")
    stream = FeatureStream(corpus, split="test", global_batch_size=4, shuffle=False)
    batches = list(stream.epoch(0))
    assert [line["key"] for line in lines] == [key for batch in batches for key in batch.key]
    truth = [CLASSES[label] for batch in batches for label in batch.label.tolist()]
    assert [line["label"] for line in lines] == truth
    for line, (_, answer) in zip(
        lines, Predictor.from_pretrained(trained).predict_stream(stream), strict=True
    ):
        assert line["predicted"] == answer.label
        assert line["probabilities"] == pytest.approx(answer.probabilities, abs=2e-6)
    confusion = np.zeros((3, 3), np.int64)
    for line in lines:
        confusion[CLASSES.index(line["label"]), CLASSES.index(line["predicted"])] += 1
    written = json.loads((trained / "results.json").read_text())["test"]
    assert summarize(confusion, CLASSES)["w-F1"] == written["w-F1"]
    assert (trained / "predictions-val.jsonl").is_file()
    assert not list(trained.glob(".predictions*")), "no half-written file is left"


def test_two_ranks_write_what_one_writes(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    words = ["--nproc-per-node", "2", "-m", "awtpn.cli", "evaluate", str(trained)]
    code, log = run(["torchrun", "--standalone", *words, "--predictions", str(file)], tmp_path / "log")
    assert code == 0, log
    ours, theirs = read_predictions(file), read_predictions(trained / "predictions-test.jsonl")
    assert [(p["key"], p["label"], p["predicted"]) for p in ours] == [
        (p["key"], p["label"], p["predicted"]) for p in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)


def test_a_run_is_reported(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(trained), "--out", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "r.md")])
    assert "r.html" in capsys.readouterr().out
    html, text = (tmp_path / "r.html").read_text(), (tmp_path / "r.md").read_text()
    results = json.loads((trained / "results.json").read_text())["test"]
    status = json.loads((trained / "status.json").read_text())
    last = (trained / "metrics.jsonl").read_text().splitlines()[-1]
    for page in (html, text):
        assert f"{100 * results['w-F1']:.2f}" in page
        assert json.loads(last)["fingerprint"] in page
        assert status["versions"]["torch"] in page
    assert "validation w-F1, %" in html, "its validations are drawn"
    assert 0 < status["seconds"] == status["rank_seconds"]
    main(["report", str(trained)])
    assert (trained / "report.html").is_file()
    with pytest.raises(SystemExit, match=r"error: \S+ is not a run and contains none"):
        main(["report", str(tmp_path / "nothing")])


def test_an_export_carries_its_figures(trained: Path, tmp_path: Path) -> None:
    main(["export", str(trained), str(tmp_path / "m"), "--license", "cc-by-4.0"])
    front = yaml.safe_load((tmp_path / "m" / "README.md").read_text().split("---\n")[1])
    results = json.loads((trained / "results.json").read_text())["test"]
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert {m["name"]: m["value"] for m in metrics}["w-F1"] == round(results["w-F1"], 4)
    assert front["license"] == "cc-by-4.0"
    main(["export", str(tmp_path / "m"), str(tmp_path / "again")])
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "m" / "config.json").read_text()


def test_time_is_counted_over_all_starts(corpus: str, tmp_path: Path) -> None:
    arguments = ["--data.train", corpus, "--run.dir", str(tmp_path / "run"), *SETTINGS]
    train([*arguments, "--train.max_steps", "4"])
    first = json.loads((tmp_path / "run" / "status.json").read_text())
    train([*arguments, "--train.max_steps", "6"])
    second = json.loads((tmp_path / "run" / "status.json").read_text())
    state = json.loads((tmp_path / "run" / "checkpoints" / "latest" / "checkpoint.json").read_text())
    assert second["seconds"] > state["position"]["seconds"] > 0.5 * first["seconds"]
    assert second["step"] == 6
