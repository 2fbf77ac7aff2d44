"""Run folders for tests of the report, also with names that could inject HTML or Markdown."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from numpy.typing import NDArray

from awtpn.config.schema import Config, dump
from awtpn.learning.settings import TERMS
from awtpn.metrics.classification import summarize
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
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
    confusion = np.zeros((3, 3), np.int64)
    np.add.at(confusion, (label, predicted), 1)
    results = {"test": summarize(confusion, CLASSES)}
    write_run(folder, results, seed=seed, fold=fold, dataset=dataset, status=status, optim=settings)
    if predictions:
        write_predictions(folder / "predictions-test.jsonl", fold, label, predicted)
    return folder


def write_run(
    folder: Path,
    results: Mapping[str, Any],
    *,
    seed: int = 0,
    fold: int | None = None,
    dataset: str = "made-up",
    status: str = "done",
    optim: Mapping[str, float] | None = None,
) -> None:
    """A finished run with these results, without predictions."""
    config = dump(Config())
    config["run"] |= {"seed": seed, "dir": str(folder)}
    config["optim"] |= optim or {}
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
    (folder / "results.json").write_text(json.dumps(results))
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


def write_predictions(
    file: Path, fold: int | None, label: NDArray[np.int64], predicted: NDArray[np.int64]
) -> None:
    with file.open("w") as out:
        for i, (truth, answer) in enumerate(zip(label, predicted, strict=True)):
            sure = 0.5 + 0.4 * i / 60
            probabilities = dict.fromkeys(CLASSES, (1 - sure) / 2) | {CLASSES[answer]: sure}
            line = {"key": f"u{fold}-{i}", "label": CLASSES[truth], "predicted": CLASSES[answer]}
            out.write(json.dumps(line | {"probabilities": probabilities}) + "\n")


def make_value_run(
    folder: Path,
    truth: Mapping[str, Sequence[float]],
    predicted: Mapping[str, Sequence[float]],
    *,
    ranges: Sequence[Sequence[float] | None] | None = None,
    validation: float | None = 1.0,
    keys: Sequence[str] | None = None,
    seed: int = 0,
    fold: int | None = None,
) -> Path:
    """A finished run of a regression.

    Args:
        truth: by dimension, the values of the test utterances; NaN is missing.
        predicted: by dimension, the predicted values.
        ranges: of the dimensions.
        validation: the residual of all of 20 validation utterances; None: there were none.
        keys: of the test utterances.
    """
    real, guess = (np.array([*given.values()], float).T for given in (truth, predicted))
    results = {"test": summarize_values(real, guess, [*truth], ranges)}
    if validation is not None:
        values = np.repeat(np.arange(20.0)[:, None], len(truth), axis=1)
        results["val"] = summarize_values(values, values + validation, [*truth], ranges)
    write_run(folder, results, seed=seed, fold=fold)
    write_answers(folder, ("values", "predicted"), [*truth], real, guess, keys)
    return folder


def make_label_run(
    folder: Path,
    truth: Mapping[str, Sequence[float]],
    probability: Mapping[str, Sequence[float]],
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
    fold: int | None = None,
) -> Path:
    """A finished run of several labels: by label, the intensities (NaN is missing) and the probabilities."""
    real, given = (np.array([*by_label.values()], float).T for by_label in (truth, probability))
    write_run(folder, {"test": summarize_labels(real, given, [*truth])}, seed=seed, fold=fold)
    write_answers(folder, ("labels", "probabilities"), [*truth], real, given, keys)
    return folder


def write_answers(
    folder: Path,
    fields: tuple[str, str],
    names: Sequence[str],
    truth: NDArray[np.float64],
    given: NDArray[np.float64],
    keys: Sequence[str] | None = None,
) -> None:
    """predictions-test.jsonl as training writes it: six decimals, null where a value is missing."""
    with (folder / "predictions-test.jsonl").open("w") as out:
        for i, rows in enumerate(zip(truth.tolist(), given.tolist(), strict=True)):
            line: dict[str, Any] = {"key": keys[i] if keys else f"u{i}"}
            for field, row in zip(fields, rows, strict=True):
                numbers = [None if math.isnan(number) else round(number, 6) for number in row]
                line[field] = dict(zip(names, numbers, strict=True))
            out.write(json.dumps(line) + "\n")


class Tags(HTMLParser):
    """Notes what is open, and everything that a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.suspicious: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("script", "link", "img", "iframe", "object"):
            self.suspicious.append(tag)
        self.suspicious += [name for name, _ in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


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


def make_hostile_values(folder: Path) -> Path:
    """A regression whose dimensions and utterances are HOSTILE."""
    rng = np.random.default_rng(0)
    truth = {name: rng.uniform(-1, 1, 12).tolist() for name in HOSTILE}
    predicted = {name: rng.uniform(-1, 1, 12).tolist() for name in HOSTILE}
    keys = [HOSTILE[i % 3] + str(i) for i in range(12)]
    return make_value_run(folder / "values", truth, predicted, ranges=[(-1, 1)] * 3, keys=keys)


def make_hostile_labels(folder: Path) -> Path:
    """Several labels whose names and utterances are HOSTILE."""
    rng = np.random.default_rng(0)
    truth = {name: (np.arange(12) % 2 * 1.5).tolist() for name in HOSTILE}
    probability = {name: rng.uniform(0, 1, 12).tolist() for name in HOSTILE}
    keys = [HOSTILE[i % 3] + str(i) for i in range(12)]
    return make_label_run(folder / "labels", truth, probability, keys=keys)


def shown_text(page: str) -> str:
    """The text of an HTML page, which must be whole and must fetch or run nothing."""
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.suspicious == []
    return "".join(tags.text)


def plain_markdown(markdown: str) -> tuple[list[str], list[Token]]:
    """Headings and all tokens of Markdown; fails if its text has become HTML, a link or a picture."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(markdown)
    flat = [each for token in tokens for each in (token, *(token.children or ()))]
    assert {token.type for token in flat} & {"html_inline", "html_block", "link_open", "image"} == set()
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return headings, flat
