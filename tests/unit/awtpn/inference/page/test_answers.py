"""What the page is answered: the same figures as `awtpn predict`, for each task, and no path."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_support import chirp, numbered, record
from page_support import LABELS, VALUES, answer_of, film, page_of, save_model
from PIL import Image
from support import CLASSES

from awtpn.inference.page.answers import facts_of, short_name
from awtpn.inference.predictor import Predictor
from awtpn.metrics.regression import summarize_values
from shards.extraction.media import read_audio


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("clips") / "film.mp4")


def test_classes_are_those_of_predict(clip: Path, tmp_path: Path) -> None:
    server = page_of(save_model(tmp_path / "mine"), tmp_path / "sent")
    answer = answer_of(server, clip)
    [expected] = server.predictor.predict_recordings([clip])
    told = expected.as_json()
    assert (answer["task"], answer["title"]) == ("classification", expected.label)
    assert {row["name"]: row["share"] for row in answer["rows"]} == told["probabilities"]
    assert [row["name"] for row in answer["rows"] if row["chosen"]] == [expected.label]
    assert answer["weights"] == told["weights"]
    assert answer["step_seconds"] == {"audio": 0.1, "video": 0.2}
    assert (answer["duration"], answer["missing"], answer["words"]) == (2.0, {}, [])


def test_the_frames_and_the_waveform_are_those_of_the_clip(clip: Path, tmp_path: Path) -> None:
    answer = answer_of(page_of(save_model(tmp_path / "mine"), tmp_path / "sent"), clip)
    assert [frame["begin"] for frame in answer["frames"]] == [0.0, 0.286, 0.571, 0.857, 1.143, 1.429, 1.714]
    assert max(frame["clear"] for frame in answer["frames"]) == 1.0
    kind, _, content = answer["frames"][0]["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (128, 48)
    sound = read_audio(clip)
    assert sound is not None
    wave = answer["wave"]
    assert len(wave["low"]) == len(wave["high"]) == len(wave["clear"]) == 700
    assert max(max(wave["high"]), -min(wave["low"])) == 1.0
    assert max(wave["clear"]) == 1.0
    assert wave["end"] == round(len(sound) / 16000, 3)


def test_labels_have_their_threshold(clip: Path, tmp_path: Path) -> None:
    server = page_of(save_model(tmp_path / "mine", task=LABELS), tmp_path / "sent")
    answer = answer_of(server, clip)
    [expected] = server.predictor.predict_recordings([clip])
    assert answer["task"] == "multilabel"
    assert [row["name"] for row in answer["rows"]] == ["loud", "<b>bright</b>"]
    assert [row["name"] for row in answer["rows"] if row["chosen"]] == expected.labels
    assert [row["chosen"] for row in answer["rows"]] == [row["share"] > 0.5 for row in answer["rows"]]
    assert json.loads(server.facts)["threshold"] == 0.5


def test_values_have_ranges_and_intervals(clip: Path, tmp_path: Path) -> None:
    server = page_of(save_model(tmp_path / "mine", task=VALUES), tmp_path / "sent")
    truth = np.stack([np.arange(10) / 5, np.full(10, np.nan)], 1)  # too few values of the second
    results = {"val": summarize_values(truth, truth + 0.5, VALUES.names, VALUES.ranges)}
    server.predictor = Predictor(server.predictor.model, results=results)
    answer = answer_of(server, clip)
    valence, activation = answer["rows"]
    assert (valence["name"], valence["range"]) == ("valence", [-3, 3])
    middle = valence["value"]
    assert valence["interval"] == pytest.approx([max(middle - 0.5, -3), min(middle + 0.5, 3)])
    assert (activation["range"], activation["interval"]) == ([1, 5], None)


def test_words_are_weighted_in_their_order(clip: Path, tmp_path: Path) -> None:
    server = page_of(save_model(tmp_path / "mine", ["audio", "text"]), tmp_path / "sent")
    answer = answer_of(server, clip, "What a <i>day</i>!")
    assert answer["words"] == ["What", "a", "<i>day</i>!"]
    assert len(answer["weights"]["text"]) == 3
    alone = answer_of(server, words="so glad")
    assert (alone["words"], alone["duration"], alone["wave"], alone["frames"]) == (
        ["so", "glad"],
        0.0,
        None,
        None,
    )
    assert alone["missing"] == {"audio": "no features can be made of it"}
    without = answer_of(server, clip, " ")
    assert without["missing"] == {"text": "no words are given"}
    assert without["weights"]["text"] == []


def test_what_a_clip_lacks_is_told_without_a_path(tmp_path: Path) -> None:
    server = page_of(save_model(tmp_path / "mine"), tmp_path / "sent")
    sound = record(tmp_path / "sound.wav", sound=chirp(1.0))
    assert answer_of(server, sound)["missing"] == {"video": "no features can be made of it"}
    silent = record(
        tmp_path / "silent.mkv", [numbered(i) for i in range(10)], sound=np.zeros(16000, np.float32)
    )
    server.predictor.model.provenance["constant_streams"] = {"taken_as": "missing"}
    answer = answer_of(server, silent)
    assert answer["missing"] == {"audio": "it is constant"}
    assert len(answer["wave"]["low"]) == 700


def test_a_baseline_has_no_weights(clip: Path, tmp_path: Path) -> None:
    server = page_of(save_model(tmp_path / "mine", network="gru"), tmp_path / "sent")
    answer = answer_of(server, clip)
    assert answer["weights"] == {}
    assert {frame["clear"] for frame in answer["frames"]} == set(answer["wave"]["clear"]) == {1.0}
    assert json.loads(server.facts)["has_weights"] is False


def test_the_facts_are_of_the_public_card(tmp_path: Path) -> None:
    model = save_model(tmp_path / "secret" / "mine", ["audio", "text"])
    facts: dict[str, Any] = facts_of(Predictor.from_pretrained(model), str(model), 1_000_000, 60.0)
    assert facts == {
        "name": "mine",
        "network": "awtpn",
        "has_weights": True,
        "task": "classification",
        "task_name": "emotion recognition",
        "names": CLASSES,
        "ranges": None,
        "threshold": 0.5,
        "trained_on": "made-up",
        "encoders": {"audio": "logmel", "text": "chargrams"},
        "modalities": ["audio", "text"],
        "colors": {"audio": "#0072b2", "text": "#009e73"},
        "most_bytes": 1_000_000,
        "most_seconds": 60.0,
    }


def test_a_hub_id_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert short_name("user/model") == "user/model"
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert short_name("runs/mine") == "mine"
    assert short_name(str(tmp_path / "runs" / "mine" / ".")) == "mine"
