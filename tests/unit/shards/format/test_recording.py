"""Recordings in shards: sound as 16-bit steps, pictures as JPEG, and what a recording cannot be."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tars_support import npy, write_tar

from shards.format.index import index_tar
from shards.format.jpeg import decode_jpeg_into, encode_jpeg
from shards.format.recording import (
    Recording,
    as_int16,
    check_recording,
    in_steps,
    num_samples_of,
    steps_of_samples,
)
from shards.format.schema import Modality, version_of

SOUND = Recording("waveform", 16000.0, [1600])
PICTURES = Recording("frames", 25.0, [48, 64, 3])
JPEGS = Recording("frames", 12.5, [48, 64, 3], 90)
AUDIO, VIDEO = Modality(1600, "int16", SOUND), Modality(48 * 64 * 3, "uint8", JPEGS)


# --- What a recording is -------------------------------------------------------------------------


def test_what_the_steps_are() -> None:
    assert (SOUND.dim, SOUND.is_sound, SOUND.step_seconds) == (1600, True, 0.1)
    assert (PICTURES.dim, PICTURES.is_sound, PICTURES.step_seconds) == (9216, False, 0.04)
    assert str(SOUND) == "sound at 16000 Hz in steps of 0.1 s"
    assert str(PICTURES) == "pictures of 64 x 48 at 25 per second, as arrays"
    assert str(JPEGS) == "pictures of 64 x 48 at 12.5 per second, as JPEG of quality 90"
    for found in (SOUND, PICTURES, JPEGS, Recording("frames", 1.0, [1, 1, 3], 1)):
        check_recording(found)
    check_recording(Recording("waveform", 1_000_000.0, [1 << 28]))


def test_how_a_batch_holds_it() -> None:
    features = Modality(40, "float16")
    assert (features.shape, features.step_bytes) == ((40,), 80)
    assert (AUDIO.shape, AUDIO.step_bytes, AUDIO.is_sound, AUDIO.is_jpeg) == ((1600,), 3200, True, False)
    assert (VIDEO.shape, VIDEO.step_bytes, VIDEO.is_sound, VIDEO.is_jpeg) == ((48, 64, 3), 9216, False, True)
    assert not Modality(9216, "uint8", PICTURES).is_jpeg
    # Datasets of features stay readable by early versions of this program.
    assert version_of({"audio": features}) == 2
    assert version_of({"audio": features, "video": VIDEO}) == 3


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Recording("midi", 1.0, [1]), "kind 'midi' is not one of waveform, frames"),
        (Recording("waveform", 0.0, [1]), "rate is 0; it must be above 0, and at most 1e"),
        (Recording("waveform", -16000.0, [1]), "rate is -16000"),
        (Recording("waveform", math.nan, [1]), "rate is nan"),
        (Recording("waveform", math.inf, [1]), "rate is inf"),
        (Recording("frames", 1_000_001.0, [1, 1, 3]), r"rate is 1e\+06"),
        (Recording("waveform", 1.0, []), r"shape is \[\]; of waveform it is \[samples\]"),
        (Recording("waveform", 1.0, [1, 1]), r"shape is \[1, 1\]; of waveform it is \[samples\]"),
        (Recording("waveform", 1.0, [0]), r"shape is \[0\]"),
        (Recording("waveform", 1.0, [(1 << 28) + 1]), "shape is"),
        (Recording("frames", 1.0, [8, 8]), r"shape is \[8, 8\]; of frames it is \[height, width, 3\]"),
        (Recording("frames", 1.0, [8, 8, 4]), r"shape is \[8, 8, 4\]"),
        (Recording("frames", 1.0, [-8, -8, 3]), "shape is"),
        (Recording("frames", 1.0, [1 << 14, 1 << 14, 3]), "shape is"),
        (Recording("frames", 1.0, [10**4000, 1, 3]), "shape is"),
        (Recording("frames", 1.0, [8, 8, 3], 0), "jpeg_quality is 0; it is 1 to 95, of pictures only"),
        (Recording("frames", 1.0, [8, 8, 3], 96), "jpeg_quality is 96"),
        (Recording("waveform", 1.0, [1], 90), "jpeg_quality is 90; it is 1 to 95, of pictures only"),
    ],
)
def test_what_it_cannot_be(found: Recording, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        check_recording(found)
    assert len(str(error.value)) < 200


# --- Sound ---------------------------------------------------------------------------------------


def test_samples_are_rounded_and_clipped() -> None:
    given = [0, 1, -1, 0.4, 0.5, 0.6, 1.5, 2.5, -0.5, -1.5, 32766.6, 32767, 32767.4, 32768, -32768, -32769]
    wanted = [0, 1, -1, 0, 0, 1, 2, 2, 0, -2, 32767, 32767, 32767, 32767, -32768, -32768]
    found = as_int16(np.array(given) / 32768)
    assert found.dtype == np.int16
    assert found.tolist() == wanted
    assert as_int16(np.array([1.0, -1.0, 7.5, -7.5, math.inf, -math.inf])).tolist() == [32767, -32768] * 3
    assert as_int16(np.zeros(0)).shape == (0,)


def test_every_16_bit_value_is_kept() -> None:
    values = np.arange(-32768, 32768, dtype=np.int16)
    np.testing.assert_array_equal(as_int16(values.astype(np.float32) / 32768), values)


@pytest.mark.parametrize(
    ("samples", "steps"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (4_000_001, 1_000_001)]
)
def test_the_last_step_is_filled_up(samples: int, steps: int) -> None:
    assert steps_of_samples(samples, 4) == steps
    sound = np.arange(1, samples + 1).astype(np.int16)
    found = in_steps(sound, 4)
    assert (found.shape, found.dtype) == ((steps, 4), np.int16)
    np.testing.assert_array_equal(found.reshape(-1)[:samples], sound)
    assert not found.reshape(-1)[samples:].any()


@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        ({"num_samples": {"audio": 7}}, 7),
        ({"num_samples": {"audio": 0}}, 0),
        ({"num_samples": {"video": 7}}, None),
        ({"num_samples": {"audio": True}}, None),
        ({"num_samples": {"audio": 7.0}}, None),
        ({"num_samples": {"audio": "7"}}, None),
        ({"num_samples": [7]}, None),
        ({"num_samples": 7}, None),
        ({}, None),
    ],
)
def test_the_number_of_samples_in_metadata(meta: dict[str, Any], wanted: int | None) -> None:
    assert num_samples_of(meta, "audio") == wanted


# --- Pictures ------------------------------------------------------------------------------------


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose colors change slowly, as those of photographs do; no two corners are alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, 128 + 0 * x], axis=-1).astype(np.uint8)


def difference(quality: int) -> float:
    decoded = np.empty((48, 64, 3), np.uint8)
    decode_jpeg_into(encode_jpeg(smooth(), quality), decoded)
    return float(np.abs(decoded.astype(int) - smooth()).mean())


def test_a_jpeg_is_close_to_its_picture() -> None:
    assert difference(95) < difference(75) < difference(10)
    assert difference(95) < 1.5
    assert len(encode_jpeg(smooth(), 95)) > len(encode_jpeg(smooth(), 75)) > len(encode_jpeg(smooth(), 10))


def test_a_jpeg_has_the_same_bytes_each_time_and_colors_at_half_the_resolution() -> None:
    content = encode_jpeg(smooth(), 90)
    assert content == encode_jpeg(smooth(), 90)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 48))
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]


def test_a_jpeg_of_another_size_or_mode_is_refused() -> None:
    picture = np.full((48, 64, 3), 7, np.uint8)
    with pytest.raises(ValueError, match=r"^is RGB of 48 x 64, not RGB of 64 x 48$"):
        decode_jpeg_into(encode_jpeg(smooth(64, 48), 90), picture)
    gray = io.BytesIO()
    Image.fromarray(smooth()[..., 0]).save(gray, "JPEG")
    with pytest.raises(ValueError, match=r"^is L of 64 x 48, not RGB of 64 x 48$"):
        decode_jpeg_into(gray.getvalue(), picture)
    assert (picture == 7).all(), "not decoded"


def test_other_bytes_are_no_jpeg() -> None:
    picture, png = np.empty((48, 64, 3), np.uint8), io.BytesIO()
    Image.fromarray(smooth()).save(png, "PNG")
    content = encode_jpeg(smooth(), 90)
    for damaged in (
        b"",
        bytes(100),
        png.getvalue(),
        content[1:],
        content[:200],
        content[: len(content) // 2],
    ):
        with pytest.raises(ValueError, match=r"^not a JPEG that can be read \("):
            decode_jpeg_into(damaged, picture)
    decode_jpeg_into(memoryview(content + bytes(100)), picture)  # what follows its end is not read


@pytest.mark.parametrize("side", [65535, 10240])
def test_a_jpeg_that_claims_to_be_huge_is_refused(side: int) -> None:
    """Of 10,240 pixels a side Pillow only warns, but a program may turn warnings into errors."""
    content = bytearray(encode_jpeg(smooth(), 90))
    size = content.index(b"\xff\xc0") + 5
    content[size : size + 4] = 2 * side.to_bytes(2, "big")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="not a JPEG that can be read"):
            decode_jpeg_into(bytes(content), np.empty((48, 64, 3), np.uint8))


def test_whatever_is_damaged_is_a_value_error() -> None:
    """Else it would not be known which utterance is damaged, and it could not be skipped."""
    content, rng, refused = encode_jpeg(smooth(), 90), np.random.default_rng(0), 0
    picture = np.empty((48, 64, 3), np.uint8)
    for i in range(1000):
        damaged = bytearray(content[: rng.integers(len(content))] if i % 4 == 0 else content)
        for at in rng.integers(0, max(1, len(damaged)), min(len(damaged), 1 + i % 9)).tolist():
            damaged[at] = int(rng.integers(256))
        try:
            decode_jpeg_into(bytes(damaged), picture)
        except ValueError:
            refused += 1
    assert refused > 250


# --- In the index --------------------------------------------------------------------------------


def member(number: str, fill: int = 0) -> tuple[str, bytes]:
    return f"u.video.{number}.jpg", encode_jpeg(np.full((48, 64, 3), fill, np.uint8), 90)


LABEL = ("u.json", b'{"label": "calm", "num_samples": {"audio": 2000}}')


def test_pictures_of_any_number_of_digits_are_indexed_in_order(tmp_path: Path) -> None:
    files = [LABEL, *(member(number, 80 * i) for i, number in enumerate(["00000", "00001", "00002"]))]
    write_tar(tmp_path / "a.tar", files)
    index = index_tar(tmp_path / "a.tar", {"video": VIDEO}, ["calm"])
    assert index.steps["video"].tolist() == [3]
    assert str(index.form["video"]) == "jpg [steps, 48, 64, 3]"
    content = (tmp_path / "a.tar").read_bytes()
    rows = zip(index.picture_offset["video"].tolist(), index.picture_size["video"].tolist(), strict=True)
    assert [content[at : at + size] for at, size in rows] == [file[1] for file in files[1:]]
    assert index.offset["video"][0] == index.picture_offset["video"][0]


@pytest.mark.parametrize(
    "numbers", [["0001"], ["0000", "0002"], ["0000", "x"], ["0000", "\u00b2"], ["-1"], [""]]
)
def test_pictures_that_are_not_in_order_are_refused(tmp_path: Path, numbers: list[str]) -> None:
    write_tar(tmp_path / "a.tar", [LABEL, *map(member, numbers)])
    wanted = f"{len(numbers) - 1:04d}"
    with pytest.raises(ValueError, match=rf"a\.tar: .*picture {wanted} of video of utterance 'u' should be"):
        index_tar(tmp_path / "a.tar", {"video": VIDEO}, ["calm"])


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        (
            '"num_samples": {"audio": 1600}',
            "num_samples of audio is 1600, which does not make 2 steps of 1600",
        ),
        ('"num_samples": {"audio": 3201}', "num_samples of audio is 3201"),
        ('"num_samples": {"audio": -1}', "num_samples of audio is -1"),
        ('"other": 1', "num_samples of audio is None"),
    ],
)
def test_sound_with_another_number_of_samples_is_refused(tmp_path: Path, meta: str, told: str) -> None:
    sound = ("u.audio.npy", npy(np.zeros((2, 1600), "<i2")))
    write_tar(tmp_path / "a.tar", [sound, ("u.json", f'{{"label": "calm", {meta}}}'.encode())])
    with pytest.raises(ValueError, match=rf"a\.tar: 'u': {told}"):
        index_tar(tmp_path / "a.tar", {"audio": AUDIO}, ["calm"])
    write_tar(tmp_path / "b.tar", [sound, LABEL])
    assert index_tar(tmp_path / "b.tar", {"audio": AUDIO}, ["calm"]).samples["audio"].tolist() == [2000]
