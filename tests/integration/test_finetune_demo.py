"""The demo of training end to end runs from its configuration alone, with no data and no download."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from cli_support import awtpn

from shards.sources.made_up import demo_recordings


def test_the_demo_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
