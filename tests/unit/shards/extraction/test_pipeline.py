"""Decoding ahead of the encoders, and telling damaged clips from storage that fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_support import (
    GARBAGE,
    put,
    put_bytes,
    write_sound,
)
from extraction_support import (
    Counting,
    built_in,
)
from media_support import record

from shards import BadSample
from shards.extraction.encoders import open_video_encoder
from shards.extraction.encoders.descriptor import describe as describe_pictures
from shards.extraction.media import read_frames
from shards.extraction.pipeline import decode, decode_ahead, encode
from shards.sources.base import Clip, ClipSource

# --- Storage that fails --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_file_that_cannot_be_read_is_told_from_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(error, os.strerror(error))

    path = put_bytes(tmp_path / "a.wav", GARBAGE)
    clip = Clip("a", "all", "low", path, None)
    broken = decode(clip, {"audio": Counting()})
    assert not broken.is_unreadable
    assert "not a recording" in str(broken.cause)
    monkeypatch.setattr("shards.extraction.pipeline.open", fails, raising=False)
    unread = decode(clip, {"audio": Counting()})
    assert unread.is_unreadable
    assert unread.cause == f"{path}: cannot be read ({os.strerror(error)})"


def test_a_read_error_halfway_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg continues behind it with what is left: a clip would silently be shorter."""
    path = write_sound(tmp_path / "a.wav")

    def read_with_faults(path: Path, rate: int, span: Any, faults: Any, keep: bool) -> np.ndarray:
        faults["audio"] += next(failures, 0)
        return np.ones(8 if failing else 2000, np.float32)

    for failing in (True, False):
        failures = iter([1])
        monkeypatch.setattr("shards.extraction.pipeline.read_audio", read_with_faults)
        with monkeypatch.context() as lost:
            if failing:
                lost.setattr("shards.extraction.pipeline._read_through", lambda path: os.stat(path / "x"))
            decoded = decode(Clip("a", "all", "low", path, None), {"audio": Counting()})
        assert decoded.is_unreadable == failing
    assert len(decoded.media["audio"]) == 2000


# --- Decoding ahead ------------------------------------------------------------------------------


class AtOnce:
    """An executor that runs a call before `submit` returns."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*arguments))
        return future

    def shutdown(self, **_: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "bound", "ahead"), [("AHEAD_CLIPS", 5, 5), ("AHEAD_BYTES", 70_000, 3)], ids=["clips", "bytes"]
)
def test_decoding_runs_ahead_within_bounds(
    tones: ClipSource, monkeypatch: pytest.MonkeyPatch, name: str, bound: int, ahead: int
) -> None:
    """Seconds of sound at 8 kHz are 16, 24 and so on, up to 48 kB: any three are beyond 70 kB."""
    monkeypatch.setattr("shards.extraction.pipeline.ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(f"shards.extraction.pipeline.{name}", bound)
    taken: list[Clip] = []

    def clips() -> Iterator[Clip]:
        for clip in tones.clips:
            assert isinstance(clip, Clip)
            taken.append(clip)
            yield clip

    for i, each in enumerate(decode_ahead(clips(), {"audio": Counting()}, threads=1), start=1):
        assert each.clip == tones.clips[i - 1]
        assert len(taken) <= i - 1 + ahead
    assert len(taken) == 20


class WhenAsked(AtOnce):
    """An executor that runs a call when its result is asked for."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        class Asked(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                return call(*arguments)

        return Asked()


def test_clips_being_decoded_count_as_much_as_others(
    tones: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else threads would decode dozens of videos while the encoder is busy with the first."""
    monkeypatch.setattr("shards.extraction.pipeline.ThreadPoolExecutor", WhenAsked)
    monkeypatch.setattr("shards.extraction.pipeline.AHEAD_BYTES", 150_000)
    taken: list[Clip] = []

    def clips() -> Iterator[Clip]:
        for clip in tones.clips:
            assert isinstance(clip, Clip)
            taken.append(clip)
            yield clip

    ahead = []
    for i, _ in enumerate(decode_ahead(clips(), {"audio": Counting()}, threads=2), start=1):
        ahead.append(len(taken) - i)
    assert len(ahead) == 20
    # Two threads have a clip each until the size of one is known: the first has 16 kB, the mean is 32.
    assert ahead[:2] == [1, 150 // 16]
    assert max(ahead[5:]) == 5


# --- What is decoded -----------------------------------------------------------------------------


def test_pictures_are_decoded_as_large_as_the_encoder_looks_at_them(tmp_path: Path) -> None:
    """Ten minutes of video do not fit into memory at full size; at the descriptor's size they do."""
    y, x = np.arange(540)[:, None, None] / 100, np.arange(960)[:, None] / 100
    waves = 127 + 60 * np.sin(3 * x + y * [1, 2, 3]) + 60 * np.sin(x * [2, 3, 1] - 4 * y)
    film = record(tmp_path / "a.mkv", [waves.astype(np.uint8)] * 3, codec="mpeg4")
    clip = Clip("a", "all", "calm", None, film)
    encoders = {"video": open_video_encoder("descriptor")}
    pictures = decode(clip, encoders).media["video"]
    assert pictures.shape == (3, 144, 256, 3)
    whole = read_frames(film, 10)[0]
    assert whole.shape == (3, 540, 960, 3)
    np.testing.assert_allclose(describe_pictures(pictures), describe_pictures(whole), atol=0.03)
    with_faces = {"video": open_video_encoder("descriptor", faces="opencv")}
    assert decode(clip, with_faces).media["video"].shape == whole.shape


def test_a_clip_may_have_a_file_for_each_stream(tmp_path: Path) -> None:
    sound, film = write_sound(tmp_path / "a.wav", 2.0), put("both.avi", tmp_path / "b.avi")
    clip = Clip("x", "all", "calm", sound, film, audio_span=(0.5, 1.25), video_span=(0.0, 0.4))
    encoders = built_in()
    [sample] = list(encode(decode_ahead([clip], encoders, 2), encoders, 16))
    assert not isinstance(sample, BadSample)
    assert {name: len(values) for name, values in sample.features.items() if values is not None} == {
        "audio": 7,
        "video": 4,
    }
