"""The demo of training end to end runs from its configuration alone, with no data and no download."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from cli_support import awtpn
from page_support import film

from shards.sources.made_up import demo_recordings


def test_the_demo_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = partial(demo_recordings.samples, train=32, val=8, test=8)
    monkeypatch.setattr(demo_recordings, "samples", few)
    run = tmp_path / "run"
    awtpn(
        "train",
        *("--config", "finetune-demo", "--run.dir", str(run), "--data.cache_dir", str(tmp_path / "cache")),
        *("--train.max_steps", "2", "--train.log_every", "1"),
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({line["fingerprint"] for line in lines if "fingerprint" in line}) == 2
    assert json.loads((run / "results.json").read_text())["test"]["utterances"] == 8
    told = capsys.readouterr().out
    assert "  awtpn train --config finetune-demo --model.awm uniform " in told
    assert f"  awtpn serve {run} " in told

    # Its model takes clips, though nothing of its data was one.
    awtpn("predict", run, film(tmp_path / "clip.mp4"))
    [line] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert line["label"] in demo_recordings.EMOTIONS
    assert line["step_seconds"] == {"audio": 0.08, "video": 0.2}
    assert {m: len(weights) for m, weights in line["weights"].items()} == {"audio": 25, "video": 10}
