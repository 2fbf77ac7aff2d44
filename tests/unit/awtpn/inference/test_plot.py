"""The picture of an answer: what is shown lies where it was in the recording."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from media_support import chirp, numbered, record, spoil

from awtpn.cli.predict_recordings import picture_names
from awtpn.inference.intervals import Intervals
from awtpn.inference.plot import draw
from awtpn.inference.plot_outcome import BAR, INK, LONGEST_TITLE, outcome_title
from awtpn.inference.prediction import Prediction
from awtpn.inference.recording import FRAMES, Recording, clip_of, load, text_clip
from awtpn.model.modality_colors import modality_colors
from shards.extraction.media import MediaError
from shards.sources.reading.transcripts import Transcript, transcript_of

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


# --- Values and labels ---------------------------------------------------------------------------


def test_values_are_drawn_within_their_range(tmp_path: Path) -> None:
    """The bar of the interval covers its share of the range; the dot is where the value is."""
    weights = answer(audio=[0.05] * 20).weights
    recording = red(2.0, 2.0)

    def columns(values: dict[str, float], intervals: Intervals, color: str) -> np.ndarray:
        prediction = Prediction(None, {}, weights, values=values, intervals=intervals)
        draw(recording, prediction, tmp_path / "v.png", {"v": [-3, 3]})
        right = matplotlib.image.imread(tmp_path / "v.png")[..., :3]
        right = right[:, int(0.78 * right.shape[1]) :]
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        # More than the letters of the figures have of this color in a column.
        return np.flatnonzero((np.abs(right - wanted).max(-1) < 0.02).sum(0) > 10)

    whole = columns({"v": 0.0}, {"v": (-3.0, 3.0)}, BAR)
    part = columns({"v": 0.0}, {"v": (-3.0, 0.0)}, BAR)
    assert np.ptp(part) / np.ptp(whole) == pytest.approx(0.5, abs=0.03)
    assert part[0] == whole[0]
    assert not len(columns({"v": 0.0}, {"v": None}, BAR))
    for value in (-2.0, 0.0, 2.5):
        dot = columns({"v": value}, {"v": None}, INK)
        center = dot[len(dot) // 2] if len(dot) else -1
        assert (center - whole[0]) / np.ptp(whole) == pytest.approx((value + 3) / 6, abs=0.03)


@pytest.mark.parametrize(
    "prediction",
    [
        Prediction(None, {"a": 0.9, "$\\oops{$": 0.8, "c": 0.1}, {}, labels=["a", "$\\oops{$"]),
        Prediction(None, {"a": 0.2}, {}, labels=[]),
        Prediction(
            None, {f"label {i}": 0.9 for i in range(90)}, {}, labels=[f"label {i}" for i in range(90)]
        ),
        Prediction(None, {}, {}, values={"$\\oops{$": 3.0, "b\x1b": 0.0}, intervals={"b\x1b": (0.0, 0.0)}),
        Prediction(None, {}, {}, values={f"dimension {i}": 1e9 for i in range(90)}, intervals={}),
        Prediction(None, {}, {}, values={"v": 99.0}, intervals={"v": (3.0, 3.0)}),
    ],
)
def test_any_answer_is_drawn(tmp_path: Path, prediction: Prediction) -> None:
    weights = answer(audio=[0.5, 0.5], video=[1.0]).weights
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(red(0.2, 0.2), replace(prediction, weights=weights), tmp_path)
    assert len(outcome_title(prediction)) <= LONGEST_TITLE


# --- Words ---------------------------------------------------------------------------------------

GREEN = np.array([int(modality_colors(["text"])["text"][i : i + 2], 16) for i in (1, 3, 5)]) / 255


def bars(picture: np.ndarray) -> np.ndarray:
    """The columns [W] of a picture above which a bar of a word ends."""
    found = (np.abs(picture - GREEN).max(-1) < 0.02).sum(0) > 0
    found[: picture.shape[1] // 16] = False  # the name of the axis has this color, too
    return np.flatnonzero(found)


def of_words(count: int, **others: list[float]) -> Prediction:
    return answer(text=list(np.arange(1, count + 1) / (count * (count + 1) / 2)), **others)


@pytest.mark.parametrize(
    "text",
    [
        "Yes",
        "I am so happy that you came",
        "happy " * 60,
        "incomprehensibilities " * 61,
        "word " * 900,
        "我不想嫁给李茶" * 8,
        "مرحبا يا صديقي שלום עולם",
        "👍🏽 👩‍👩‍👧 ไทย नमस्ते \u202eabc $\\frac{$ \u200d ﷽",
    ],
    ids=["one", "few", "sixty", "long", "many", "Chinese", "right to left", "others"],
)
@pytest.mark.parametrize("with_media", [False, True])
def test_words_of_any_script_and_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, with_media: bool
) -> None:
    transcript = transcript_of(text)
    assert transcript is not None
    count = len(transcript.words)
    if with_media:
        recording = replace(red(2.0, None), transcript=transcript)
        weights = of_words(count, audio=[], video=[0.05] * 20)
    else:
        recording, weights = load(text_clip(text), {}), of_words(count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = drawn(recording, weights, tmp_path)
    columns = bars(picture)
    assert np.ptp(columns) > 0.55 * picture.shape[1], "a bar for each, over the whole width"
    # At most a line on fonts, and it does not name the characters.
    assert len(caplog.records) <= 1
    assert caplog.text.isascii()
    assert all(word not in caplog.text for word in ("ZWJ", "CJK UNIFIED", "THAI"))


def test_words_lie_at_their_times_if_these_are_known(tmp_path: Path) -> None:
    words = ("one", "two")
    timed = Transcript(words, ((0.0, 0.4), (3.0, 3.4)))
    weights = answer(text=[0.6, 0.4], video=[1 / 40] * 40)
    recording = red(4.0, None)
    whole = np.ptp(bars(drawn(replace(recording, transcript=Transcript(words)), weights, tmp_path)))
    columns = bars(drawn(replace(recording, transcript=timed), weights, tmp_path))
    # Without times, each has half of the 4 s, less the gap between bars.
    assert np.ptp(columns) / whole == pytest.approx((3.4 - 0.4 * 0.14) / (4 - 2 * 0.14), abs=0.01)
    gap = np.diff(columns).max()
    assert gap / np.ptp(columns) == pytest.approx((2.6 + 0.4 * 0.14) / (3.4 - 0.4 * 0.14), abs=0.01)
    # Text alone has no time axis.
    alone = replace(load(text_clip(timed), {}), transcript=timed)
    assert np.ptp(bars(drawn(alone, answer(text=[0.6, 0.4]), tmp_path))) == pytest.approx(whole, abs=2)


def test_a_recording_without_words_is_drawn_as_before(tmp_path: Path) -> None:
    weights = answer(video=[0.05] * 20)
    before = drawn(red(2.0, None), weights, tmp_path)
    after = drawn(red(2.0, None), answer(video=[0.05] * 20, text=[]), tmp_path)
    assert before.shape == after.shape
    assert not len(bars(after))
