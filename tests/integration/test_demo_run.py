"""The run that needs nothing: it learns, finds the informative steps, and leaves behind all it should."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import arguments, run, same_bits_or_close, status
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import dump
from awtpn.learning.settings import TERMS
from awtpn.model.network import AWTPN
from awtpn.tracking.tensorboard import STEP_TAGS

KEYS = {"step", "epoch", "loss", *TERMS, "lr", "grad_norm", "fingerprint", "utterances_per_s", "data_wait"}
SUMMARY = ("w-ACC", "w-F1", "UA", "macro-F1")

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    def train(**settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("demo")
        given = {"data.cache_dir": demo_cache, "run.dir": folder / "run"} | settings
        code, log = run([sys.executable, "launch/train.py", *arguments(given)], folder / "log")
        assert code == 0, log
        return folder / "run"

    return train


@pytest.fixture(scope="module")
def demo(train: Train) -> Path:
    return train()


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text())  # type: ignore[no-any-return]


def test_reliability_weights_are_what_learns_the_demo(demo: Path, train: Train) -> None:
    test = results(demo)["test"]
    assert test["w-F1"] > 0.9
    uniform = results(train(**{"model.awm": "uniform"}))["test"]
    assert uniform["w-F1"] == pytest.approx(0.34, abs=0.06), "what README says of plain averages"
    for modality in ("audio", "video"):
        assert test["reliability_auroc"][modality] > 0.9
    log = (demo.parent / "log").read_text()
    assert "audio steps: AUROC" in log, "a newcomer sees it"
    tour = log.partition(f"report in {demo / 'report.html'}")[2]
    assert (demo / "report.html").is_file()
    assert "what the weights found in test-0000" in tour
    assert "next:\n  awtpn train --model.awm uniform " in tour


def test_metrics_hold_a_line_for_every_step(demo: Path) -> None:
    lines = [json.loads(line) for line in (demo / "metrics.jsonl").read_text().splitlines()]
    assert all(line.keys() >= KEYS for line in lines)
    config = yaml.safe_load((demo / "config.yaml").read_text())
    steps = -(-2_000 // config["train"]["global_batch_size"]) * config["train"]["epochs"]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert len({line["fingerprint"] for line in lines}) == steps
    assert status(demo)["status"] == "done"
    assert status(demo)["step"] == steps


def test_results_are_complete(demo: Path) -> None:
    for role in ("val", "test"):
        figures = results(demo)[role]
        assert {*SUMMARY, "per_class", "confusion_matrix", "labels"} <= figures.keys()
        assert all(0 <= figures[name] <= 1 for name in SUMMARY)
        confusion = figures["confusion_matrix"]
        assert sum(map(sum, confusion)) == figures["utterances"] == 400, "each utterance counts once"
        supports = [figures["per_class"][label]["support"] for label in figures["labels"]]
        assert [sum(row) for row in confusion] == supports == [50] * 8, "true classes are the rows"
        right = sum(confusion[i][i] for i in range(8))
        assert figures["w-ACC"] == pytest.approx(right / 400)


def test_tensorboard_shows_the_run(demo: Path) -> None:
    board = EventAccumulator(str(demo / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {*STEP_TAGS.values(), *(f"val/{name}" for name in SUMMARY)} <= tags
    steps = status(demo)["step"]
    assert [e.step for e in board.Scalars("loss/total")] == list(range(1, steps + 1))
    best = max(e.value for e in board.Scalars("val/w-F1"))
    assert best == pytest.approx(results(demo)["val"]["w-F1"])


def test_the_configuration_of_a_run_reloads(demo: Path, demo_cache: Path) -> None:
    config, _ = parse_command_line(["--config", str(demo / "config.yaml")])
    assert dump(config) == yaml.safe_load((demo / "config.yaml").read_text())
    given = ["--data.cache_dir", str(demo_cache), "--run.dir", str(demo)]
    assert dump(config) == dump(parse_command_line(given)[0])


def test_checkpoints_are_models(demo: Path) -> None:
    folder = demo / "checkpoints"
    kept = sorted(p.name for p in folder.iterdir())
    assert {"best", "latest"} <= set(kept)
    assert 1 <= len([name for name in kept if name.startswith("step-")]) <= 3
    model = AWTPN.from_pretrained(folder / "best")
    assert model.classes == results(demo)["test"]["labels"]
    assert (folder / "best").resolve().name == f"step-{results(demo)['best_step']:08d}"


def test_evaluation_gives_the_same_figures_to_the_last_digit(
    demo: Path, demo_cache: Path, tmp_path: Path
) -> None:
    """By one process or two, of the run or of its best checkpoint, and as the run itself found them."""
    dataset = next(p for p in demo_cache.iterdir() if (p / "manifest.json").is_file())
    two = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    expected = results(demo)["test"]
    del expected["reliability_auroc"]
    written = []
    for name, command in {
        "one": [sys.executable, "launch/evaluate.py", "--checkpoint", str(demo)],
        "two": [
            *two,
            "launch/evaluate.py",
            "--checkpoint",
            str(demo / "checkpoints" / "best"),
            "--data",
            str(dataset),
        ],
    }.items():
        out = tmp_path / f"{name}.json"
        code, log = run([*command, "--out", str(out)], tmp_path / f"{name}.log")
        assert code == 0, log
        assert log.count("split test: 400 utterances") == 1, "one rank speaks for all"
        written.append(json.loads(out.read_text()))
    assert same_bits_or_close(written[0], written[1])
    assert same_bits_or_close(written[0], expected)
