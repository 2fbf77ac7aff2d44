"""Real recordings end to end, where they stand beside the checkout: RAVDESS and CREMA-D."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from support import REPO

from awtpn.cli import main
from awtpn.training.trainer import main as train
from shards import FeatureStream
from shards.extraction.media import probe

DATA = REPO.parent / "shared" / "data"
CREMA_D, RAVDESS = DATA / "crema_d" / "clips", DATA / "ravdess"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")

LABELS = "ANG=angry,DIS=disgust,FEA=fear,HAP=happy,NEU=neutral,SAD=sad"


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


def lengths(url: Path, split: str = "all") -> dict[str, dict[str, int]]:
    stream = FeatureStream(str(url), split=split, shuffle=False, global_batch_size=64)
    return {
        key: {m: int(ragged.lengths[i]) for m, ragged in batch.features.items()}
        for batch in stream.epoch(0)
        for i, key in enumerate(batch.key)
    }


@pytest.fixture(scope="module")
def crema_d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crema_d") / "d"
    pattern = r"(?P<actor>\d+)_(?P<sentence>\w+)_(?P<label>[A-Z]{3})_\w+"
    awtpn("extract", CREMA_D, out, "--pattern", pattern, "--label_map", LABELS, "--fps", 5)
    return out


def test_clips_with_sound_and_picture_have_the_steps_of_their_durations(crema_d: Path) -> None:
    found = lengths(crema_d)
    assert len(found) == 6
    for key, steps in found.items():
        seconds = probe(CREMA_D / f"{key}.flv").duration
        assert 1.8 < seconds < 2.5
        # Either stream may end a little before the other.
        assert abs(steps["audio"] - seconds * 10) <= 1.1
        assert abs(steps["video"] - seconds * 5) <= 1.1


def test_a_film_of_high_resolution_with_faces(tmp_path: Path) -> None:
    """1280 x 720, 98 frames in 3.27 s."""
    (tmp_path / "clips" / "neutral").mkdir(parents=True)
    (tmp_path / "clips" / "neutral" / "film.mp4").symlink_to(RAVDESS / "01-01-01-01-01-01-01.mp4")
    awtpn("extract", tmp_path / "clips", tmp_path / "d", "--fps", 5, "--faces", "opencv")
    [steps] = lengths(tmp_path / "d").values()
    assert steps["audio"] in (32, 33)
    assert steps["video"] == 16


def test_recorded_speech_becomes_a_model_that_beats_chance(tmp_path: Path) -> None:
    """240 recordings of four actors: one repetition of each sentence is learned, the other tested."""
    pattern = r"03-01-(?P<label>\d\d)-\d\d-\d\d-(?P<repetition>\d\d)-(?P<actor>\d\d)"
    awtpn("extract", RAVDESS / "flac", tmp_path / "d", "--video", "none", "--pattern", pattern)
    found = lengths(tmp_path / "d")
    assert len(found) == 240
    with np.load(RAVDESS / "ravdess_features.npz", allow_pickle=False) as file:
        published = dict(zip(file["ids"].tolist(), np.diff(file["audio_offsets"]).tolist(), strict=True))
    assert {key[3:]: steps["audio"] for key, steps in found.items()} == {
        key: steps for key, steps in published.items() if f"03-{key}" in found
    }
    select = {
        role: json.dumps({"repetition": [number]}) for role, number in (("train", "01"), ("test", "02"))
    }
    settings = ["--model.modalities", '["audio"]', "--model.shared_dim", "64", "--optim.lr", "2e-3"]
    settings += ["--data.select.train", select["train"], "--data.select.test", select["test"]]
    train(["--data.train", str(tmp_path / "d"), "--run.dir", str(tmp_path / "run"), *settings])
    tested = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert tested["utterances"] == 120
    assert tested["w-ACC"] > 2 * 32 / 240, "chance, by the most frequent emotion, is 13 %"


def test_an_answer_is_drawn(crema_d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(["--data.train", f"{crema_d}#all", "--run.dir", str(tmp_path / "run"), "--train.epochs", "2"])
    capsys.readouterr()
    awtpn("predict", tmp_path / "run", CREMA_D / "1001_DFA_HAP_XX.flv", "--png", tmp_path)
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert set(answer["probabilities"]) == {"angry", "disgust", "fear", "happy", "neutral", "sad"}
    assert sum(answer["weights"]["audio"]) == pytest.approx(1, abs=1e-3)
    assert "1001_DFA_HAP_XX.flv: " in captured.err
    picture = matplotlib.image.imread(tmp_path / "1001_DFA_HAP_XX.flv.png")[..., :3]
    height, width, _ = picture.shape
    assert width == 1820
    # The green screen behind the actor: seven frames, side by side in the upper half.
    green = (picture[..., 1] > picture[..., 0] + 0.1) & (picture[..., 1] > picture[..., 2] + 0.1)
    columns = green[: height // 2].any(0)
    assert np.count_nonzero(np.diff(columns.astype(int)) == 1) == 7
    assert not green[height // 2 :].any()
