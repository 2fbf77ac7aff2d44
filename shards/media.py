"""Sound and pictures of recordings, cut by their timestamps: PyAV decodes any container FFmpeg knows.

Time 0 of a recording is where its earliest stream begins (or its clock's 0, if a stream begins before that,
as the priming of AAC and Opus does), so that the same span of both streams shows the same moment:

- sound before its stream begins, and where packets are missing, is silence;
- the picture at a time is the frame shown then: the last that began by that time (or the first of all).

Times are as exact as the container's timestamps: 1 ms in FLV and Matroska, a sample in most others. AVI tells
only the order of decoding: where pictures refer to later ones, they come a picture or two late.

Packets that cannot be decoded are passed over and counted. A recording fails only if nothing of it decodes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import inf, isinf
from pathlib import Path
from typing import Any

import numpy as np

# Lossy codecs need some packets before a point to decode it well (mp3's reservoir, Opus' 80 ms).
AUDIO_PREROLL_S = 0.5
# Timestamps are rounded (FLV's to 1 ms) and jitter; up to here packets count as adjacent.
AUDIO_JITTER_S = 0.03
# A clock that jumps further between two frames is broken; joined transport streams and lost bytes do that.
LONGEST_JUMP_S = 60.0
# Read errors in a row after which the rest of a file is given up.
MOST_READ_ERRORS = 100
SAME_TIME_S = 1e-6
RESAMPLE_BLOCK = 1 << 16

Span = tuple[float, float]
Crop = tuple[float, float, float, float]


class MediaError(ValueError):
    """A recording that cannot be used as asked; names the file and the cause."""


@dataclass(frozen=True)
class MediaInfo:
    """What a recording holds, before decoding.

    Attributes:
        duration: seconds from time 0 to the end of its longest stream; 0 if it holds no packets.
        has_audio: it has a stream of sound.
        has_video: it has a stream of pictures (cover art in an audio file is none).
        audio_rate: sampling rate of the sound in Hz, or None.
        video_rate: average frames per second, or None.
    """

    duration: float
    has_audio: bool
    has_video: bool
    audio_rate: int | None = None
    video_rate: float | None = None


def probe(path: str | Path) -> MediaInfo:
    """What `path` holds; reads headers, and all packets only where they do not tell the duration.

    Raises:
        MediaError: no such file, or not a recording.
    """
    with _open(path) as container:
        audio, video = _stream(container, "audio"), _stream(container, "video")
        duration = _declared_duration(container)
        if duration is None:
            ends = [
                float((packet.pts + (packet.duration or 0)) * packet.time_base)
                for packet in _packets(container, [s for s in (audio, video) if s is not None], Counter())
                if packet.pts is not None
            ]
            duration = max(ends, default=_origin(container)) - _origin(container)
        return MediaInfo(
            duration=max(0.0, duration),
            has_audio=audio is not None,
            has_video=video is not None,
            audio_rate=audio.codec_context.sample_rate if audio is not None and audio.codec_context else None,
            video_rate=float(video.average_rate) if video is not None and video.average_rate else None,
        )


def read_audio(
    path: str | Path, rate: int = 16000, span: Span | None = None, faults: Counter[str] | None = None
) -> np.ndarray:
    """The sound of a recording, as the mean of its channels.

    Args:
        path: the file.
        rate: samples per second wanted.
        span: (begin, end) in seconds; None is from time 0 to the end. What lies past the end is left off.
        faults: packets that could not be decoded are added to its "audio".

    Returns:
        float32 [samples], in [-1, 1] but for what resampling overshoots.

    Raises:
        MediaError: no such file, no audio stream, a span that is empty or past the end, or nothing decodes.
    """
    begin, end = _bounds(path, span)
    faults = Counter() if faults is None else faults
    for seek in [True, False] if begin > AUDIO_PREROLL_S else [False]:
        met: Counter[str] = Counter()
        with _open(path) as container:
            stream = _decodable(container, "audio", path)
            origin = _origin(container)
            if seek and not _seek(container, stream, origin + begin - AUDIO_PREROLL_S):
                continue
            frames = _frames(container, stream, met)
            line = _assemble(frames, origin, begin, end, _declared_duration(container))
        # Some formats seek by guessing; where the guess fell behind the span all is decoded.
        if seek and (line is None or line.first > begin):
            continue
        faults["audio"] += met.total()
        if line is not None and len(line.samples):
            return resample(line.samples, line.rate, rate)
        raise MediaError(f"{path}: no sound can be decoded{_where(span)}{_corrupt(met)}")
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True)
class _Line:
    """Sound on the time line: samples [n] from the span's begin, their rate, seconds of the first decoded."""

    samples: np.ndarray
    rate: int
    first: float


def _assemble(
    frames: Iterable[Any], origin: float, begin: float, end: float, limit: float | None
) -> _Line | None:
    """Decoded frames put where their timestamps say, silence between them; None if there are none."""
    chunks: list[np.ndarray] = []
    native, first, at = 0, 0.0, 0  # `at`: samples from `begin` on that are in `chunks`
    for frame in frames:
        mono = _mono(frame)
        if native and frame.sample_rate != native:
            mono = resample(mono, frame.sample_rate, native)
        began, native = bool(native), native or frame.sample_rate
        due = at if frame.time is None else round((float(frame.time) - origin - begin) * native)
        latest = min(at / native + LONGEST_JUMP_S, inf if limit is None else limit + 1.0 - begin) * native
        if not began:
            first, at = begin + due / native, min(0, due)
        elif abs(due - at) <= AUDIO_JITTER_S * native or due > latest or due < at - len(mono):
            # Adjacent; or its time is broken: past the recording's end, or before what it follows.
            due = at
        if due > at:
            missing = due - at if isinf(end) else min(due - at, round((end - begin) * native))
            at = _append(chunks, np.zeros(missing, np.float32), at)
        at = _append(chunks, mono[at - due :] if due < at else mono, at)
        if begin + at / native >= end:
            break
    if not native:
        return None
    samples = np.concatenate(chunks)
    return _Line(samples if isinf(end) else samples[: round((end - begin) * native)], native, first)


def _append(chunks: list[np.ndarray], samples: np.ndarray, at: int) -> int:
    """Add the part of `samples` that does not lie before the time line's begin; returns where it now ends."""
    chunks.append(samples[max(0, -at) :])
    return at + len(samples)


def _mono(frame: Any) -> np.ndarray:
    """Mean over channels [samples] of an audio frame of any sample format, scaled to [-1, 1]."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "u":
        values = (values.astype(np.float32) - 128.0) / 128.0
    elif values.dtype.kind == "i":
        values = values.astype(np.float64) / (np.iinfo(values.dtype).max + 1.0)
    return values.mean(axis=0, dtype=np.float64).astype(np.float32)


def resample(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """`samples` float32 [n] at `rate` Hz as [round(n * to / rate)] at `to` Hz, band-limited (swresample)."""
    import av

    if rate == to or not len(samples):
        return samples
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=to)
    out = []
    for i in range(0, len(samples), RESAMPLE_BLOCK):
        frame = av.AudioFrame.from_ndarray(
            samples[None, i : i + RESAMPLE_BLOCK], format="fltp", layout="mono"
        )
        frame.sample_rate = rate
        out += [part.to_ndarray()[0] for part in resampler.resample(frame)]
    out += [part.to_ndarray()[0] for part in resampler.resample(None)]
    wanted = round(len(samples) * to / rate)
    joined = np.concatenate(out)[:wanted] if out else np.zeros(0, np.float32)
    return np.pad(joined, (0, wanted - len(joined))).astype(np.float32, copy=False)


def read_frames(
    path: str | Path,
    fps: float,
    span: Span | None = None,
    crop: Crop | None = None,
    largest_side: int | None = None,
    faults: Counter[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """All pictures of `iterate_frames` at once.

    Returns:
        (uint8 RGB [N, H, W, 3], float64 times [N] in seconds from the span's begin).

    Raises:
        MediaError: as `iterate_frames`.
    """
    times, frames = zip(*iterate_frames(path, fps, span, crop, largest_side, faults), strict=True)
    return np.stack(frames), np.asarray(times, np.float64)


def iterate_frames(
    path: str | Path,
    fps: float,
    span: Span | None = None,
    crop: Crop | None = None,
    largest_side: int | None = None,
    faults: Counter[str] | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """The pictures shown at times (i + 1/2) / fps from the span's begin: N = round(duration * fps), or 1.

    So a variable frame rate becomes a constant one, and a rate other than the file's repeats or skips frames.
    One frame is held at a time, and decoding begins at the key frame before the span.

    Args:
        path: the file.
        fps: pictures per second wanted.
        span: (begin, end) in seconds; None is from time 0 to the end. What lies past the end is left off.
        crop: (left, top, right, bottom) as fractions of the upright frame.
        largest_side: pictures whose longer side (after cropping) has more pixels are scaled down to it.
        faults: packets that could not be decoded are added to its "video".

    Yields:
        (seconds from the span's begin, uint8 RGB [H, W, 3], upright by the display matrix); all of the first
        one's size. Pixels are taken as square.

    Raises:
        MediaError: no such file, no video stream, a span that is empty or past the end, or nothing decodes.
    """
    begin, end = _bounds(path, span)
    if fps <= 0:
        raise ValueError(f"fps is {fps}; it must be above 0")
    faults = Counter() if faults is None else faults
    for seek in [True, False] if begin > 0 else [False]:
        met: Counter[str] = Counter()
        with _open(path) as container:
            stream = _decodable(container, "video", path)
            origin = _origin(container)
            if seek and not _seek(container, stream, origin + begin):
                continue
            frames = _frames(container, stream, met)
            stretches = _shown(frames, stream, origin, _declared_duration(container))
            first = next(stretches, None)
            if seek and (first is None or first[0] > begin):
                continue
            count = 0
            if first is not None and first[0] < end:
                for time, picture in _sampled(chain([first], stretches), fps, begin, end, crop, largest_side):
                    yield time, picture
                    count += 1
        faults["video"] += met.total()
        if not count:
            raise MediaError(f"{path}: no picture can be decoded{_where(span)}{_corrupt(met)}")
        return


def _sampled(
    stretches: Iterable[tuple[float, float, Any]],
    fps: float,
    begin: float,
    end: float,
    crop: Crop | None,
    largest_side: int | None,
) -> Iterator[tuple[float, np.ndarray]]:
    """(time, picture) at each sampling time in the span and the stretches; the last frame if none is."""
    count = 0
    size: tuple[int, int] | None = None
    for _, stop, frame in stretches:
        picture: np.ndarray | None = None
        # A picture that begins where a sampling time lies is the one shown, however the times are rounded.
        while (time := (count + 0.5) / fps) + SAME_TIME_S < min(stop, end) - begin:
            if picture is None:
                picture = _picture(frame, crop, largest_side, size)
                size = size or (picture.shape[0], picture.shape[1])
            yield time, picture
            count += 1
        if begin + time + SAME_TIME_S >= end:
            break
    if not count and stop > begin:
        yield 0.5 / fps, _picture(frame, crop, largest_side, None)


def _shown(
    frames: Iterable[Any], stream: Any, origin: float, limit: float | None
) -> Iterator[tuple[float, float, Any]]:
    """(from, until, frame) in seconds: each frame is shown until the next, the last for its own duration.

    Where that is not told, it is as long as the one before. `limit`: how long the recording says to be.
    """
    period = 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
    held: Any = None
    since = 0.0
    for frame in frames:
        stamp = frame.pts if frame.pts is not None else frame.dts
        time = since + period if stamp is None else float(stamp * frame.time_base) - origin
        if held is not None:
            # A time that goes back, or past the recording's end, is broken; the frame still is the next one.
            latest = min(since + LONGEST_JUMP_S, inf if limit is None else limit + 1.0)
            time = time if since < time <= latest else since + period
            period = time - since
            yield since, time, held
        held, since = frame, time
    if held is not None:
        own = float(held.duration * held.time_base) if held.duration else period
        yield since, since + own, held


def _picture(
    frame: Any, crop: Crop | None, largest_side: int | None, size: tuple[int, int] | None
) -> np.ndarray:
    """RGB [H, W, 3] of a frame: upright, cropped, of `size` (H, W) if given, else within `largest_side`."""
    matrix = _display_matrix(frame)
    turned = abs(matrix[0, 0]) < abs(matrix[0, 1])
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    left, top, right, bottom = crop or (0.0, 0.0, 1.0, 1.0)
    if size is not None:
        scale_x, scale_y = size[1] / (width * (right - left)), size[0] / (height * (bottom - top))
    else:
        side = max(width * (right - left), height * (bottom - top))
        scale_x = scale_y = min(1.0, largest_side / side) if largest_side else 1.0
    width, height = max(1, round(width * scale_x)), max(1, round(height * scale_y))
    stored = (height, width) if turned else (width, height)
    rgb = frame.reformat(*stored, format="rgb24", interpolation="AREA").to_ndarray()
    if turned:
        rgb = rgb.swapaxes(0, 1)
    # In the turned picture x comes from the stored y (matrix c) and y from the stored x (matrix b).
    if (matrix[1, 0] if turned else matrix[0, 0]) < 0:
        rgb = rgb[:, ::-1]
    if (matrix[0, 1] if turned else matrix[1, 1]) < 0:
        rgb = rgb[::-1]
    rows, columns = size or (
        max(1, round(height * (bottom - top))),
        max(1, round(width * (right - left))),
    )
    y = min(round(height * top), height - rows)
    x = min(round(width * left), width - columns)
    return np.ascontiguousarray(rgb[y : y + rows, x : x + columns])


def _display_matrix(frame: Any) -> np.ndarray:
    """[[a, b], [c, d]] of the display matrix: x' = a x + c y and y' = b x + d y, with y downwards."""
    from av.sidedata.sidedata import Type

    stored = frame.side_data.get(Type.DISPLAYMATRIX)
    if stored is None:
        return np.eye(2, dtype=np.int64)
    return np.frombuffer(bytes(stored), np.int32).reshape(3, 3)[:2, :2].astype(np.int64)


def _frames(container: Any, stream: Any, faults: Counter[str]) -> Iterator[Any]:
    """Decoded frames of a stream from where the container stands; what fails to decode is counted."""
    import av

    for packet in _packets(container, [stream], faults):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            faults["packets"] += 1
            continue
        yield from frames


def _packets(container: Any, streams: list[Any], faults: Counter[str]) -> Iterator[Any]:
    """Packets of the streams, going on after read errors; ends with the empty ones that flush decoders."""
    import av

    for _ in range(MOST_READ_ERRORS):
        try:
            yield from container.demux(streams)
            return
        except av.FFmpegError:
            faults["reads"] += 1


def _open(path: str | Path) -> Any:
    try:
        import av
    except ImportError:
        raise ImportError('reading recordings needs PyAV: pip install "awtpn-at-scale[extract]"') from None
    try:
        # Absolute, so that no name is taken for a URL; what a file names (a playlist's entries) FFmpeg takes
        # from files alone. No options: PyAV 15 to 17 crash on them where streams turn up late, as in FLV.
        return av.open(os.path.abspath(path), metadata_errors="replace")
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path}: not a recording that can be read ({error})") from None


def _stream(container: Any, kind: str) -> Any:
    """The stream of a kind that players would take, or None; cover art is not a video."""
    from av.stream import Disposition

    streams = [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]
    best = container.streams.best(kind)
    return next(
        (s for s in streams if best is not None and s.index == best.index), streams[0] if streams else None
    )


def _decodable(container: Any, kind: str, path: str | Path) -> Any:
    stream = _stream(container, kind)
    if stream is None:
        raise MediaError(f"{path}: has no {kind} stream")
    if stream.codec_context is None:
        raise MediaError(f"{path}: its {kind} stream's codec is not known to this FFmpeg")
    # Clips are decoded side by side; and beside a thread's broken packet, good ones would be lost.
    stream.codec_context.thread_count = 1
    return stream


def _seek(container: Any, stream: Any, to: float) -> bool:
    """Seek to the key frame before `to` (seconds of the container's clock); False where it cannot be done."""
    import av

    try:
        container.seek(int(to / stream.time_base), stream=stream)
    except av.FFmpegError:
        # The container now stands anywhere.
        return False
    return True


def _origin(container: Any) -> float:
    """Time 0 of the recording on the container's clock, in seconds."""
    return max(0.0, (container.start_time or 0) / 1e6)


def _declared_duration(container: Any) -> float | None:
    """Seconds from time 0 to the end, as headers tell."""
    if container.duration is None or container.duration <= 0:
        return None
    return (container.duration + (container.start_time or 0)) / 1e6 - _origin(container)


def _bounds(path: str | Path, span: Span | None) -> Span:
    begin, end = span if span is not None else (0.0, float("inf"))
    begin = max(0.0, begin)
    if not end > begin:
        raise MediaError(f"{path}: the span from {begin:g} s to {end:g} s is empty")
    return begin, end


def _where(span: Span | None) -> str:
    return "" if span is None else f" from {span[0]:g} s to {span[1]:g} s"


def _corrupt(faults: Counter[str]) -> str:
    return f" ({faults.total()} packets are corrupt)" if faults.total() else ""
