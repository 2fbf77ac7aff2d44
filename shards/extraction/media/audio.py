"""Sound: decoded frames put on one timeline, mixed to one channel, resampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import Any

import numpy as np

from shards.extraction.media.container import (
    Clock,
    ConstantStream,
    MediaError,
    Span,
    bounds_of,
    clock_of,
    decoded_frames,
    describe_faults,
    describe_span,
    open_container,
    open_stream,
    seek_to,
)

# Lossy codecs need some packets before a point to decode it well (mp3's reservoir, Opus' 80 ms).
AUDIO_PREROLL_S = 0.5
# Timestamps are rounded (FLV's to 1 ms) and jitter; up to here packets count as adjacent.
AUDIO_JITTER_S = 0.03
RESAMPLE_BLOCK = 1 << 16
# Some codecs (AC-3, AMR) turn silence into noise below one step of 16-bit sound.
LEAST_CHANGE = 1 / 32768
# Channels of which FFmpeg lists the planes with an end (AV_NUM_DATA_POINTERS).
MOST_PLANES = 8


def read_audio(
    path: str | Path,
    rate: int = 16000,
    span: Span | None = None,
    faults: Counter[str] | None = None,
    keep_constant: bool = True,
) -> np.ndarray | None:
    """The sound of a recording, as the mean of its channels.

    Args:
        path: the file.
        rate: samples per second wanted.
        span: (begin, end) in seconds; None is from time 0 to the end. It is cut at the recording's end.
        faults: packets that could not be decoded are added to its "audio".
        keep_constant: also return sound that never changes.

    Returns:
        float32 [samples], in [-1, 1] except where resampling overshoots; None if there is no audio stream.

    Raises:
        ConstantStream: the sound of the span never changes, and `keep_constant` is off.
        MediaError: no such file, a span that is empty or past the end, or nothing decodes.
    """
    begin, end = bounds_of(path, span)
    faults = Counter() if faults is None else faults
    for seek in [True, False] if begin > AUDIO_PREROLL_S else [False]:
        errors: Counter[str] = Counter()
        with open_container(path) as container:
            stream = open_stream(container, "audio", path)
            if stream is None:
                return None
            clock = clock_of(container)
            if seek and not seek_to(container, stream, clock.origin + begin - AUDIO_PREROLL_S):
                continue
            frames = decoded_frames(container, stream, errors)
            timeline = _assemble(frames, clock, begin, end, from_start=not seek)
        # Some formats seek by guessing. Where the guess is past the span's begin, decode from the start.
        if seek and (timeline is None or timeline.first > begin):
            continue
        faults["audio"] += errors.total()
        if timeline is not None and len(timeline.samples):
            if not keep_constant and _is_constant(timeline.samples):
                raise ConstantStream(f"{path}: its sound{describe_span(span)} never changes: digital silence")
            return resample(timeline.samples, timeline.rate, rate)
        raise MediaError(f"{path}: no sound can be decoded{describe_span(span)}{describe_faults(errors)}")
    raise AssertionError("the last attempt returns or raises")


@dataclass(frozen=True)
class _Timeline:
    """Samples [n] from the span's begin on, their rate, and the time of the first decoded one in seconds."""

    samples: np.ndarray
    rate: int
    first: float


def _assemble(
    frames: Iterable[Any], clock: Clock, begin: float, end: float, from_start: bool
) -> _Timeline | None:
    """Decoded frames put where their timestamps say, silence between them; None if there are none.

    Args:
        frames: of a stream, in order.
        clock: of the recording.
        begin, end: of the span, in seconds.
        from_start: the first frame is the stream's first.
    """
    chunks: list[np.ndarray] = []
    native, first, at = 0, 0.0, 0  # `at`: samples from `begin` on that are in `chunks`
    for frame in frames:
        mono = _mono(frame)
        if native and frame.sample_rate != native:
            mono = resample(mono, frame.sample_rate, native)
        began, native = bool(native), native or frame.sample_rate
        time = begin + at / native if frame.time is None else float(frame.time) - clock.origin
        if not began:
            first = 0.0 if from_start and not clock.can_begin(time) else time
            due = round((first - begin) * native)
            at = min(0, due)
        else:
            due, latest = round((time - begin) * native), clock.latest(begin + at / native)
            if abs(due - at) <= AUDIO_JITTER_S * native or time > latest or due < at - len(mono):
                # Adjacent; or its time is wrong: past the recording's end, or before the frame it follows.
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
    return _Timeline(samples if isinf(end) else samples[: round((end - begin) * native)], native, first)


def _is_constant(samples: np.ndarray) -> bool:
    # Tested before resampling, which rings at the ends of a constant other than 0.
    return len(samples) > 1 and float(samples.max()) - float(samples.min()) < LEAST_CHANGE


def _append(chunks: list[np.ndarray], samples: np.ndarray, at: int) -> int:
    """Add the part of `samples` that does not lie before the timeline's begin; returns where it now ends."""
    chunks.append(samples[max(0, -at) :])
    return at + len(samples)


def _mono(frame: Any) -> np.ndarray:
    """Mean over channels [samples] of an audio frame of any sample format, scaled to [-1, 1]."""
    channels = frame.layout.nb_channels
    if frame.format.is_planar and channels > MOST_PLANES:
        frame = _interleaved(frame)
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, channels).T
    if values.dtype.kind == "u":
        values = (values.astype(np.float32) - 128.0) / 128.0
    elif values.dtype.kind == "i":
        values = values.astype(np.float64) / (np.iinfo(values.dtype).max + 1.0)
    return values.mean(axis=0, dtype=np.float64).astype(np.float32)


def _interleaved(frame: Any) -> Any:
    """A frame of many channels as one plane: PyAV crashes on more than eight planes."""
    import av

    try:
        [whole] = av.AudioResampler(format=frame.format.packed).resample(frame)
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(f"sound of {frame.layout.nb_channels} channels cannot be read ({error})") from None
    return whole


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
