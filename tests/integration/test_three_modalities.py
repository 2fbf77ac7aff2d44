"""Audio, video and text in one run: it learns, and everything after it knows all three."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import arguments, pack_corpus
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import shards
from awtpn import AWTPN, Predictor
from awtpn.cli import main as awtpn
from awtpn.training import trainer
from shards import FeatureStream
from shards.sources import demo

THREE = ["audio", "video", "text"]
SMALL = {"model.shared_dim": 32, "train.threads": 1, "optim.lr": 3e-3}
# What finds the informative steps in few optimizer steps.
SMALL |= {"model.dropout": 0.1, "model.distances": "absolute", "loss.lambda_align": 1.0}
SMALL |= {"optim.weight_decay": 1e-4, "train.ema_decay": 0}


def train(**settings: Any) -> str:
    """What a run prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        trainer.main(arguments(SMALL | settings))
    return printed.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("three") / "demo"
    source = demo.samples(0, 800, 160, 160, modalities=THREE, signal_noise=0.3)
    shards.pack(
        source.samples, str(out), classes=source.classes, provenance=source.provenance, progress=False
    )
    return str(out)


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on all three modalities that hides some in training, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "three"
    settings = {
        "data.train": corpus,
        "run.dir": run,
        "train.epochs": 10,
        "train.pictures": "always",
        "model.modalities": ",".join(THREE),
        "model.modality_dropout": 0.2,
    }
    return run, train(**settings)


def test_it_learns_and_finds_the_informative_steps_of_all(trained: tuple[Path, str]) -> None:
    run, printed = trained
    test = json.loads((run / "results.json").read_text())["test"]
    assert test["w-F1"] > 0.85
    assert test["reliability_auroc"].keys() == set(THREE)
    for modality in THREE:
        assert test["reliability_auroc"][modality] > 0.85
        assert f"truly informative {modality} steps: AUROC" in printed
    assert "does not use" not in printed


def test_it_serves_with_any_modalities(trained: tuple[Path, str], corpus: str) -> None:
    """Each alone is above chance, 0.125, and all together are best."""
    predictor = Predictor.from_pretrained(trained[0])
    stream = FeatureStream(corpus, split="test", global_batch_size=160, shuffle=False)
    [batch] = stream.epoch(0)
    steps = {m: batch.features[m].values.split(batch.features[m].host_lengths) for m in THREE}

    def accuracy(kept: list[str]) -> float:
        given = [{m: steps[m][i].numpy() if m in kept else None for m in THREE} for i in range(160)]
        labels = [stream.classes.index(answer.label) for answer in predictor.predict(given)]
        return float(np.mean(np.array(labels) == batch.label.numpy()))

    alone = [accuracy([m]) for m in THREE]
    assert min(alone) > 0.3
    assert accuracy(THREE) > max(alone) - 0.05


def test_tensorboard_shows_all_three(trained: tuple[Path, str]) -> None:
    board = EventAccumulator(str(trained[0] / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert {f"val/reliability_{m}" for m in THREE} <= set(board.Tags()["histograms"])
    for tag in ("val/weights_over_time", "results/test_weights_over_time"):
        [*_, image] = board.Images(tag)
        assert image.width > 3 * 3.6 * 110, "a column for each modality"
    vectors = (trained[0] / "tensorboard" / "projector" / "best_test.tsv").read_text().splitlines()
    assert len(vectors) == 1 + 160 + 8
    settings = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"audio, video, text" in settings


def test_it_is_reported_predicted_and_exported(
    trained: tuple[Path, str], corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awtpn(["report", str(trained[0]), "--out", str(tmp_path / "report.html")])
    assert "modality_dropout: 0.2" in (tmp_path / "report.html").read_text()
    awtpn(["export", str(trained[0]), str(tmp_path / "model")])
    readme = (tmp_path / "model" / "README.md").read_text()
    assert "audio (32 features per step), video (24 features per step) and text (24 features" in readme
    capsys.readouterr()
    awtpn(["predict", str(tmp_path / "model"), f"{corpus}#val"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(lines) == 160
    assert all(list(line["weights"]) == THREE for line in lines)


def test_a_run_of_two_says_what_it_leaves_and_begins_one_of_three(corpus: str, tmp_path: Path) -> None:
    short = {"data.train": corpus, "train.max_steps": 2, "train.pictures": "never"}
    printed = train(**short, **{"run.dir": tmp_path / "two"})
    assert "the data also has text, which this run does not use; with --model.modalities" in printed
    assert "audio,video,text it would" in printed
    settings = {"model.modalities": ",".join(THREE), "run.init_from": tmp_path / "two", "optim.lr": 1e-12}
    printed = train(**short | settings, **{"run.dir": tmp_path / "three"})
    assert "run.init_from: weights from" in printed
    assert ": audio, video, prototypes and classifier; random ones: text\n" in printed
    two, three = (AWTPN.from_pretrained(tmp_path / name).state_dict() for name in ("two", "three"))
    for name, tensor in two.items():
        if name.startswith("spread."):  # of the data, in units of the weights that it starts from
            continue
        torch.testing.assert_close(three[name], tensor, rtol=0, atol=1e-6)


def test_a_modality_that_the_data_lacks_is_refused_by_name(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no modality 'pose'; it has .*text.*by model\.modalities"):
        train(**{"data.train": corpus, "run.dir": tmp_path / "run", "model.modalities": "audio,pose"})


def test_utterances_that_have_none_of_the_modalities_in_use_are_told_once(tmp_path: Path) -> None:
    settings = {"data.train": pack_corpus(tmp_path / "data"), "train.epochs": 2, "train.pictures": "never"}
    settings |= {"train.global_batch_size": 8, "loss.negative_group": 8}
    printed = train(**settings, **{"run.dir": tmp_path / "both"})
    assert "have nothing of" not in printed
    printed = train(**settings, **{"run.dir": tmp_path / "one", "model.modalities": "audio"})
    lacking = sum(i % 7 == 6 and i % 5 != 4 for i in range(52))
    assert printed.count("have nothing of audio, so all of them look the same to the model") == 1
    assert f"warning: {lacking} of the 52 utterances up to step 7 have" in printed
