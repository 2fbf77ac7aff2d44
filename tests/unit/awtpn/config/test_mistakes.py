"""The usual mistakes are answered in a line that says what to do."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fsspec.registry import _registry
from support import REPO, small_model

from awtpn import Predictor
from awtpn.cli import main
from awtpn.cli.dataset_summary import how_to_train
from awtpn.config.command_line import parse_command_line
from awtpn.distributed.engines.single import SINGLE
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import OptimConfig
from awtpn.model.device import resolve_device
from awtpn.run import checkpoint, position
from awtpn.training.evaluate import evaluate_command
from shards.format.schema import Manifest, Modality, Split
from shards.format.split_names import split_from_url_or_option
from shards.storage.store import open_store


def answer(*words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return str(stop.value.code)


@pytest.mark.parametrize("words", [[], ["shards"]])
def test_without_a_command_they_are_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    assert {"usage:", "preview" if words else "predict"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "my-model", "data/mine#val"],
        ["shards", "preview", "data/mine#val"],
        ["shards", "simulate", "data/mine#val", "--nodes=1", "--gpus-per-node=1", "--global-batch=8"],
    ],
)
def test_two_splits(words: list[str]) -> None:
    told = "the URL names the split 'val', and --split 'train': leave one of them out"
    assert answer(*words, "--split", "train") == f"error: {told}"
    with pytest.raises(ValueError, match=told):
        evaluate_command(argparse.Namespace(data="data/mine#val", split="train"))
    assert (
        split_from_url_or_option("data/mine#val", "val")
        == split_from_url_or_option("data/mine", "val")
        == "val"
    )
    assert split_from_url_or_option("data/mine#dev", None) == "dev"
    assert split_from_url_or_option("data/mine", None) is None


def test_what_is_no_dataset(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    fix = "give the URL of a packed dataset's folder (was its packing interrupted?), or index the tars there"
    assert answer("shards", "info", tmp_path) == (
        f"error: {manifest}: no such file; {fix} with `awtpn shards index`"
    )


def test_a_file_where_a_dataset_should_be(tmp_path: Path) -> None:
    (tmp_path / "features.npz").touch()
    file = tmp_path / "features.npz"
    assert answer("shards", "info", file) == (
        f"error: {file} is a file, and a packed dataset is a folder: `awtpn pack` makes one from features, "
        "`awtpn extract` from recordings"
    )


@pytest.mark.parametrize("option", ["--png", "--text_encoder"])
def test_what_only_recordings_take(option: str) -> None:
    told = f"error: {option} is for recordings, and data/mine is a dataset: leave it out"
    assert answer("predict", "my-model", "data/mine", option, "x") == told


@pytest.mark.parametrize(
    ("splits", "columns", "command"),
    [
        (["train", "test"], {}, "train --data.train OUT"),
        (["all"], {"index": "int", "session": "str"}, "cross-validate --data.train OUT --by session"),
        (
            ["all"],
            {"a": "int", "b": "str"},
            "cross-validate --data.train OUT --by COLUMN, a column of metadata; it has a, b",
        ),
        (
            ["all"],
            {},
            "train --data.train OUT (trains on all utterances and tests on none: to test, make the "
            'dataset with the splits "train" and "test", or with a metadata column to cross-validate by)',
        ),
    ],
)
def test_the_next_command_is_one_that_can_be_judged(
    splits: list[str], columns: dict[str, str], command: str
) -> None:
    modality = Modality(3, "float16")
    of = Split(1, {}, [1], {}, [])
    manifest = Manifest({"audio": modality, "video": modality}, ["a"], columns, dict.fromkeys(splits, of), {})
    assert how_to_train(manifest, "OUT") == f"awtpn {command}"


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (["audio"], "audio"),
        (["text"], "text"),
        (["audio", "text"], "audio,text"),
        (["audio", "pose", "text", "video"], "audio,video,pose,text"),
    ],
)
def test_the_next_command_names_modalities_that_are_not_the_usual_ones(
    packed: list[str], expected: str
) -> None:
    modalities = dict.fromkeys(packed, Modality(3, "float16"))
    splits = dict.fromkeys(["train", "test"], Split(1, {}, [1], {}, []))
    command = how_to_train(Manifest(modalities, ["a"], {}, splits, {}), "OUT")
    assert command == f"awtpn train --data.train OUT --model.modalities {expected}"
    config, _ = parse_command_line(shlex.split(command)[2:])
    assert list(config.model.modalities) == expected.split(",")


@pytest.mark.parametrize("script", ["cross_validate", "ablate"])
def test_the_usage_of_many_runs_tells_of_trainings_keys(script: str) -> None:
    command = [sys.executable, str(REPO / "launch" / f"{script}.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "[--config FILE] [--SECTION.KEY VALUE ...]" in shown.partition("\n\n")[0]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer("--version") == "0"
    assert re.fullmatch(r"awtpn [\d.]+\S*\n", capsys.readouterr().out)


def test_what_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("fold=3", "[1]"):
        assert answer("shards", "info", "x", "--storage_options", text) == "2"
        error = capsys.readouterr().err
        assert 'what is given is no JSON object; write e.g. \'{"name": "value"}\'' in error
        assert text not in error, "it may hold credentials"


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    # fsspec keeps what another test has imported.
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    monkeypatch.delitem(_registry, "sftp", raising=False)
    with pytest.raises(ValueError, match=r'cannot open: .*; pip install "awtpn-at-scale\[sftp\]"$'):
        open_store("sftp://nowhere/corpus")


@pytest.mark.parametrize(
    ("utterances", "told"),
    [
        (
            {"audio": [[0.0] * 6]},
            r"takes a list of utterances: for a single one write predict\(\[utterance\]\)$",
        ),
        (
            [{"audio": np.ones((2, 6))}, np.ones((2, 6))],
            "utterance 1 is a ndarray, not a mapping: give features",
        ),
        (
            [{"audoi": np.ones((2, 6)), "video": np.ones((2, 5)), "pose": [[1.0]]}],
            "utterance 0 has audoi and pose, but the model takes audio and video; it has no audio$",
        ),
        ([{"video": [[1.0] * 5, [np.nan] * 5]}], "utterance 0: video has NaN or infinite values"),
        ([{"audio": np.full((1, 6), np.inf)}], "utterance 0: audio has NaN or infinite values"),
        ([{"audio": [[1.0] * 6, [1.0]]}], r"utterance 0: audio is not an array of numbers: .*\[steps, 6\]"),
        ([{"audio": "clip.wav"}], "utterance 0: audio is not an array of numbers"),
        ([{"audio": np.ones(6)}], r"utterance 0: audio has shape \(6,\), but the model takes \[steps, 6\]"),
        ([{"audio": None}], "utterance 0 has no steps in any of audio and video$"),
    ],
)
def test_features_that_cannot_be_answered(utterances: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Predictor(small_model(dtype=torch.float32)).predict(utterances)


def test_features_in_any_form_are_answered_alike() -> None:
    predictor = Predictor(small_model(dtype=torch.float32))
    array = np.arange(12, dtype=np.float64).reshape(2, 6)
    forms = [array, array.astype(np.float32), array.astype(int), array.tolist(), torch.from_numpy(array)]
    answers = predictor.predict([{"audio": form, "video": None} for form in forms])
    assert [answer.probabilities for answer in answers] == [answers[0].probabilities] * len(forms)
    # What a model does not take may be named, as long as it is missing.
    audio_alone = Predictor(small_model(dtype=torch.float32, modalities=["audio"]))
    assert len(audio_alone.predict([{"audio": array, "video": None}])) == 1


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    small_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="device gpu: no such kind of device; write cpu, cuda or cuda:1"):
        Predictor.from_pretrained(tmp_path / "model", "gpu")
    with pytest.raises(ValueError, match=r"device cuda:99: PyTorch sees \d+ GPUs here"):
        resolve_device("cuda:99")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32, shared_dim=16)
    folder = checkpoint.save(
        tmp_path,
        model,
        make_optimizer(model, OptimConfig()),
        position.Position(),
        model.card(),
        is_main=True,
        engine=SINGLE,
    )
    told = r"is of another model: \S+ is \(16, .* there, and \(8, .* choose another run\.dir"
    with pytest.raises(ValueError, match=told):
        checkpoint.load_weights(folder, small_model(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"awm\.audio\.key is \(16, 16\) there, and missing by"):
        checkpoint.load_weights(folder, small_model(dtype=torch.float32, shared_dim=16, awm="uniform"))
