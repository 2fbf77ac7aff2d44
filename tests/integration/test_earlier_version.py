"""What earlier versions wrote can still be read: a dataset, runs, exports, an unfinished extraction."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support import REPO, SAME, arguments, metrics, status

from awtpn import AWTPN, Predictor
from awtpn.cli import main as awtpn
from awtpn.config.schema import flatten
from awtpn.training import trainer
from shards import FeatureStream
from shards.extraction.extract import extract
from shards.sources.base import Clip, ClipSource
from shards.tools.verify import verify

DATA = REPO / "tests" / "data"
EARLIER = DATA / "v0.1"
VERSIONS = ("v0.1", "v0.2")


def expected_of(version: str) -> dict[str, Any]:
    expected: dict[str, Any] = json.loads((DATA / version / "expected.json").read_text())
    return expected


def test_a_dataset_is_streamed_and_verified() -> None:
    dataset = str(EARLIER / "dataset")
    assert verify(dataset, progress=False).faults == []
    stream = FeatureStream(dataset, split="train", global_batch_size=4, select={"speaker": 1})
    assert (stream.classes, stream.num_utterances) == (["calm", "happy", "sad"], 8)
    batches = list(stream.epoch(0))
    assert sorted(key for batch in batches for key in batch.key) == [f"clip{i:02d}" for i in range(1, 16, 2)]
    assert {name: of.values.shape[1] for name, of in batches[0].features.items()} == {
        "audio": 80,
        "video": 148,
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_goes_on_as_if_it_had_never_stopped(version: str, tmp_path: Path) -> None:
    run_dir = shutil.copytree(DATA / version / "run", tmp_path / "run", symlinks=True)
    expected = expected_of(version)
    settings = {
        key: "null" if value is None else json.dumps(value) if isinstance(value, dict | list) else value
        for key, value in flatten(yaml.safe_load((run_dir / "config.yaml").read_text())).items()
    }
    changed = {"data.train": EARLIER / "dataset", "run.dir": run_dir, "train.max_steps": 10}
    trainer.main(arguments(settings | changed))
    assert (status(run_dir)["status"], status(run_dir)["step"]) == ("done", 10)
    lines = metrics(run_dir)
    assert [(line["step"], line["fingerprint"]) for line in lines] == [
        (step["step"], step["fingerprint"]) for step in expected["steps"]
    ]
    losses = [step["loss"] for step in expected["steps"]]
    np.testing.assert_allclose([line["loss"] for line in lines], losses, rtol=SAME)
    awtpn(["report", str(run_dir), "--out", str(tmp_path / "report.html")])
    assert "w-F1" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", ["export", "run"])
def test_a_model_answers_as_it_did(folder: str, version: str) -> None:
    model = AWTPN.from_pretrained(DATA / version / folder).eval()
    predictor = Predictor.from_pretrained(DATA / version / folder)
    logits: dict[str, list[float]] = {}
    probabilities: dict[str, list[float]] = {}
    for split in ("val", "test"):
        stream = FeatureStream(str(EARLIER / "dataset"), split=split, global_batch_size=4, shuffle=False)
        for batch in stream.epoch(0):
            with torch.no_grad():
                logits |= dict(zip(batch.key, model(batch.features).logits.tolist(), strict=True))
        for key, prediction in predictor.predict_stream(stream):
            probabilities[key] = list(prediction.probabilities.values())
    of_version = expected_of(version)["logits"]
    assert logits.keys() == of_version.keys()
    for key, expected in of_version.items():
        np.testing.assert_allclose(logits[key], expected, atol=SAME)
        np.testing.assert_allclose(probabilities[key], torch.tensor(expected).softmax(-1), atol=SAME)


class MeanAndSpread:
    """The audio encoder of the unfinished extraction: two features every quarter of a second."""

    rate, dim, step_seconds = 8000, 2, 0.25

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {"id": "mean-and-spread", "step_seconds": 0.25, "dtype": "float32"}
        self.clips = 0

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        self.clips += len(waves)
        steps = [wave[: len(wave) // 2000 * 2000].reshape(-1, 2000) for wave in waves]
        return [np.stack([s.mean(1), s.std(1)], 1).astype(np.float32) for s in steps]


def test_an_unfinished_extraction_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EARLIER / "extraction", tmp_path / "out")
    monkeypatch.chdir(tmp_path)  # the paths of the clips are part of the extraction's identity
    clips = [tone(i) for i in range(4)]
    encoder = MeanAndSpread()
    source = ClipSource([*clips], ["low", "high"], {"corpus": "tones"})
    manifest = extract(source, "out", audio=encoder, clips_per_shard=2, progress=False)
    assert encoder.clips == 2, "the first of two shards was there"
    assert manifest is not None
    assert [shard.utterances for shard in manifest.splits["train"].shards] == [2, 2]
    assert verify("out", progress=False).faults == []


def tone(i: int) -> Clip:
    path = Path(f"tone{i}.wav")
    samples = np.round(9000 * np.sin(np.arange(8000) * 2 * np.pi * (100 + 40 * i) / 8000)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return Clip(f"tone{i}", "train", ["low", "high"][i % 2], path, None, meta={"hertz": 100 + 40 * i})
