"""A baseline from training to an export: everything says what it is, and shows nothing that it has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from media_support import chirp
from support import arguments, pack_corpus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awtpn.cli import main
from awtpn.cli.predict_recordings import summary_line
from awtpn.inference.plot import draw
from awtpn.inference.predictor import Predictor
from awtpn.inference.recording import Recording
from shards.sources.reading.transcripts import Transcript

SETTINGS = {
    "model.name": "gru",
    "model.shared_dim": 8,
    "train.epochs": 1,
    "train.global_batch_size": 16,
    "train.pictures": "always",
}

FIGURE = {"label": "confusion", "va": "scatter", "labels": "labels"}  # by the data's target


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_corpus(tmp_path_factory.mktemp("baseline") / "corpus", targets=True)


@pytest.mark.parametrize("target", FIGURE)
def test_a_baseline_is_trained_reported_used_and_exported(
    target: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    main(["train", *arguments(SETTINGS | {"data.train": corpus, "data.target": target, "run.dir": run})])
    assert "; gru, trained by cross-entropy alone; " in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not {"align", "intra", "inter", "contrast", "mse"} & lines[0].keys()
    assert lines[0]["loss"] == lines[0]["ce"]
    board = EventAccumulator(str(run / "tensorboard")).Reload().Tags()
    assert f"val/{FIGURE[target]}" in board["images"]
    shown = [*board["images"], *board["histograms"], *board["scalars"]]
    assert not [tag for tag in shown if "prototypes" in tag or "reliability" in tag or "weights" in tag]

    main(["report", str(run), "--out", str(tmp_path / "r.html"), "--markdown", str(tmp_path / "r.md")])
    report = (tmp_path / "r.md").read_text()
    assert report.startswith("# gru on corpus\n")
    assert "The model is gru, a baseline for AWTPN" in report
    assert "\n| ce | 1 |" in report
    assert "\n| align |" not in report
    assert "<h1>gru on corpus</h1>" in (tmp_path / "r.html").read_text()

    main(["export", str(run), str(tmp_path / "export")])
    capsys.readouterr()
    main(["predict", str(tmp_path / "export"), corpus])
    told = capsys.readouterr()
    assert all(json.loads(line)["weights"] == {} for line in told.out.splitlines())
    assert told.err == "gru is a baseline without reliability weights: `weights` stays empty\n"
    (answer,) = Predictor.from_pretrained(run).predict([{"audio": [[0.0] * 6] * 3}])
    assert answer.weights == {}
    assert "heaviest" not in summary_line("a.mp4", answer, {"audio": 0.1})
    words = Transcript(("what", "a", "day"))
    for recording in (
        Recording("a.wav", 2.0, chirp(2.0), 16000, None, {"audio": 0.1}, words),
        Recording("text", 0.0, None, 16000, None, {}, words),
    ):
        draw(recording, answer, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").is_file()
