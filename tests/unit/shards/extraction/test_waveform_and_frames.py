"""What is stored of sound and pictures: the samples, the crops, and their JPEG form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from extraction_support import extracted
from media_support import WIDTH, chirp, number_of, numbered, record
from recordings_support import FPS, SECONDS, clips_of, recorded, sound_of
from support import REPO

from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.extraction.encoders.frames import crop_middle
from shards.extraction.media import read_audio, read_frames
from shards.format.recording import Recording
from shards.sources.base import Clip, ClipSource

DATA = REPO.parent / "shared" / "data"
FACES = [*sorted((DATA / "crema_d" / "clips").glob("*.flv")), *sorted((DATA / "ravdess").glob("*.mp4"))]


def stored(folder: Path, decode: str | None = None) -> dict[str, dict[str, Any]]:
    """Each utterance's members as webdataset reads them, by key."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    found = list(samples.decode(decode) if decode else samples.decode())
    assert len({sample["__key__"] for sample in found}) == len(found), "an utterance's members are together"
    return {sample["__key__"]: sample for sample in found}


def one(clip: Path, folder: Path, **encoders: Any) -> dict[str, Any]:
    """What is stored of one clip."""
    source = ClipSource([Clip("one", "train", "calm", clip, clip)], ["calm", "loud"], {})
    extracted(source, folder, **encoders)
    return stored(folder)["one"]


def square(number: int) -> np.ndarray:
    """A picture of as many rows as columns, so that no bar of it is cut off."""
    return np.resize(numbered(number), (WIDTH, WIDTH, 3))


# --- A dataset of both ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return clips_of(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def arrays(source: ClipSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    extracted(source, folder, **recorded())
    return folder


def test_sound_is_stored_bit_for_bit(arrays: Path) -> None:
    found = stored(arrays)
    steps = {"clip0": 5, "clip1": 13, "clip2": 8, "clip3": 21, "clip4": 10, "sound": 7}
    assert {key: len(sample["audio.npy"]) for key, sample in found.items() if "audio.npy" in sample} == steps
    for i in range(len(SECONDS)):
        sample, wanted = found[f"clip{i}"], np.rint(sound_of(i) * 32768).astype(np.int16)
        sound = sample["audio.npy"]
        assert (sound.dtype, sound.shape[1]) == (np.int16, 1600)
        assert sample["json"]["num_samples"] == {"audio": len(wanted)}
        np.testing.assert_array_equal(sound.reshape(-1)[: len(wanted)], wanted)
        assert not sound.reshape(-1)[len(wanted) :].any()
    assert found["clip1"]["json"] == {"label": "loud", "number": 1, "num_samples": {"audio": 19680}}
    assert found["pictures"]["json"] == {"label": "loud", "number": 6}


def test_pictures_are_stored_as_their_crops(source: ClipSource, arrays: Path) -> None:
    found = stored(arrays)
    pictures = {"clip0": 5, "clip1": 12, "clip2": 8, "clip3": 20, "clip4": 10, "pictures": 6}
    assert {k: len(sample["video.npy"]) for k, sample in found.items() if "video.npy" in sample} == pictures
    for clip in source.clips:
        assert isinstance(clip, Clip)
        if clip.video is None:
            continue
        crops = found[clip.key]["video.npy"]
        assert (crops.dtype, crops.shape[1:]) == (np.uint8, (32, 32, 3))
        decoded, _ = read_frames(clip.video, FPS, None, None, 64)  # type: ignore[misc]
        np.testing.assert_array_equal(crops, crop_middle(decoded, 32))


@pytest.mark.parametrize("quality", [60, 95])
def test_jpegs_are_close_to_the_arrays(
    source: ClipSource, arrays: Path, tmp_path: Path, quality: int
) -> None:
    extracted(source, tmp_path / "d", **recorded(jpeg=quality))
    plain, found = stored(arrays), stored(tmp_path / "d", "rgb8")
    assert found.keys() == plain.keys()
    for key, sample in found.items():
        names = [name for name in sample if name.startswith("video.")]
        crops = plain[key].get("video.npy", [])
        assert names == [f"video.{i:04d}.jpg" for i in range(len(crops))]
        assert sample["json"] == plain[key]["json"]
        for name, crop in zip(names, crops, strict=True):
            picture = sample[name]
            assert (picture.dtype, picture.shape) == (np.uint8, (32, 32, 3))
            difference = np.abs(picture.astype(int) - crop)
            # Of black and white bars, in levels of 255.
            assert difference.mean() < {60: 8.0, 95: 2.0}[quality]
        if "audio.npy" in sample:
            np.testing.assert_array_equal(sample["audio.npy"], plain[key]["audio.npy"])


# --- Sound ---------------------------------------------------------------------------------------


def test_sound_louder_than_full_scale_is_clipped(tmp_path: Path) -> None:
    sound = np.array([0.5, 1.5, -1.5, 1.0, -1.0, 32767 / 32768] * 1000, np.float32)
    path = record(tmp_path / "a.wav", sound=sound, sound_codec="pcm_f32le")
    found = one(path, tmp_path / "d", audio=open_audio_encoder("waveform"))
    wanted = [16384, 32767, -32768, 32767, -32768, 32767]
    assert found["audio.npy"].reshape(-1)[:6000].tolist() == wanted * 1000


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_sound_of_another_rate_keeps_its_length(tmp_path: Path, rate: int) -> None:
    path = record(tmp_path / "a.wav", sound=chirp(1.3, rate), rate=rate)
    found = one(path, tmp_path / "d", audio=open_audio_encoder("waveform"))
    samples = found["json"]["num_samples"]["audio"]
    assert samples == 20800
    assert found["audio.npy"].shape == (13, 1600)
    resampled = found["audio.npy"].reshape(-1) / 32768
    middle = slice(1600, -1600)  # the ends of resampled sound ring
    assert np.abs(resampled - chirp(1.3))[middle].max() < 0.01


def test_channels_are_mixed_and_other_steps_are_possible(tmp_path: Path) -> None:
    left, right = chirp(0.5), np.zeros(8000, np.float32)
    path = record(tmp_path / "a.wav", sound=np.stack([left, right]))
    found = one(path, tmp_path / "d", audio=open_audio_encoder("waveform", rate=8000, step_seconds=0.02))
    assert (found["audio.npy"].shape, found["json"]["num_samples"]) == ((25, 160), {"audio": 4000})
    wanted = read_audio(path, 8000)
    assert wanted is not None
    assert np.abs(found["audio.npy"].reshape(-1) / 32768 - wanted).max() <= 0.5 / 32768


def test_a_sound_shorter_than_a_step_has_one_step(tmp_path: Path) -> None:
    path = record(tmp_path / "a.wav", sound=chirp(0.5)[1000:1007])
    found = one(path, tmp_path / "d", audio=open_audio_encoder("waveform"))
    assert (found["audio.npy"].shape, found["json"]["num_samples"]) == ((1, 1600), {"audio": 7})


@pytest.mark.parametrize(
    ("rate", "step", "told"),
    [
        (16000, 0.00003, "step_seconds=3e-05 at rate=16000 is 0.48 samples; a step has a whole number"),
        (22050, 0.01, "step_seconds=0.01 at rate=22050 is 220.5 samples"),
        (16000, -0.1, "is -1600 samples"),
        (16000, 0.0, "is 0 samples; a step has a whole number of samples, and at least one"),
        (16000, float("inf"), "is inf samples"),
        (16000, float("nan"), "is nan samples"),
        (2_000_000, 0.1, r"rate is 2e\+06; it must be above 0, and at most 1e\+06"),
    ],
)
def test_steps_that_cannot_be(rate: int, step: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        open_audio_encoder("waveform", rate=rate, step_seconds=step)


# --- Pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "numbers"),
    [(10.0, list(range(12))), (5.0, [1, 3, 5, 7, 9, 11]), (20.0, [i // 2 for i in range(24)])],
)
def test_the_pictures_are_those_shown_at_the_times(tmp_path: Path, fps: float, numbers: list[int]) -> None:
    """In the middle of each step."""
    path = record(tmp_path / "a.mkv", [square(i) for i in range(12)], codec="ffv1")
    found = one(path, tmp_path / "d", video=open_video_encoder("frames", fps=fps, side=64))
    assert found["video.npy"].shape == (len(numbers), 64, 64, 3)
    assert list(map(number_of, found["video.npy"])) == numbers


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("side", [32, 128, 200])
def test_the_middle_of_wide_and_tall_pictures(turned: bool, side: int) -> None:
    """Gray on both sides of a square: nothing of the gray is stored, and all of the square."""
    gray = np.full((WIDTH, 50, 3), 128, np.uint8)
    squares = np.stack([square(i) for i in (3, 90, 255)])
    pictures = np.stack([np.concatenate([gray, each, gray], axis=1) for each in squares])
    if turned:
        pictures = pictures.swapaxes(1, 2)
    encoder = open_video_encoder("frames", side=side)
    assert encoder is not None
    [crops] = encoder.encode([pictures])
    assert crops.shape == (3, side, side, 3)
    if turned:
        crops = crops.swapaxes(1, 2)
    assert list(map(number_of, crops)) == [3, 90, 255]
    inner = crops[2, :, 2:-2]  # number 255 is white, up to the edge to the gray
    assert inner.min() >= 250
    if side == WIDTH:
        np.testing.assert_array_equal(crops, squares)


def test_crops_of_odd_sizes() -> None:
    picture = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(1, 5, 7, 3)
    np.testing.assert_array_equal(crop_middle(picture, 5), picture[:, :, 1:6])
    assert crop_middle(picture[:0], 5).shape == (0, 5, 5, 3)
    assert crop_middle(picture, 1).shape == (1, 1, 1, 3)
    assert crop_middle(picture[:, :1], 3).shape == (1, 3, 3, 3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"side": 0}, "frames: side=0: must be"),
        ({"side": 20_000}, "20000"),
        ({"jpeg": 0}, "jpeg_quality is 0; it is 1 to 95"),
        ({"jpeg": 100}, "jpeg_quality is 100; it is 1 to 95"),
        ({"fps": 0.0}, "fps is 0"),
    ],
)
def test_pictures_that_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        open_video_encoder("frames", **options)


def test_what_the_encoders_say_of_themselves() -> None:
    audio, video = open_audio_encoder("waveform"), open_video_encoder("frames", fps=12.5, side=96, jpeg=90)
    assert audio is not None
    assert video is not None
    assert (audio.dim, audio.rate, audio.step_seconds) == (1600, 16000, 0.1)
    assert audio.recording == Recording("waveform", 16000.0, [1600])
    assert audio.settings == {"id": "waveform", "version": 1, "rate": 16000, "step_seconds": 0.1}
    assert (video.dim, video.fps, video.step_seconds, video.largest_side) == (27648, 12.5, 0.08, 192)
    assert video.recording == Recording("frames", 12.5, [96, 96, 3], 90)
    assert video.settings["jpeg"] == 90
    plain = open_video_encoder("frames")
    assert plain is not None
    assert "jpeg" not in plain.settings
    assert plain.recording == Recording("frames", 10.0, [224, 224, 3])


# --- Faces ---------------------------------------------------------------------------------------


def test_a_clip_without_a_face_has_no_pictures(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    path = record(tmp_path / "a.mkv", [square(i) for i in range(3)], sound=chirp(0.3))
    encoders = recorded(faces="opencv")
    found = one(path, tmp_path / "d", **encoders)
    assert "audio.npy" in found
    assert not any(name.startswith("video") for name in found)


@pytest.mark.skipif(not FACES, reason=f"no clips in {DATA}")
def test_faces_are_those_of_the_detector(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    from shards.extraction.encoders.faces import crop_faces, find_faces

    path = FACES[0]
    found = one(path, tmp_path / "d", video=open_video_encoder("frames", fps=2, side=96, faces="opencv"))
    crops = found["video.npy"]
    decoded, _ = read_frames(path, 2, None, None, 960)  # type: ignore[misc]
    wanted, mask = crop_faces(decoded, 96, 2)
    assert mask.all()
    np.testing.assert_array_equal(crops, wanted)
    again = find_faces(np.repeat(np.repeat(crops[:1], 3, axis=1), 3, axis=2))
    assert np.abs(again[0, :2] - 144).max() < 60, "a face is in the middle of the crop"
