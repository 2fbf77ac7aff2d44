"""Decoding, against recordings whose every picture and sample tells when it is due."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from support import REPO

pytest.importorskip("av")

from media_support import HEIGHT, WIDTH, chirp, number_of, numbered, ramp, record, spoil
from shards_support import in_fork

from shards.extraction.media import (
    MediaError,
    iterate_frames,
    probe,
    read_audio,
    read_frames,
    resample,
    video,
)

DATA = REPO.parent / "shared" / "data"
CLIPS = [*sorted((DATA / "crema_d" / "clips").glob("*.flv")), *sorted((DATA / "ravdess").glob("*.mp4"))]


def numbers(pictures: np.ndarray) -> list[int]:
    return [number_of(picture) for picture in pictures]


# --- Pictures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("avi", "mpeg4"),
        ("webm", "libvpx"),
        ("flv", "flv"),
        ("ts", "libx264"),
    ],
)
def test_every_container_gives_the_pictures_due(tmp_path: Path, ending: str, codec: str) -> None:
    path = record(tmp_path / f"clip.{ending}", [numbered(i) for i in range(30)], codec=codec)
    info = probe(path)
    assert (info.has_video, info.has_audio) == (True, False)
    # FLV does not tell how long its last picture is shown.
    assert info.duration == pytest.approx(3.0, abs=0.11)
    pictures, times = read_frames(path, 10)
    assert pictures.shape == (30, HEIGHT, WIDTH, 3)
    assert pictures.dtype == np.uint8
    assert np.allclose(times, (np.arange(30) + 0.5) / 10)
    assert numbers(pictures) == list(range(30))
    assert numbers(read_frames(path, 5)[0]) == list(range(1, 30, 2))  # 0.1 s is where picture 1 begins
    assert numbers(read_frames(path, 20, (1.0, 1.5))[0]) == [10, 10, 11, 11, 12, 12, 13, 13, 14, 14]
    part, times = read_frames(path, 10, (1.7, 2.3))
    assert numbers(part) == list(range(17, 23))
    assert np.allclose(times, (np.arange(6) + 0.5) / 10)
    assert numbers(read_frames(path, 10, (2.5, 99.0))[0]) == [25, 26, 27, 28, 29]
    with pytest.raises(MediaError, match=rf"clip.{ending}: no picture can be decoded from 5 s to 6 s"):
        read_frames(path, 10, (5.0, 6.0))
    assert read_audio(path) is None


def test_a_variable_frame_rate_becomes_a_constant_one(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.5, 0.55, 0.6, 1.4, 1.5]
    path = record(tmp_path / "vfr.mkv", [numbered(i) for i in range(7)], times)
    # Shown at 0.05, 0.15, ...; the last picture for its own 0.1 s.
    expected = [0, 1, 1, 1, 1, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5, 6]
    assert numbers(read_frames(path, 10)[0]) == expected
    assert numbers(read_frames(path, 10, (0.4, 1.6))[0]) == expected[4:]
    assert numbers(read_frames(path, 10, (0.7, 1.2))[0]) == [4] * 5  # no picture begins in this span


def test_a_clip_shorter_than_a_picture_has_one(tmp_path: Path) -> None:
    path = record(tmp_path / "clip.mp4", [numbered(i) for i in range(10)], fps=25)
    pictures, times = read_frames(path, 10, (0.2, 0.23))
    assert numbers(pictures) == [5]
    assert times.tolist() == [0.05]
    assert numbers(read_frames(path, 1, None)[0]) == [9]


def test_a_broken_time_does_not_stretch_the_recording(tmp_path: Path) -> None:
    first = record(tmp_path / "a.ts", [numbered(i) for i in range(10)])
    # Joined without care: the clock jumps by eight hours, then back.
    later = record(
        tmp_path / "b.ts", [numbered(i) for i in range(10, 20)], [28800 + i / 10 for i in range(10)]
    )
    last = record(tmp_path / "c.ts", [numbered(i) for i in range(20, 30)])
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + later.read_bytes() + last.read_bytes())
    assert numbers(read_frames(joined, 10)[0]) == list(range(30))
    joined.write_bytes(first.read_bytes() + later.read_bytes())
    assert probe(joined).duration > 28800
    assert numbers(read_frames(joined, 10)[0]) == list(range(20))


def test_slides_are_shown_as_long_as_they_are(tmp_path: Path) -> None:
    slides = [numbered(i) for i in range(3)]
    path = record(tmp_path / "a.mkv", slides, [0, 70, 140], sound=ramp(150, 8000), rate=8000)
    assert numbers(read_frames(path, 0.1)[0]) == [0] * 7 + [1] * 7
    assert numbers(read_frames(path, 1, (68.0, 72.0))[0]) == [0, 0, 1, 1]


def test_a_long_pause_is_silence(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for begin in (0, 100):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 9000, np.int16), layout="mono")
            frame.sample_rate, frame.pts = 8000, begin * 8000
            container.mux(stream.encode(frame))
    sound = read_audio(path, 8000)
    assert len(sound) == 101 * 8000
    assert np.flatnonzero(sound).tolist() == [*range(8000), *range(100 * 8000, 101 * 8000)]


def tags(flv: bytes, kind: int) -> list[int]:
    """Where the tags of a kind are in an FLV: each begins with its kind, 3 bytes of size and 4 of time."""
    at, found = 9 + 4, []
    while at < len(flv):
        found += [at] if flv[at] == kind else []
        at += 11 + int.from_bytes(flv[at + 1 : at + 4], "big") + 4
    return found


@pytest.mark.parametrize("kind", [8, 9], ids=["sound", "pictures"])
def test_a_stream_that_claims_to_begin_after_the_end_begins_with_the_other(tmp_path: Path, kind: int) -> None:
    """One flipped byte of FLV's times is 49 days: as many pictures would be the first's repetition."""
    path = record(
        tmp_path / "a.flv", [numbered(i) for i in range(20)], codec="flv", sound=ramp(2.0), sound_codec="aac"
    )
    whole = read_audio(path)
    content = bytearray(path.read_bytes())
    for tag in tags(content, kind):
        content[tag + 7] = 0xFF  # the highest byte of its time
    path.write_bytes(content)
    assert numbers(read_frames(path, 10)[0]) == list(range(20))
    assert numbers(read_frames(path, 10, (1.0, 1.5))[0]) == list(range(10, 15))
    assert len(read_audio(path)) == pytest.approx(len(whole), abs=2048)
    assert read_audio(path, span=(1.0, 1.5)).mean() == pytest.approx(whole[16000:24000].mean(), abs=0.005)


def test_a_clip_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(tmp_path / "a.mkv", [numbered(i) for i in range(20)], codec="mpeg4")
    monkeypatch.setattr(video, "LARGEST_CLIP", 19 * numbered(0).nbytes)
    with pytest.raises(MediaError, match=r"a.mkv: its pictures take more than .* cut it into shorter clips"):
        read_frames(path, 10)
    assert len(read_frames(path, 5)[0]) == 10


def test_frames_are_let_go_of_at_once(tmp_path: Path) -> None:
    """In cycles of references they would wait for the garbage collector, which does not see their size."""
    path = record(tmp_path / "a.mkv", [numbered(i) for i in range(100)], codec="mpeg4")
    left = []
    gc.disable()
    try:
        for _ in range(3):
            gc.collect()
            read_frames(path, 10)
            left.append(gc.collect())
    finally:
        gc.enable()
    # Each time would leave as many; more at one time are of another thread, which an earlier test left.
    assert min(left) < 100, "objects that only the collector could free"


def test_a_late_span_is_decoded_from_the_key_frame_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(tmp_path / "long.mp4", [numbered(i) for i in range(200)], gop=10)
    decoded = 0
    original = video.decoded_frames

    def counting(*arguments: object) -> object:
        nonlocal decoded
        for frame in original(*arguments):  # type: ignore[arg-type]
            decoded += 1
            yield frame

    monkeypatch.setattr(video, "decoded_frames", counting)
    assert numbers(read_frames(path, 10, (15.5, 16.0))[0]) == [155, 156, 157, 158, 159]
    assert decoded <= 20


def test_pictures_come_one_at_a_time(tmp_path: Path) -> None:
    path = record(tmp_path / "clip.mp4", [numbered(i) for i in range(20)])
    frames = iterate_frames(path, 10)
    assert [(round(time, 3), number_of(picture)) for time, picture in (next(frames), next(frames))] == [
        (0.05, 0),
        (0.15, 1),
    ]
    frames.close()


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_are_turned_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    import av

    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a display matrix")
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32], stored[:24, 32:], stored[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    path = record(tmp_path / "phone.mp4", [stored] * 3, rotation=(degrees, mirrored))
    upright = np.rot90(stored, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    pictures, _ = read_frames(path, 10)
    assert pictures.shape == (3, *upright.shape)
    assert np.abs(pictures[0].astype(int) - upright).mean() < 5
    # Fractions are of the upright picture.
    quarter, _ = read_frames(path, 10, crop=(0.5, 0.0, 1.0, 0.5))
    half = (upright.shape[0] // 2, upright.shape[1] // 2)
    assert quarter.shape[1:3] == half
    assert np.abs(quarter[0].astype(int) - upright[: half[0], half[1] :]).mean() < 5


def test_pictures_are_cropped_and_scaled_down(tmp_path: Path) -> None:
    path = record(tmp_path / "clip.mp4", [numbered(i) for i in range(4)])
    small, _ = read_frames(path, 10, largest_side=64)
    assert small.shape == (4, HEIGHT // 2, 64, 3)
    assert numbers(small) == [0, 1, 2, 3]
    assert read_frames(path, 10, largest_side=1000)[0].shape == (4, HEIGHT, WIDTH, 3)
    left, _ = read_frames(path, 10, crop=(0.0, 0.0, 0.25, 1.0), largest_side=24)
    assert left.shape == (4, 24, 16, 3)
    assert (left[3] > 200).mean() > 0.9  # bits 0 and 1 are set
    assert (left[0] < 50).mean() > 0.9


def test_a_size_that_changes_midway_is_scaled_to_the_first(tmp_path: Path) -> None:
    first = record(tmp_path / "a.ts", [numbered(i) for i in range(5)])
    wide = [np.repeat(np.repeat(numbered(i), 2, axis=0), 2, axis=1) for i in range(5, 10)]
    second = record(tmp_path / "b.ts", wide, [0.5 + i / 10 for i in range(5)])
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    pictures, _ = read_frames(joined, 10)
    assert pictures.shape[1:] == (HEIGHT, WIDTH, 3)
    assert numbers(pictures)[-1] == 9


# --- Sound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "codec", "lossless"),
    [
        ("wav", "pcm_s16le", True),
        ("flac", "flac", True),
        ("mkv", "pcm_f32le", True),
        ("avi", "pcm_u8", False),
        ("mp3", "libmp3lame", False),
        ("m4a", "aac", False),
        ("webm", "libopus", False),
    ],
)
def test_every_container_gives_the_samples_due(
    tmp_path: Path, ending: str, codec: str, lossless: bool
) -> None:
    rate = 48000 if codec == "libopus" else 16000
    path = record(tmp_path / f"sound.{ending}", sound=chirp(3, rate), rate=rate, sound_codec=codec)
    info = probe(path)
    assert (info.has_video, info.has_audio, info.audio_rate) == (False, True, rate)
    assert info.duration == pytest.approx(3.0, abs=0.1)
    wave = read_audio(path)
    assert wave.dtype == np.float32
    # Lossy codecs pad their last packet.
    assert abs(len(wave) - 48000) <= (0 if lossless else 2400)
    truth = chirp(3)
    heard = wave[:48000]
    if codec == "libmp3lame":
        assert best_shift(heard, truth[: len(heard)]) == 0
    tolerance = 1e-4 if lossless else 0.06
    assert np.abs(heard - truth[: len(heard)])[800:-800].max() < tolerance
    part = read_audio(path, span=(1.25, 2.0))
    assert len(part) == 12000
    # Matroska's clock ticks in milliseconds, at 700 Hz a third of the amplitude.
    assert abs(best_shift(part, truth[20000:32000])) <= (16 if ending in ("webm", "mkv") else 0)
    assert len(read_audio(path, span=(2.5, 9.0))) == pytest.approx(8000, abs=0 if lossless else 2400)
    with pytest.raises(MediaError, match=rf"sound.{ending}: no sound can be decoded from 7 s to 8 s"):
        read_audio(path, span=(7.0, 8.0))
    assert read_frames(path, 10) is None


def test_sound_of_many_channels(tmp_path: Path) -> None:
    """More than eight planes, of which PyAV does not find the end."""
    import av

    path, wave, channels = tmp_path / "array.mka", chirp(2.0, 48000), 16
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libopus", rate=48000, layout="hexadecagonal", options={"mapping_family": "255"}
        )
        for at in range(0, len(wave), 960):
            # Every other channel is silent.
            block = np.kron(wave[at : at + 960], np.tile([1, 0], channels // 2)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="hexadecagonal")
            frame.sample_rate, frame.pts = 48000, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sound, mono = read_audio(path, 48000), wave / 2
    assert len(sound) == pytest.approx(len(mono), abs=1000)
    n = min(len(sound), len(mono))
    assert np.corrcoef(sound[:n], mono[:n])[0, 1] > 0.98
    assert sound.std() == pytest.approx(mono.std(), rel=0.05)


def best_shift(ours: np.ndarray, truth: np.ndarray, reach: int = 40) -> int:
    """By how many samples `ours` comes late."""
    inner = slice(reach, -reach)
    errors = {s: float(np.abs(np.roll(ours, -s) - truth)[inner].mean()) for s in range(-reach, reach + 1)}
    return min(errors, key=errors.__getitem__)


def test_a_span_is_cut_to_the_sample(tmp_path: Path) -> None:
    path = record(tmp_path / "long.flac", sound=ramp(9), sound_codec="flac")
    whole = read_audio(path)
    assert np.array_equal(read_audio(path, span=(7.12345, 8.5)), whole[round(7.12345 * 16000) :][:22025])
    stereo = record(tmp_path / "stereo.wav", sound=np.stack([ramp(1), -ramp(1)]))
    assert np.abs(read_audio(stereo)).max() < 1e-4  # the mean of both


def test_resampling_keeps_time_and_level() -> None:
    for rate, to in ((44100, 16000), (48000, 16000), (8000, 16000)):
        tone = np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate).astype(np.float32)
        ours = resample(tone, rate, to)
        assert len(ours) == 2 * to
        assert np.abs(ours - np.sin(2 * np.pi * 440 * np.arange(2 * to) / to))[200:-200].max() < 1e-3
    too_high = np.sin(2 * np.pi * 15000 * np.arange(96000) / 48000).astype(np.float32)
    assert np.abs(resample(too_high, 48000, 16000))[200:-200].max() < 1e-2


def test_streams_that_begin_later_stay_in_time(tmp_path: Path) -> None:
    pictures = [numbered(i) for i in range(20)]
    late_sound = record(tmp_path / "a.mkv", pictures, sound=ramp(1.5) + 0.25, sound_begin=0.5)
    wave = read_audio(late_sound)
    assert len(wave) == 32000
    assert np.abs(wave[:7984]).max() == 0
    assert np.allclose(wave[8000:], ramp(1.5) + 0.25, atol=1e-3)
    part = read_audio(late_sound, span=(0.25, 1.0))
    assert len(part) == 12000
    assert np.array_equal(part, wave[4000:16000])

    late_pictures = record(tmp_path / "b.mkv", pictures, [0.5 + i / 10 for i in range(20)], sound=ramp(2.5))
    assert numbers(read_frames(late_pictures, 10)[0]) == [0] * 5 + list(range(20))
    assert numbers(read_frames(late_pictures, 10, (0.2, 0.8))[0]) == [0, 0, 0, 0, 1, 2]

    # Both begin at 10 s on the file's clock: time 0 is where the recording begins.
    times = [10 + i / 10 for i in range(20)]
    both = record(tmp_path / "c.mkv", pictures, times, sound=chirp(2), sound_begin=10.0)
    assert numbers(read_frames(both, 10, (0.5, 1.0))[0]) == [5, 6, 7, 8, 9]
    assert len(read_audio(both)) == 32000
    assert abs(best_shift(read_audio(both, span=(0.5, 1.0)), chirp(2)[8000:16000])) <= 16


# --- Recordings that are not whole ---------------------------------------------------------------


def test_corrupt_pictures_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = record(tmp_path / "clip.mov", [numbered(i) for i in range(30)], codec="png", gop=1)
    assert spoil(path, "video", range(10, 13)) == 3
    faults: Counter[str] = Counter()
    pictures, _ = read_frames(path, 10, faults=faults)
    # The last whole picture is held.
    assert numbers(pictures) == [*range(10), 9, 9, 9, *range(13, 30)]
    assert faults == {"video": 3}
    assert numbers(read_frames(path, 10, (1.4, 1.8))[0]) == [14, 15, 16, 17]


def test_corrupt_sound_becomes_silence_in_its_place(tmp_path: Path) -> None:
    path = record(tmp_path / "sound.mka", sound=chirp(3), sound_codec="flac")
    spoiled = spoil(path, "audio", range(4, 7))
    faults: Counter[str] = Counter()
    wave = read_audio(path, faults=faults)
    assert len(wave) == 48000
    assert 0 < faults["audio"] <= spoiled
    silent = np.flatnonzero(np.abs(wave) < 1e-6)
    assert len(silent) > 3000
    damaged = np.flatnonzero(np.abs(wave - chirp(3)) > 2e-3)
    assert damaged.max() - damaged.min() < 4 * 4608 + 2000  # around the three packets alone


@pytest.mark.parametrize("ending", ["mkv", "avi", "flv", "ts"])
def test_what_a_truncated_recording_still_holds_is_read(tmp_path: Path, ending: str) -> None:
    codec = {"avi": "mpeg4", "flv": "flv"}.get(ending, "libx264")
    sound_codec = "libmp3lame" if ending in ("flv", "ts") else "pcm_s16le"
    path = tmp_path / f"cut.{ending}"
    sound = chirp(6, 44100)
    record(
        path, [numbered(i) for i in range(60)], codec=codec, sound=sound, rate=44100, sound_codec=sound_codec
    )
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    pictures, _ = read_frames(path, 10)
    assert 20 < len(pictures) < 40
    assert numbers(pictures)[:20] == list(range(20))
    wave = read_audio(path)
    assert 2 < len(wave) / 16000 < 4
    assert abs(len(wave) / 16000 - len(pictures) / 10) < 0.6


def test_a_stream_that_turns_up_midway_is_passed_over(tmp_path: Path) -> None:
    """One flipped byte in FLV makes a packet of AAC one of another codec, and so of another stream."""
    path = record(
        tmp_path / "a.flv", [numbered(i) for i in range(99)], codec="flv", sound=ramp(9.9), sound_codec="aac"
    )
    pictures, sound = numbers(read_frames(path, 10)[0]), read_audio(path)
    content = bytearray(path.read_bytes())
    content[tags(content, 8)[-20] + 11] ^= 0x80
    path.write_bytes(content)
    assert numbers(read_frames(path, 10)[0]) == pictures
    found = read_audio(path)
    assert len(found) == len(sound)
    assert found[-8000:].mean() == pytest.approx(sound[-8000:].mean(), abs=0.005)


def test_files_that_are_no_recordings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"nowhere.mp4: no such file"):
        probe(tmp_path / "nowhere.mp4")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for call in (probe, read_audio, lambda path: read_frames(path, 10)):
        with pytest.raises(MediaError, match=r"empty.mp4: not a recording that can be read"):
            call(empty)
    text = tmp_path / "notes.wav"
    text.write_text("not sound at all\n" * 100)
    with pytest.raises(MediaError, match=r"notes.wav: not a recording that can be read"):
        read_audio(text)
    with pytest.raises(MediaError, match=r"not a recording"):
        probe(tmp_path)
    headless = record(tmp_path / "cut.mp4", [numbered(i) for i in range(30)])
    # An MP4's index comes last.
    headless.write_bytes(headless.read_bytes().partition(b"moov")[0])
    with pytest.raises(MediaError, match=r"cut.mp4: not a recording that can be read"):
        probe(headless)
    silent = record(tmp_path / "silent.wav", sound=chirp(0.1))
    silent.write_bytes(silent.read_bytes()[:-3200])
    with pytest.raises(MediaError, match=r"silent.wav: no sound can be decoded"):
        read_audio(silent)
    with pytest.raises(MediaError, match=r"the span from 2 s to 2 s is empty"):
        read_audio(silent, span=(2.0, 2.0))
    with pytest.raises(ValueError, match="fps is 0; it must be above 0"):
        read_frames(headless, 0)


def test_a_playlist_cannot_fetch_anything(tmp_path: Path) -> None:
    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        playlist = tmp_path / "clip.m3u8"
        url = f"http://127.0.0.1:{server.server_port}/clip.ts"
        playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n")
        with pytest.raises(MediaError):
            read_frames(playlist, 10)
        with pytest.raises(MediaError, match="no such file"):
            probe(url)
        server.shutdown()
        thread.join()
    assert asked == []


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libmp3lame", rate=16000, layout="mono")
        cover = container.add_stream("png")
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "rgb24"
        from media_support import encode_sound

        packets = encode_sound(audio, chirp(1)[None], 16000, 0.0)
        frame = av.VideoFrame.from_ndarray(numbered(5), format="rgb24")
        for packet in [*cover.encode(frame), *cover.encode(), *packets]:
            container.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert probe(path).has_video is False
    assert len(read_audio(path)) == pytest.approx(16000, abs=1200)
    assert read_frames(path, 10) is None


def test_without_pyav_the_way_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "awtpn-at-scale\[extract\]"'):
        probe("clip.mp4")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_was_read_is_freed_in_a_fork(tmp_path: Path) -> None:
    """A frame that kept threads would wait there for ever: a fork has none of its parent's threads."""
    path = record(tmp_path / "a.mkv", [numbered(i) for i in range(8)])
    gc.collect()
    gc.disable()
    try:
        assert read_frames(path, 10) is not None
        in_fork(gc.collect)
    finally:
        gc.enable()


# --- Real recordings -----------------------------------------------------------------------------


@pytest.mark.skipif(not CLIPS, reason=f"no clips in {DATA}")
@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.name)
def test_real_clips_are_as_long_as_they_say(path: Path) -> None:
    info = probe(path)
    assert info.has_audio
    assert info.has_video
    pictures, times = read_frames(path, 10, largest_side=160)
    # FLV's duration does not count the last picture (33 ms) and sound packets (26 ms each).
    assert abs(len(pictures) - info.duration * 10) < 1
    assert len(times) == len(pictures)
    assert 30 < pictures.mean() < 225
    wave = read_audio(path)
    assert len(wave) / 16000 == pytest.approx(info.duration, abs=0.06)
    assert 0.01 < np.abs(wave).max() <= 1
    assert np.array_equal(read_frames(path, 10, (1.0, 1.5), largest_side=160)[0], pictures[10:15])
