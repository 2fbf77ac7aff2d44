"""Run folders for tests of the report, also with names that could inject HTML or Markdown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from awtpn.config.schema import Config, dump
from awtpn.learning.settings import TERMS
from awtpn.metrics.classification import summarize
from awtpn.run.predictions import read_predictions

CLASSES = ["calm", "<b>happy</b>", "sad & low"]


def make_run(
    folder: Path,
    *,
    seed: int = 0,
    fold: int | None = None,
    accuracy: float = 0.7,
    dataset: str = "made-up",
    predictions: bool = True,
    status: str = "done",
    **settings: float,
) -> Path:
    """The folder of a finished run as training writes it, with random predictions for 60 utterances."""
    rng = np.random.default_rng(1_000 * seed + (fold or 0))
    label = np.arange(60) % 3
    predicted = np.where(rng.random(60) < accuracy, label, rng.integers(0, 3, 60))
    config = dump(Config())
    config["run"] |= {"seed": seed, "dir": str(folder)}
    config["optim"] |= settings
    if fold is not None:
        config["data"]["select"] = {"train": {"fold": [9]}, "val": None, "test": {"fold": fold}}
    best = folder / "checkpoints" / "best"
    best.mkdir(parents=True)
    (best / "config.json").write_text(json.dumps({"dataset": dataset, "provenance": {"encoder": "none"}}))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    about = {
        "ranks": 2,
        "engine": "ddp",
        "device": "cpu",
        "threads": 1,
        "step": 40,
        "versions": {"torch": "9"},
    }
    time = {"time": "2026-01-02T03:04:05+0000", "seconds": 1_800.0, "rank_seconds": 3_600.0}
    (folder / "status.json").write_text(json.dumps({"status": status, **about, **time}))
    confusion = np.zeros((3, 3), np.int64)
    np.add.at(confusion, (label, predicted), 1)
    (folder / "results.json").write_text(json.dumps({"test": summarize(confusion, CLASSES)}))
    terms = dict.fromkeys(TERMS, 0.5)
    lines = [
        {
            "step": s,
            "epoch": (s - 1) // 10,
            "loss": 1 / s,
            **terms,
            "fingerprint": f"{s + seed:016x}",
            "utterances_per_s": 100.0,
        }
        for s in range(1, 41)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tensorboard").mkdir()
    if predictions:
        write_predictions(folder / "predictions-test.jsonl", fold, label, predicted)
    return folder


def write_predictions(
    file: Path, fold: int | None, label: NDArray[np.int64], predicted: NDArray[np.int64]
) -> None:
    with file.open("w") as out:
        for i, (truth, answer) in enumerate(zip(label, predicted, strict=True)):
            sure = 0.5 + 0.4 * i / 60
            probabilities = dict.fromkeys(CLASSES, (1 - sure) / 2) | {CLASSES[answer]: sure}
            line = {"key": f"u{fold}-{i}", "label": CLASSES[truth], "predicted": CLASSES[answer]}
            out.write(json.dumps(line | {"probabilities": probabilities}) + "\n")


# Each could end what surrounds it: an element, an attribute, a table cell, a code span or block, a link.
HOSTILE = [
    "<script>alert(document.domain)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "a|b `c` [d](javascript:alert(1)) </title>\x1b[2J\n```\n# forged\n| x |\N{RIGHT-TO-LEFT OVERRIDE}",
]


def make_hostile_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in which every text that comes from data, settings or a machine is one of HOSTILE."""
    monkeypatch.setattr(sys.modules[__name__], "CLASSES", HOSTILE)
    run = make_run(folder / HOSTILE[1].replace("/", ""), fold=0, dataset=HOSTILE[2])
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["select"]["test"] = {"fold": HOSTILE[0]}
    config["data"]["train"] = HOSTILE[2]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "checkpoints/best/config.json").write_text(
        json.dumps({"dataset": HOSTILE[2], "provenance": {HOSTILE[0]: HOSTILE[2], "encoder": HOSTILE[1]}})
    )
    status = json.loads((run / "status.json").read_text())
    status |= {"device": HOSTILE[1], "engine": HOSTILE[0], "commit": HOSTILE[0]}
    status["versions"] = {HOSTILE[2]: HOSTILE[0]}
    (run / "status.json").write_text(json.dumps(status))
    lines = read_predictions(run / "predictions-test.jsonl")
    text = "".join(json.dumps(line | {"key": HOSTILE[i % 3] + str(i)}) + "\n" for i, line in enumerate(lines))
    (run / "predictions-test.jsonl").write_text(text)
    summary = {"command": f"python {HOSTILE[0]} {HOSTILE[2]}", "logistic_regression": None}
    (folder / "cross_validation.json").write_text(json.dumps(summary))
    return run
