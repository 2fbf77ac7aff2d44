"""Pictures: those shown at regular times, upright, cropped and scaled down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
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

SAME_TIME_S = 1e-6
# One clip must not fill a machine's memory. 4.6 minutes of 960 x 540 at 10 pictures a second reach this.
LARGEST_CLIP = 4 << 30
# Pictures are collected in blocks of this many bytes; freed, such blocks return to the operating system.
BLOCK = 64 << 20

Crop = tuple[float, float, float, float]


def read_frames(
    path: str | Path,
    fps: float,
    span: Span | None = None,
    crop: Crop | None = None,
    largest_side: int | None = None,
    faults: Counter[str] | None = None,
    keep_constant: bool = True,
) -> tuple[np.ndarray, np.ndarray] | None:
    """All pictures of `iterate_frames` at once.

    Args:
        keep_constant: also return pictures that are all identical. A single frame is always returned, however
            long it is shown.

    Returns:
        (uint8 RGB [N, H, W, 3], float64 times [N] in seconds from the span's begin); None where it has no
        video stream.

    Raises:
        ConstantStream: the pictures of the span are all identical, and `keep_constant` is off.
        MediaError: as `iterate_frames`; or more than `LARGEST_CLIP` bytes of pictures.
    """
    times: list[float] = []
    blocks: list[Any] = []
    room = 0
    first = shown = None
    number, changes = 0, False
    for time, frame in iterate_frames(path, fps, span, crop, largest_side, faults):
        if (len(times) + 1) * frame.nbytes > LARGEST_CLIP:
            raise MediaError(
                f"{path}: its pictures take more than {LARGEST_CLIP / 2**30:g} GiB of memory; cut it into "
                "shorter clips, or take fewer (fps)"
            )
        if frame is not shown:  # otherwise the file's frame is repeated
            first = frame if first is None else first
            shown, number = frame, number + 1
            changes = changes or not np.array_equal(frame, first)
        room = room or -(-BLOCK // frame.nbytes)
        if len(times) % room == 0:
            blocks.append(np.empty((room, *frame.shape), np.uint8))
        blocks[-1][len(times) % room] = frame
        times.append(time)
    if not times:
        return None
    if number > 1 and not changes and not keep_constant:
        raise ConstantStream(f"{path}: its picture{describe_span(span)} never changes: {number} alike")
    pictures = np.empty((len(times), *blocks[0].shape[1:]), np.uint8)
    for i in range(len(blocks)):
        # Free each block at once, so that memory never holds a long clip twice.
        part = pictures[i * room : (i + 1) * room]
        part[:], blocks[i] = blocks[i][: len(part)], None
    return pictures, np.asarray(times)


def iterate_frames(
    path: str | Path,
    fps: float,
    span: Span | None = None,
    crop: Crop | None = None,
    largest_side: int | None = None,
    faults: Counter[str] | None = None,
) -> Iterator[tuple[float, np.ndarray]]:
    """The pictures shown at times (i + 1/2) / fps from the span's begin: N = round(duration * fps), or 1.

    A variable frame rate becomes a constant one; a rate other than the file's repeats or skips frames.
    Memory holds one frame at a time, and decoding begins at the key frame before the span.

    Args:
        path: the file.
        fps: pictures per second wanted.
        span: (begin, end) in seconds; None is from time 0 to the end. It is cut at the recording's end.
        crop: (left, top, right, bottom) as fractions of the upright frame.
        largest_side: pictures whose longer side (after cropping) has more pixels are scaled down to it.
        faults: packets that could not be decoded are added to its "video".

    Yields:
        (seconds from the span's begin, uint8 RGB [H, W, 3], upright by the display matrix); all of the first
        one's size. Pixels are taken as square. Nothing where it has no video stream.

    Raises:
        MediaError: no such file, a span that is empty or past the end, or nothing decodes.
    """
    begin, end = bounds_of(path, span)
    if fps <= 0:
        raise ValueError(f"fps is {fps}; it must be above 0")
    faults = Counter() if faults is None else faults
    for seek in [True, False] if begin > 0 else [False]:
        errors: Counter[str] = Counter()
        with open_container(path) as container:
            stream = open_stream(container, "video", path)
            if stream is None:
                return
            clock = clock_of(container)
            if seek and not seek_to(container, stream, clock.origin + begin):
                continue
            frames = decoded_frames(container, stream, errors)
            intervals = _display_intervals(frames, stream, clock, from_start=not seek)
            first = next(intervals, None)
            if seek and (first is None or first[0] > begin):
                continue
            count = 0
            if first is not None and first[0] < end:
                for time, picture in _sampled(chain([first], intervals), fps, begin, end, crop, largest_side):
                    yield time, picture
                    count += 1
        faults["video"] += errors.total()
        if not count:
            raise MediaError(
                f"{path}: no picture can be decoded{describe_span(span)}{describe_faults(errors)}"
            )
        return


def _sampled(
    intervals: Iterable[tuple[float, float, Any]],
    fps: float,
    begin: float,
    end: float,
    crop: Crop | None,
    largest_side: int | None,
) -> Iterator[tuple[float, np.ndarray]]:
    """(time, picture) at each sampling time in the span and the intervals; the last frame if none is."""
    count = 0
    size: tuple[int, int] | None = None
    matrix, rotation = np.eye(2, dtype=np.int64), None
    for _, stop, frame in intervals:
        # Reading a frame's side data leaves the frame to the garbage collector, which frees it late.
        if frame.rotation != rotation:
            matrix, rotation = _display_matrix(frame), frame.rotation
        picture: np.ndarray | None = None
        # A frame that begins at a sampling time is the one shown, however the times are rounded.
        while (time := (count + 0.5) / fps) + SAME_TIME_S < min(stop, end) - begin:
            if picture is None:
                picture = _picture(frame, matrix, crop, largest_side, size)
                size = size or (picture.shape[0], picture.shape[1])
            yield time, picture
            count += 1
        if begin + time + SAME_TIME_S >= end:
            break
    if not count and stop > begin:
        yield 0.5 / fps, _picture(frame, matrix, crop, largest_side, None)


def _display_intervals(
    frames: Iterable[Any], stream: Any, clock: Clock, from_start: bool
) -> Iterator[tuple[float, float, Any]]:
    """(from, until, frame) in seconds: each frame is shown until the next, the last for its own duration.

    A last frame without a duration is shown as long as the one before.

    Args:
        frames: decoded ones of the stream, in order.
        stream: of pictures.
        clock: of the recording.
        from_start: the first frame is the stream's first.
    """
    period = 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
    previous: Any = None
    since = 0.0
    for frame in frames:
        stamp = frame.pts if frame.pts is not None else frame.dts
        time = since + period if stamp is None else float(stamp * frame.time_base) - clock.origin
        if previous is not None:
            # A time that goes back, or is past the recording's end, is wrong; the frame still comes next.
            time = time if since < time <= clock.latest(since) else since + period
            period = time - since
            yield since, time, previous
        elif from_start and not clock.can_begin(time):
            time = 0.0
        previous, since = frame, time
    if previous is not None:
        own = float(previous.duration * previous.time_base) if previous.duration else period
        yield since, since + own, previous


def _picture(
    frame: Any, matrix: np.ndarray, crop: Crop | None, largest_side: int | None, size: tuple[int, int] | None
) -> np.ndarray:
    """RGB [H, W, 3] of a frame: upright, cropped, of `size` (H, W) if given, else within `largest_side`."""
    rotated = abs(matrix[0, 0]) < abs(matrix[0, 1])
    width, height = (frame.height, frame.width) if rotated else (frame.width, frame.height)
    left, top, right, bottom = crop or (0.0, 0.0, 1.0, 1.0)
    if size is not None:
        scale_x, scale_y = size[1] / (width * (right - left)), size[0] / (height * (bottom - top))
    else:
        side = max(width * (right - left), height * (bottom - top))
        scale_x = scale_y = min(1.0, largest_side / side) if largest_side else 1.0
    width, height = max(1, round(width * scale_x)), max(1, round(height * scale_y))
    stored = (height, width) if rotated else (width, height)
    options = {"format": "rgb24", "interpolation": "AREA", **_one_thread()}
    rgb = frame.reformat(*stored, **options).to_ndarray()
    if rotated:
        rgb = rgb.swapaxes(0, 1)
    # In the rotated picture x comes from the stored y (matrix c) and y from the stored x (matrix b).
    if (matrix[1, 0] if rotated else matrix[0, 0]) < 0:
        rgb = rgb[:, ::-1]
    if (matrix[0, 1] if rotated else matrix[1, 1]) < 0:
        rgb = rgb[::-1]
    rows, columns = size or (
        max(1, round(height * (bottom - top))),
        max(1, round(width * (right - left))),
    )
    y = min(round(height * top), height - rows)
    x = min(round(width * left), width - columns)
    return np.ascontiguousarray(rgb[y : y + rows, x : x + columns])


@cache
def _one_thread() -> dict[str, int]:
    """The option of PyAV's `reformat` for one thread; versions without the option use no other thread.

    Clips are decoded in parallel already. And a frame keeps the threads that scaled it. If the garbage
    collector freed such a frame in a fork, the fork would wait for ever for threads that it does not have.
    """
    from av import VideoFrame

    try:
        VideoFrame(2, 2, "rgb24").reformat(threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


def _display_matrix(frame: Any) -> np.ndarray:
    """[[a, b], [c, d]] of the display matrix: x' = a x + c y and y' = b x + d y, with y downwards."""
    from av.sidedata.sidedata import Type

    stored = frame.side_data.get(Type.DISPLAYMATRIX)
    if stored is None:
        return np.eye(2, dtype=np.int64)
    return np.frombuffer(bytes(stored), np.int32).reshape(3, 3)[:2, :2].astype(np.int64)
