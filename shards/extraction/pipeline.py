"""Clips -> features: decoded on a few threads ahead of the encoders, encoded in batches of like length.

Which clips share a batch is decided by the clips alone, so that the same clips give the same bytes on any
rank and after any stop.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.extraction.media import ConstantStream, read_audio, read_frames
from shards.format.feature_space import CONSTANT
from shards.format.schema import BadSample, Sample
from shards.safe_io.file_names import as_text
from shards.sources.base import Clip

# Decoded clips that wait for the encoders, beyond those that are being decoded.
AHEAD_CLIPS = 64
AHEAD_BYTES = 512 << 20
# Clips are sorted by length within windows of so many, or of so many decoded bytes.
WINDOW_CLIPS = 64
WINDOW_BYTES = 256 << 20
# Read at a time, to see whether a file can be.
BLOCK = 1 << 20

# Metadata of a clip of which a stream cannot be decoded: why, by modality.
UNDECODABLE = "lacking"

# By modality, "audio" and "video"; what they are is told in `shards.extraction.encoders`.
Encoders = Mapping[str, Any]


@dataclass(frozen=True)
class Decoded:
    """A clip's sound [samples] and pictures [N, H, W, 3], by modality; or why it cannot be used.

    Attributes:
        lacking: by modality why a stream that it has, or should have, is not among them.
        constant: by modality of a stream that never changes, and so is not among them, what to say of it.
        lost: the cause is that a file is gone or cannot be read, and no fault of the clip.
    """

    clip: Clip
    media: dict[str, np.ndarray]
    cause: str | None = None
    lacking: dict[str, str] = field(default_factory=dict)
    constant: dict[str, str] = field(default_factory=dict)
    lost: bool = False

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.media.values())


def decode(clip: Clip, encoders: Encoders, keep_constant: bool = False) -> Decoded:
    """Read what the encoders need of a clip; a stream that it lacks, or that is broken, is left out.

    Args:
        clip: the clip.
        encoders: by modality.
        keep_constant: keep a stream that never changes (`shards.extraction.media`), too.
    """
    faults: Counter[str] = Counter()
    decoded = _decode(clip, encoders, faults, keep_constant)
    used = decoded.cause is None or decoded.constant
    if used and not decoded.lacking and not faults.total():
        return decoded
    # FFmpeg has the same words for damage and for storage that fails; who reads the files knows.
    for path in _files(clip, encoders):
        try:
            _read_through(path)
        except FileNotFoundError:
            return Decoded(clip, {}, f"{path}: no such file", lost=True)
        except OSError as error:
            return Decoded(clip, {}, f"{path}: cannot be read ({error.strerror})", lost=True)
    return _decode(clip, encoders, faults, keep_constant)


def _decode(clip: Clip, encoders: Encoders, faults: Counter[str], keep_constant: bool) -> Decoded:
    media: dict[str, np.ndarray] = {}
    lacking: dict[str, str] = {}
    constant: dict[str, str] = {}
    for name, encoder in encoders.items():
        read = _sound if name == "audio" else _pictures
        try:
            found = read(clip, encoder, faults, keep_constant)
        except ConstantStream as error:
            constant[name] = f"{error}; it counts as missing, unless constant streams are kept"
            continue
        except (ValueError, OSError) as error:
            lacking[name] = str(error)
            continue
        if found is not None:
            media[name] = found
    if media:
        return Decoded(clip, media, lacking=lacking, constant=constant)
    if not lacking and not constant and not clip.missing:
        files = ", ".join(map(str, _files(clip, ("audio", "video"))))
        return Decoded(clip, {}, f"{files or 'no file'}: no {' and no '.join(encoders)} to make features of")
    causes = "; ".join(dict.fromkeys((lacking | clip.missing | constant).values()))
    return Decoded(clip, {}, causes, lacking, constant)


def _sound(clip: Clip, encoder: Any, faults: Counter[str], keep_constant: bool) -> np.ndarray | None:
    if clip.audio is None:
        return None
    return read_audio(clip.audio, encoder.rate, clip.audio_span, faults, keep_constant)


def _pictures(clip: Clip, encoder: Any, faults: Counter[str], keep_constant: bool) -> np.ndarray | None:
    if clip.video is None:
        return None
    found = read_frames(
        clip.video, encoder.fps, clip.video_span, clip.crop, encoder.largest_side, faults, keep_constant
    )
    return None if found is None else found[0]


def _files(clip: Clip, modalities: Iterable[str]) -> list[Path]:
    named = {"audio": clip.audio, "video": clip.video}
    return list(dict.fromkeys(path for name in modalities if (path := named[name]) is not None))


def _read_through(path: Path) -> None:
    """Raise OSError if the file cannot be read to its end."""
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass


def decode_ahead(
    clips: Iterable[Clip], encoders: Encoders, threads: int, keep_constant: bool = False
) -> Generator[Decoded, None, None]:
    """`decode` each clip, in order, some ahead of being asked for; how far is bounded in clips and bytes."""
    remaining = iter(clips)
    waiting: deque[Future[Decoded]] = deque()
    given, given_bytes = 0, 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        while True:
            # Of a clip under way nobody knows how large it will be: as large as others, we say.
            usual = given_bytes / given if given else AHEAD_BYTES / threads
            while len(waiting) < AHEAD_CLIPS and (not waiting or _held(waiting, usual) < AHEAD_BYTES):
                clip = next(remaining, None)
                if clip is None:
                    break
                waiting.append(pool.submit(decode, clip, encoders, keep_constant))
            if not waiting:
                return
            decoded = waiting.popleft().result()
            given, given_bytes = given + 1, given_bytes + decoded.bytes
            yield decoded
    finally:
        pool.shutdown(cancel_futures=True)


def _held(waiting: Iterable[Future[Decoded]], usual: float) -> float:
    """Bytes of the clips that are decoded, and likely of those under way."""
    return sum(each.result().bytes if each.done() else usual for each in waiting)


def encode(
    decoded: Iterable[Decoded], encoders: Encoders, batch: int, tick: Callable[[], None] = lambda: None
) -> Iterator[Sample | BadSample]:
    """Features of decoded clips, in order; of one that fails a `BadSample` with its cause.

    A modality whose stream a clip lacks, or in which the encoder finds nothing (no face), is None. Of a
    stream that cannot be decoded the metadata `LACKING` tells the cause, of streams that never change
    `CONSTANT` the modalities.

    Args:
        decoded: read a window at a time.
        encoders: by modality.
        batch: clips encoded at a time.
        tick: called after each batch.
    """
    for window in _windows(decoded):
        made = {
            name: _encode_window(window, name, encoder, batch, tick) for name, encoder in encoders.items()
        }
        for i, each in enumerate(window):
            found = {name: values[i] for name, values in made.items()}
            causes = [each.cause, *(value for value in found.values() if isinstance(value, str))]
            if cause := next((cause for cause in causes if cause), None):
                yield BadSample(each.clip.key, cause, each.clip.source)
            else:
                yield _sample(each, found)


def _sample(decoded: Decoded, found: dict[str, Any]) -> Sample:
    clip = decoded.clip
    features = {name: None if values is None or not len(values) else values for name, values in found.items()}
    lacking = as_text(clip.missing | decoded.lacking)  # they name files
    meta = clip.meta | ({UNDECODABLE: lacking} if lacking else {})
    meta |= {CONSTANT: sorted(decoded.constant)} if decoded.constant else {}
    return Sample(clip.key, clip.split, clip.label, features, meta, clip.source)


def _windows(decoded: Iterable[Decoded]) -> Iterator[list[Decoded]]:
    """Consecutive clips, few enough to be held; the bounds depend on nothing but the clips."""
    window: list[Decoded] = []
    held = 0
    for each in decoded:
        window.append(each)
        held += each.bytes
        if len(window) >= WINDOW_CLIPS or held >= WINDOW_BYTES:
            yield window
            window, held = [], 0
    if window:
        yield window


def _encode_window(
    window: list[Decoded], name: str, encoder: Any, batch: int, tick: Callable[[], None]
) -> list[np.ndarray | str | None]:
    """Per clip its features [T, D]; None where it lacks the modality; the cause where it failed."""
    found: list[np.ndarray | str | None] = [None] * len(window)
    there = [i for i, each in enumerate(window) if name in each.media]
    there.sort(key=lambda i: len(window[i].media[name]))
    for first in range(0, len(there), batch):
        rows = there[first : first + batch]
        made = _encode([window[i].media[name] for i in rows], encoder)
        for i, values in zip(rows, made, strict=True):
            found[i] = values
        tick()
    return found


def _encode(media: list[np.ndarray], encoder: Any) -> list[np.ndarray | str]:
    """Features of each; a batch that is refused is tried one by one, to find whose fault it is."""
    try:
        return list(encoder.encode(media))
    except ValueError as error:
        if len(media) == 1:
            return [str(error)]
    return [made for each in media for made in _encode([each], encoder)]
