"""The picture of an answer: what is shown lies where it was in the recording."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from media_support import chirp, numbered, record, spoil

from awtpn.cli.predict_recordings import picture_names
from awtpn.inference.plot import draw
from awtpn.inference.predictor import Prediction
from awtpn.inference.recording import FRAMES, Recording, clip_of, load
from shards.extraction.media import MediaError

STEPS = {"audio": 0.1, "video": 0.1}


def answer(label: str = "calm", **weights: list[float]) -> Prediction:
    arrays = {name: np.array(values, np.float32) for name, values in weights.items()}
    return Prediction(label, {label: 0.75, "other": 0.25}, arrays)


def drawn(recording: Recording, prediction: Prediction, folder: Path) -> np.ndarray:
    """RGB [H, W, 3] of the picture, from 0 to 1."""
    draw(recording, prediction, folder / "picture.png")
    return matplotlib.image.imread(folder / "picture.png")[..., :3]


def frames_in(picture: np.ndarray) -> np.ndarray:
    """The columns [W] of a picture in which frames of pure red are shown; the clearer, the larger."""
    red = (picture[..., 0] > 0.95) & (np.abs(picture[..., 1] - picture[..., 2]) < 0.01)
    return np.where(red & (picture[..., 1] < 0.8), 1 - picture[..., 1], 0)[: len(picture) // 3].max(axis=0)


def red(seconds: float, sound: float | None) -> Recording:
    """Red frames for some seconds, and sound for others."""
    duration = max(seconds, sound or 0)
    count = int(FRAMES * seconds / duration)
    pictures = np.broadcast_to(np.array([255, 0, 0], np.uint8), (count, 48, 64, 3))
    return Recording("a.mp4", duration, None if sound is None else chirp(sound), 16000, pictures, STEPS)


def test_frames_end_where_the_picture_does(tmp_path: Path) -> None:
    """Two seconds of picture under four of sound fill half of the strip."""
    path = record(
        tmp_path / "a.mkv",
        [numbered(i) for i in range(20)],
        codec="mpeg4",
        sound=chirp(4.0),
    )
    recording = load(clip_of(path), STEPS)
    assert recording.duration == pytest.approx(4.0, abs=0.05)
    assert recording.pictures is not None
    assert len(recording.pictures) == 3, "of seven, which are 4 / 7 s apart"
    weights = answer(audio=[1 / 40] * 40, video=[1 / 20] * 20)
    both = np.flatnonzero(frames_in(drawn(red(2.0, 4.0), weights, tmp_path)))
    whole = np.flatnonzero(frames_in(drawn(red(4.0, 4.0), weights, tmp_path)))
    assert both[0] == whole[0]
    share = (both[-1] - both[0]) / (whole[-1] - whole[0])
    assert share == pytest.approx(3 / 7, abs=0.01)


def test_a_frame_is_as_clear_as_the_steps_of_its_time(tmp_path: Path) -> None:
    """All weight lies in the first of two seconds of picture: in the first two frames."""
    weights = answer(audio=[1 / 40] * 40, video=[0.1] * 10 + [0.0] * 10)
    clear = frames_in(drawn(red(2.0, 4.0), weights, tmp_path))
    shown = np.flatnonzero(clear)
    at = shown[0] + np.ptp(shown) * (np.arange(3) + 0.5) / 3
    # The second stretch, from 4 / 7 to 8 / 7 s, touches seven steps; five count.
    assert clear[at.astype(int)] == pytest.approx([1.0, 0.25 + 0.75 * 5 / 7, 0.25], abs=0.02)


@pytest.mark.parametrize("seconds", [0.01, 0.2, 60.0])
def test_recordings_of_any_length_are_drawn(tmp_path: Path, seconds: float) -> None:
    steps = max(1, round(10 * seconds))
    weights = answer(audio=[1 / steps] * steps, video=[1 / steps] * steps)
    recording = red(seconds, seconds)
    picture = drawn(recording, weights, tmp_path)
    blue = (picture[..., 2] > 0.6) & (picture[..., 0] < 0.1)
    assert np.ptp(np.flatnonzero(blue.any(axis=0))) > 0.6 * picture.shape[1], "a line from begin to end"
    assert np.ptp(np.flatnonzero(frames_in(picture))) > 0.6 * picture.shape[1]


def test_names_are_no_formulas(tmp_path: Path) -> None:
    path = record(tmp_path / "$\\frac{$ %s.wav", sound=chirp(0.2))
    drawn(load(clip_of(path), STEPS), answer("$\\oops{$", audio=[0.5, 0.5]), tmp_path)


def test_a_stream_that_cannot_be_decoded_is_not_shown(tmp_path: Path) -> None:
    """A model of sound alone has answered; the picture is of no concern to it."""
    path = record(tmp_path / "a.avi", [numbered(i) for i in range(10)], codec="mpeg4", sound=chirp(1.0))
    spoil(path, "video", range(10))
    recording = load(clip_of(path), STEPS)
    assert recording.pictures is None
    assert recording.sound is not None
    drawn(recording, answer(audio=[0.1] * 10), tmp_path)
    spoil(record(tmp_path / "b.avi", [numbered(0)] * 5, codec="mpeg4"), "video", range(5))
    with pytest.raises(MediaError, match=r"b.avi: no picture can be decoded"):
        load(clip_of(tmp_path / "b.avi"), STEPS)


def test_recordings_of_one_name_have_pictures_of_their_own() -> None:
    paths = [Path("a/x.mp4"), Path("/b/x.mp4"), Path("c/y.mp4")]
    assert list(picture_names(paths).values()) == ["a_x.mp4", "b_x.mp4", "y.mp4"]
    assert picture_names([paths[0], paths[0]]) == {paths[0]: "x.mp4"}
