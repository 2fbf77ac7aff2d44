"""Fine-tuning as a user does it: extract recordings, train, export, predict a clip elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import awtpn, lines, refusal
from finetuned_support import base_models
from media_support import numbered, record
from support import arguments

from awtpn.training import trainer

SIDE, FPS = 32, 10
SHORT = {"model.shared_dim": 8, "train.global_batch_size": 8, "train.pictures": "never", "train.threads": 1}
SHORT |= {"train.max_steps": 2, "model.dropout": 0}


def clip(path: Path, label: int, seed: int) -> Path:
    """A second or so: the pitch tells the class."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(16000 * (0.4 + 0.05 * (seed % 7)))) / 16000
    sound = 0.3 * np.sin(2 * np.pi * (300 + 500 * label) * time) + 0.05 * rng.normal(size=len(time))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [numbered(16 * label + i) for i in range(int(len(time) / 16000 * FPS))]
    return record(path, pictures, sound=sound.astype(np.float32))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and the base models of the encoders."""
    root = tmp_path_factory.mktemp("user")
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for i in range(count):
            clip(root / "clips" / split / ("low", "high")[i % 2] / f"{i}.mkv", i % 2, 10 * count + i)
    base_models(root)
    return root


def encoders(place: Path, audio: str = "lora", video: str = "last-1-layers") -> dict[str, Any]:
    return {
        "encoder.audio.model": place / "base-audio",
        "encoder.audio.tune": audio,
        "encoder.video.model": place / "base-video",
        "encoder.video.tune": video,
    }


def answer(text: str) -> list[float]:
    [line] = lines(text)
    return list(line["probabilities"].values())


def test_from_clips_to_a_model_that_others_use(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = ["--audio", "waveform", "--video", "frames", "--video_side", SIDE, "--fps", FPS]
    awtpn("extract", place / "clips", place / "data", *media, "--video_jpeg", 90)
    run = place / "run"
    trainer.main(arguments(SHORT | encoders(place) | {"data.train": place / "data", "run.dir": run}))
    results = json.loads((run / "results.json").read_text())
    kept = (run / "checkpoints" / "best" / "model.safetensors").stat().st_size
    assert (
        kept < sum((place / f"base-{m}" / "model.safetensors").stat().st_size for m in ("audio", "video")) / 2
    )

    new = clip(tmp_path / "new.mkv", 1, 5)
    capsys.readouterr()
    awtpn("predict", run, new, "--png", tmp_path)
    printed = capsys.readouterr()
    expected = answer(printed.out)
    [line] = lines(printed.out)
    assert line["step_seconds"] == {"audio": 0.1, "video": 0.1}
    assert "heaviest: audio" in printed.err
    assert (tmp_path / "new.mkv.png").is_file()

    # The metrics are those of the run, also on its recordings in another process.
    awtpn("evaluate", run, "--out", tmp_path / "test.json")
    test = json.loads((tmp_path / "test.json").read_text())
    assert test["confusion_matrix"] == results["test"]["confusion_matrix"]
    capsys.readouterr()
    awtpn("predict", run, place / "data")
    assert len(lines(capsys.readouterr().out)) == 4

    # What is exported with --merge needs nothing of this machine.
    awtpn("export", run, tmp_path / "out", "--merge")
    awtpn("export", run, tmp_path / "parts")
    told = refusal("export", run, tmp_path / "graph", "--graph")
    assert "has encoders of audio and video, and a graph takes features" in told
    other = tmp_path / "other" / "machine"
    other.parent.mkdir()
    shutil.move(tmp_path / "out", other)
    hidden = place.with_name("hidden")
    place.rename(hidden)
    try:
        capsys.readouterr()
        awtpn("predict", other, new)
        np.testing.assert_allclose(answer(capsys.readouterr().out), expected, atol=1e-5)
        told = refusal("predict", tmp_path / "parts", new)
        assert "trained from 'base-audio', a folder of another machine" in told
        words = ["--audio", hidden / "base-audio", "--video", hidden / "base-video"]
        awtpn("predict", tmp_path / "parts", new, *words)
        np.testing.assert_allclose(answer(capsys.readouterr().out), expected, atol=1e-5)
        awtpn("evaluate", other, "--data", hidden / "data", "--out", tmp_path / "again.json")
        assert json.loads((tmp_path / "again.json").read_text())["w-F1"] == test["w-F1"]
        told = refusal("serve", tmp_path / "parts")
        assert "trained from 'base-audio', a folder of another machine" in told
    finally:
        hidden.rename(place)
    readme = (other / "README.md").read_text()
    assert "| audio | base-audio, a model in a folder | LoRA, rank 8 |" in readme
    assert str(place) not in readme + (other / "config.json").read_text()

    # Reports and comparisons read no encoders.
    awtpn("report", run)
    page = (run / "report.html").read_text()
    assert "base-audio" in page
    awtpn("compare", run, run)
    assert "equal within tolerance" in capsys.readouterr().out


def test_features_first_and_end_to_end_next(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (place / "data").exists():
        media = ["--audio", "waveform", "--video", "frames", "--video_side", SIDE, "--fps", FPS]
        awtpn("extract", place / "clips", place / "data", *media, "--video_jpeg", 90)
    models = ["--audio", place / "base-audio", "--video", place / "base-video", "--dtype", "float32"]
    awtpn("extract", place / "data", tmp_path / "features", *models)
    first = SHORT | {"data.train": tmp_path / "features", "run.dir": tmp_path / "first"}
    trainer.main(arguments(first))
    before = json.loads((tmp_path / "first" / "results.json").read_text())["val"]["w-F1"]
    next_ = SHORT | encoders(place) | {"data.train": place / "data", "run.init_from": tmp_path / "first"}
    capsys.readouterr()
    trainer.main(arguments(next_ | {"run.dir": tmp_path / "next"}))
    printed = capsys.readouterr().out
    assert f"before the first step, as the model that it continues: val w-F1 {before:.4f}\n" in printed
    assert "weights from" in printed
    with pytest.raises(ValueError, match=r"of an encoder with layer 3, and encoder\.audio has 2: give the"):
        trainer.main(arguments(next_ | {"encoder.audio.layer": 2, "run.dir": tmp_path / "other"}))
    assert not (tmp_path / "other" / "checkpoints").exists()
