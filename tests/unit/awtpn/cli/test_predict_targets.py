"""Commands on models of values and of several labels: predict, evaluate, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_support import awtpn, lines, refusal
from support import CLASSES, DIMS, arguments, pack_corpus, same_bits_or_close, small_model

import shards
from awtpn import AWTPN, Predictor
from awtpn.cli.predict_recordings import summary_line
from awtpn.inference.prediction import Prediction
from awtpn.model.files import CARD_FILE, README_FILE
from awtpn.training.trainer import main as train
from shards import Sample
from shards.format.targets import Target

SHORT = {
    "model.shared_dim": 8,
    "train.global_batch_size": 16,
    "train.epochs": 3,
    "optim.lr": 0.01,
    "train.pictures": "never",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(pack_corpus(tmp_path_factory.mktemp("targets") / "d", targets=True))


def trained(corpus: Path, name: str, **settings: Any) -> Path:
    run = corpus.with_name(name)
    train(arguments(SHORT | {"data.train": corpus, "run.dir": run, "data.target": name} | settings))
    return run


@pytest.fixture(scope="module")
def of_values(corpus: Path) -> Path:
    return trained(corpus, "va")


@pytest.fixture(scope="module")
def of_labels(corpus: Path) -> Path:
    return trained(corpus, "labels")


def predicted(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    awtpn("predict", *words)
    return {line["key"]: line for line in lines(capsys.readouterr().out)}


def test_values_are_predicted_with_their_intervals(
    of_values: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((of_values / "results.json").read_text())
    answers = predicted(capsys, of_values, corpus)
    assert len(answers) == 14, "also those without a true value"
    kept = {line["key"]: line for line in lines((of_values / "predictions-test.jsonl").read_text())}
    assert kept.keys() <= answers.keys()
    bounds = {"valence": (-3, 3), "activation": (1, 5)}
    for key, answer in answers.items():
        assert list(answer) == ["key", "values", "intervals", "weights"]
        for name, value in answer["values"].items():
            if key in kept:
                assert value == pytest.approx(kept[key]["predicted"][name], abs=1e-5)
            half = results["val"]["per_dimension"][name]["interval"]
            assert half is not None
            assert answer["intervals"][name] == pytest.approx(
                [max(value - half, bounds[name][0]), min(value + half, bounds[name][1])], abs=2e-6
            )
    # The same of an export and of a checkpoint; without results there are no intervals, and a line says so.
    awtpn("export", of_values, tmp_path / "model")
    assert predicted(capsys, tmp_path / "model", corpus) == answers
    assert predicted(capsys, of_values / "checkpoints/best", corpus) == answers


def test_a_model_without_results_has_no_intervals(
    of_values: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    awtpn("export", of_values / "checkpoints/best", tmp_path / "bare")
    assert "results" not in json.loads((tmp_path / "bare" / CARD_FILE).read_text())
    predictor = Predictor.from_pretrained(tmp_path / "bare")
    assert predictor.half_widths == {"valence": None, "activation": None}
    [told] = [record.getMessage() for record in caplog.records]
    assert told == (
        f"{tmp_path / 'bare'}: no intervals of valence and activation: there are no results of enough "
        "validation utterances"
    )
    [answer] = predictor.predict([{"audio": np.ones((3, 6)), "video": None}])
    assert answer.as_json()["intervals"] == {"valence": None, "activation": None}


def test_labels_are_predicted(
    of_labels: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = predicted(capsys, of_labels, corpus)
    kept = lines((of_labels / "predictions-test.jsonl").read_text())
    assert len(answers) == 14
    for line in kept:
        answer = answers[line["key"]]
        assert list(answer) == ["key", "labels", "probabilities", "weights"]
        assert answer["probabilities"] == pytest.approx(line["probabilities"], abs=1e-5)
        assert answer["labels"] == [name for name, p in answer["probabilities"].items() if p > 0.5]
    awtpn("export", of_labels, tmp_path / "model")
    assert predicted(capsys, tmp_path / "model", corpus) == answers


def test_what_is_predicted_need_not_be_in_the_data(
    of_values: Path, of_labels: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same features without any of the targets, and with other classes."""
    without = pack_corpus(tmp_path / "d")
    for run in (of_values, of_labels):
        assert predicted(capsys, run, without) == predicted(capsys, run, corpus)
    told = refusal("evaluate", of_values, "--data", without)
    assert "no column 'valence' for data.target" in told
    assert told.endswith("; awtpn evaluate takes another one by --target")
    # A model of classes is as strict as ever about classes, and features are compared in any case.
    small_model(dtype=torch.float32).save_pretrained(tmp_path / "classes")
    assert len(predicted(capsys, tmp_path / "classes", corpus)) == 14
    wide = pack_corpus(tmp_path / "wide", dims={"audio": 7, "video": 5})
    assert "the model takes 6 features of audio" in refusal("predict", of_values, wide)


def test_a_dataset_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model of classes answers for it, but cannot be evaluated on it."""
    features = {name: np.ones((2, dim), np.float32) for name, dim in DIMS.items()}
    samples = [Sample(f"u{i}", "test", None, features, {"valence": float(i)}) for i in range(3)]
    target = Target("regression", {"valence": [0, 5]})
    shards.pack(samples, str(tmp_path / "d"), classes=[], target=target, progress=False)
    small_model(dtype=torch.float32).save_pretrained(tmp_path / "classes")
    answers = predicted(capsys, tmp_path / "classes", tmp_path / "d")
    assert [answer["label"] in CLASSES for answer in answers.values()] == [True] * 3
    assert "has no classes" in refusal("evaluate", tmp_path / "classes", "--data", tmp_path / "d")


def test_figures_of_a_split(
    of_values: Path, of_labels: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, row in ((of_values, "activation"), (of_labels, "bright")):
        results = json.loads((run / "results.json").read_text())["test"]
        results.pop("reliability_auroc")
        capsys.readouterr()
        awtpn("evaluate", run, "--out", tmp_path / "figures.json", "--predictions", tmp_path / "p.jsonl")
        shown = capsys.readouterr().out
        assert f"\n{row}" in shown
        assert same_bits_or_close(json.loads((tmp_path / "figures.json").read_text()), results)
        written, kept = (
            lines(file.read_text()) for file in (tmp_path / "p.jsonl", run / "predictions-test.jsonl")
        )
        assert same_bits_or_close(written, kept)


def test_a_target_of_another_name(
    of_values: Path, of_labels: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def figures(*words: object) -> dict[str, Any]:
        awtpn("evaluate", *words, "--data", corpus, "--out", tmp_path / "f.json")
        return json.loads((tmp_path / "f.json").read_text())  # type: ignore[no-any-return]

    usual = figures(of_values)
    assert figures(of_values, "--target", "va") == usual
    capsys.readouterr()
    other = figures(of_values, "--target", "activation,valence")
    told = capsys.readouterr().out
    assert (
        "note: activation is from 1 to 5 in the data, but valence from -3 to 3 in the model; valence" in told
    )
    assert (
        other["per_dimension"]["valence"]["truth_mean"] == usual["per_dimension"]["activation"]["truth_mean"]
    )
    assert "note: activation" not in capsys.readouterr().out
    assert figures(of_labels, "--target", "loud,bright") == figures(of_labels)
    assert refusal("evaluate", of_values, "--data", corpus, "--target", "valence") == (
        "error: --target 'valence': 1 column, but the model predicts 2: name a column for each of valence, "
        "activation, in this order"
    )
    told = refusal("evaluate", of_values, "--data", corpus, "--target", "label")
    assert "its target is the classes, and task.type is regression" in told


def test_exports_tell_the_task(of_values: Path, of_labels: Path, tmp_path: Path) -> None:
    for run, columns in ((of_values, ["valence", "activation"]), (of_labels, ["loud", "bright"])):
        out = tmp_path / run.name
        awtpn("export", run, out)
        card = json.loads((out / CARD_FILE).read_text())
        assert card["task"]["names"] == columns
        assert card["results"] == json.loads((run / "results.json").read_text())
        assert AWTPN.from_pretrained(out).task == AWTPN.from_pretrained(run).task
        readme = (out / README_FILE).read_text()
        assert "95 % intervals: percentile bootstrap over " in readme
        # A copy of the export has no predictions beside it.
        awtpn("export", out, tmp_path / f"{run.name}-again")
        again = tmp_path / f"{run.name}-again"
        assert (again / CARD_FILE).read_bytes() == (out / CARD_FILE).read_bytes()
        assert "They have no intervals" in (again / README_FILE).read_text()


def test_predictions_of_other_weights_are_left_out(
    of_values: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = of_values / "predictions-test.jsonl"
    before = file.read_text()
    try:
        file.write_text("\n".join(before.splitlines()[:-1]) + "\n")
        awtpn("export", of_values, tmp_path / "out")
    finally:
        file.write_text(before)
    assert (
        "does not match the results: they are exported without confidence intervals"
        in capsys.readouterr().out
    )
    assert "They have no intervals" in (tmp_path / "out" / README_FILE).read_text()


def test_a_line_for_each_recording() -> None:
    weights = {"audio": np.array([0.1, 0.9], np.float32)}
    heaviest = "; heaviest: audio 0.1-0.2 s"
    steps = {"audio": 0.1}
    labels = Prediction(
        None, {"sad": 0.61, "happy": 0.83, "calm": 0.05, "x": 0.01}, weights, labels=["sad", "happy"]
    )
    assert summary_line("a.mp4", labels, steps) == (
        f"a.mp4: sad and happy (happy 83 %, sad 61 %, calm 5 %){heaviest}"
    )
    values = Prediction(
        None, {}, weights, values={"v": 3.2, "a": 1.23456}, intervals={"v": (2.1, 4.25), "a": None}
    )
    assert summary_line("a.mp4", values, steps) == (
        f"a.mp4: v 3.2 (90 % interval 2.1 to 4.25), a 1.235{heaviest}"
    )
    classes = Prediction("sad", {"happy": 0.3, "sad": 0.7}, weights)
    assert summary_line("a.mp4", classes, steps) == f"a.mp4: sad 70 %, happy 30 %{heaviest}"
