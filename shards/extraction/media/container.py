"""Open a recording: its streams, its clock, and the frames that can be decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, isinf
from pathlib import Path
from typing import Any

from shards.safe_io.git_lfs import refuse_pointer

# A clock that jumps further between two frames is wrong; joined transport streams and lost bytes cause that.
# Where a header says how long the recording is, any jump within it is a still picture or a pause.
LONGEST_JUMP_S = 60.0
# Read errors in a row after which the rest of a file is not read.
MOST_READ_ERRORS = 100

Span = tuple[float, float]


class MediaError(ValueError):
    """A recording that cannot be used as asked; names the file and the cause."""


class ConstantStream(MediaError):
    """A stream that never changes: digital silence, or identical pictures."""


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


@dataclass(frozen=True)
class Clock:
    """A recording's timeline, and which times of frames are plausible.

    Attributes:
        origin: its time 0 on the container's clock, in seconds.
        end: seconds from there to its end, by its headers; inf where they do not say.
        longest_jump: seconds by which the times of two frames can differ.
    """

    origin: float
    end: float = inf
    longest_jump: float = LONGEST_JUMP_S

    def can_begin(self, first: float) -> bool:
        """Whether a stream's first frame can lie at this time."""
        return -LONGEST_JUMP_S <= first <= (LONGEST_JUMP_S if isinf(self.end) else self.end + 1.0)

    def latest(self, before: float) -> float:
        """The latest plausible time of a frame after one at the time `before`."""
        return min(before + self.longest_jump, self.end + 1.0)


def probe(path: str | Path) -> MediaInfo:
    """What `path` holds. Reads headers, and all packets only where headers do not give the duration.

    Raises:
        MediaError: no such file, or not a recording.
    """
    with open_container(path) as container:
        audio, video = stream_of(container, "audio"), stream_of(container, "video")
        clock = clock_of(container)
        duration = clock.end
        if isinf(duration):
            ends = [
                float((packet.pts + (packet.duration or 0)) * packet.time_base)
                for packet in _packets(container, [s for s in (audio, video) if s is not None], Counter())
                if packet.pts is not None
            ]
            duration = max(ends, default=clock.origin) - clock.origin
        return MediaInfo(
            duration=max(0.0, duration),
            has_audio=audio is not None,
            has_video=video is not None,
            audio_rate=audio.codec_context.sample_rate if audio is not None and audio.codec_context else None,
            video_rate=float(video.average_rate) if video is not None and video.average_rate else None,
        )


def decoded_frames(container: Any, stream: Any, faults: Counter[str]) -> Iterator[Any]:
    """Decoded frames of a stream from the container's position on; packets that do not decode are counted."""
    import av

    for packet in _packets(container, [stream], faults):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            faults["packets"] += 1
            continue
        yield from frames


def _packets(container: Any, streams: list[Any], faults: Counter[str]) -> Iterator[Any]:
    """Packets of the streams; continues after read errors. The last ones are empty, and flush decoders."""
    import av

    failed = 0
    while failed < MOST_READ_ERRORS:
        try:
            yield from container.demux(streams)
            return
        except av.FFmpegError:
            faults["reads"] += 1
            failed += 1
        except IndexError:
            # PyAV raises it for a packet of a stream that appeared after opening; such a stream is not used.
            continue


def import_av() -> Any:
    """PyAV.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise ImportError('reading recordings needs PyAV: pip install "awtpn-at-scale[extract]"') from None
    return av


def open_container(path: str | Path) -> Any:
    """PyAV's container of a file.

    Raises:
        MediaError: no such file, or not a recording.
        ImportError: PyAV is not installed.
    """
    av = import_av()
    try:
        # An absolute path is never taken for a URL, and FFmpeg then reads what it names (a playlist's
        # entries) from files only. No options: PyAV 15 to 17 crash on them where streams appear late, as in
        # FLV.
        return av.open(os.path.abspath(path), metadata_errors="replace")
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        refuse_pointer(path)
        raise MediaError(f"{path}: not a recording that can be read ({error})") from None


def stream_of(container: Any, kind: str) -> Any:
    """The stream of a kind that players would choose, or None; cover art is not a video."""
    from av.stream import Disposition

    streams = [s for s in getattr(container.streams, kind) if not s.disposition & Disposition.attached_pic]
    best = container.streams.best(kind)
    return next(
        (s for s in streams if best is not None and s.index == best.index), streams[0] if streams else None
    )


def open_stream(container: Any, kind: str, path: str | Path) -> Any:
    """The stream of a kind, ready to be decoded; None where there is none."""
    stream = stream_of(container, kind)
    if stream is None:
        return None
    if stream.codec_context is None:
        raise MediaError(f"{path}: this FFmpeg does not know the codec of its {kind} stream")
    # Clips are decoded in parallel already; and with several threads a broken packet loses good ones near it.
    stream.codec_context.thread_count = 1
    return stream


def seek_to(container: Any, stream: Any, to: float) -> bool:
    """Seek to the key frame before `to` (seconds of the container's clock); False where it cannot be done."""
    import av

    try:
        container.seek(int(to / stream.time_base), stream=stream)
    except av.FFmpegError:
        # The container's position is undefined now.
        return False
    return True


def clock_of(container: Any) -> Clock:
    """The recording's timeline; it begins where its earliest stream does, but not before its clock's 0."""
    from av.format import Flags

    start = (container.start_time or 0) / 1e6
    origin = max(0.0, start)
    if container.duration is None or container.duration <= 0:
        return Clock(origin)
    # Formats whose clock may restart give the end by their last packets' times, right or wrong.
    starts_anew = container.format.flags & Flags.ts_discont.value
    end = start + container.duration / 1e6 - origin
    return Clock(origin, end, LONGEST_JUMP_S if starts_anew else inf)


def bounds_of(path: str | Path, span: Span | None) -> Span:
    """Begin and end of a span in seconds; the end of None is inf.

    Raises:
        MediaError: the span is empty.
    """
    begin, end = span if span is not None else (0.0, float("inf"))
    begin = max(0.0, begin)
    if not end > begin:
        raise MediaError(f"{path}: the span from {begin:g} s to {end:g} s is empty")
    return begin, end


def describe_span(span: Span | None) -> str:
    return "" if span is None else f" from {span[0]:g} s to {span[1]:g} s"


def describe_faults(faults: Counter[str]) -> str:
    return f" ({faults.total()} packets are corrupt)" if faults.total() else ""
