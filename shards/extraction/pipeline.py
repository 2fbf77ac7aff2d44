"""Clips -> features: decoded by a few threads ahead of the encoders, encoded in batches of similar length.

Which clips share a batch depends on the clips alone, so that the same clips give the same bytes on any rank
and after any stop.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.extraction.media import ConstantStream, read_audio, read_frames
from shards.extraction.stored_media import read_pictures, read_sound
from shards.format.class_checks import WrongManifest
from shards.format.feature_space import CONSTANT, ROUNDED
from shards.format.recording import FULL_SCALE
from shards.format.schema import BadSample, Sample
from shards.safe_io.file_names import as_text
from shards.sources.base import Clip

# Limits of the clips that are decoded, or being decoded, ahead of the encoders.
AHEAD_CLIPS = 64
AHEAD_BYTES = 512 << 20
# Clips are sorted by length within windows of at most so many clips, or of about so many decoded bytes.
WINDOW_CLIPS = 64
WINDOW_BYTES = 256 << 20
READ_BYTES = 1 << 20  # at a time, to see whether a file can be read

# Name of the metadata of a clip with a stream that cannot be decoded; it holds the cause by modality.
UNDECODABLE = "lacking"

# Names of the metadata of a clip with features of text: begin and end of each word in seconds, where they are
# known; and the words, where they are to be stored.
TEXT_SPANS, TEXT_WORDS = "text_spans", "text_words"
# About what the features of a word take in memory (4,096 of float32), which is more than the word.
WORD_BYTES = 16 << 10

# By modality, "audio", "video" and "text"; `shards.extraction.encoders` describes them.
Encoders = Mapping[str, Any]
Words = tuple[str, ...]


@dataclass(frozen=True)
class DecodedClip:
    """A clip with its decoded streams, or the reason why it cannot be used.

    Attributes:
        clip: the clip.
        media: by modality sound [samples], pictures [N, H, W, 3] or words.
        cause: why it cannot be used; None if it can.
        undecodable: by modality why a stream that it has, or should have, is not in `media`.
        constant: by modality why a stream that never changes is not in `media`.
        is_unreadable: the cause is a file that is gone or cannot be read, not the clip.
    """

    clip: Clip
    media: dict[str, np.ndarray | Words]
    cause: str | None = None
    undecodable: dict[str, str] = field(default_factory=dict)
    constant: dict[str, str] = field(default_factory=dict)
    is_unreadable: bool = False

    @property
    def bytes(self) -> int:
        return sum(
            stream.nbytes if isinstance(stream, np.ndarray) else WORD_BYTES * len(stream)
            for stream in self.media.values()
        )


def decode(clip: Clip, encoders: Encoders, keep_constant: bool = False) -> DecodedClip:
    """Decode what the encoders need of a clip; a stream that is missing or cannot be decoded is skipped.

    Args:
        clip: the clip.
        encoders: by modality.
        keep_constant: keep a stream that never changes (`shards.extraction.media`), too.

    Raises:
        WrongManifest: the manifest of the dataset that holds the clip contradicts its files.
        OSError: the store of this dataset cannot be reached.
    """
    faults: Counter[str] = Counter()
    if clip.packed is not None:
        return _decode_packed(clip, encoders, faults, keep_constant)
    decoded = _decode(clip, encoders, faults, keep_constant)
    is_used = decoded.cause is None or decoded.constant
    if is_used and not decoded.undecodable and not faults.total():
        return decoded
    # FFmpeg reports the same error for a damaged file and for a storage that fails. Reading all of the file
    # shows which it is.
    for path in _distinct(path for name, path in clip.files.items() if name in encoders):
        try:
            _read_through(path)
        except FileNotFoundError:
            return DecodedClip(clip, {}, f"{path}: no such file", is_unreadable=True)
        except OSError as error:
            return DecodedClip(clip, {}, f"{path}: cannot be read ({error.strerror})", is_unreadable=True)
    return _decode(clip, encoders, faults, keep_constant)


def _decode_packed(clip: Clip, encoders: Encoders, faults: Counter[str], keep_constant: bool) -> DecodedClip:
    """`decode` of a row of a dataset of recordings, whose metadata are read here, too."""
    try:
        clip = _with_metadata(clip, encoders)
    except WrongManifest:
        raise
    except ValueError as error:
        return DecodedClip(clip, {}, str(error))
    return _decode(clip, encoders, faults, keep_constant)


def _with_metadata(clip: Clip, encoders: Encoders) -> Clip:
    """The clip with its metadata, and what they say of streams that its dataset lacks."""
    assert clip.packed is not None
    meta = clip.packed.metadata()
    # What extraction wrote about streams: of those that are wanted now it is written again, and of others it
    # does not hold for this dataset. Words are stored only if this extraction is asked to.
    for name in (TEXT_SPANS, TEXT_WORDS):
        meta.pop(name, None)
    # A column of the corpus may have one of these names, with values of another kind.
    causes = meta.pop(UNDECODABLE) if isinstance(meta.get(UNDECODABLE), dict) else {}
    constant = meta.pop(CONSTANT) if isinstance(meta.get(CONSTANT), list) else []
    rounded = meta.pop(ROUNDED) if isinstance(meta.get(ROUNDED), list) else []
    lost = encoders.keys() - clip.packed.has
    missing = {name: str(causes[name]) for name in encoders if name in lost and name in causes}
    never_changes = {name for name in lost if name in constant}
    if kept := [name for name, of in encoders.items() if hasattr(of, "recording") and name in rounded]:
        meta[ROUNDED] = kept
    packed = replace(clip.packed, constant=frozenset(never_changes))
    return replace(clip, meta=meta, missing=missing, packed=packed)


def _decode(clip: Clip, encoders: Encoders, faults: Counter[str], keep_constant: bool) -> DecodedClip:
    media: dict[str, np.ndarray | Words] = {}
    undecodable: dict[str, str] = {}
    constant: dict[str, str] = {}
    for name, encoder in encoders.items():
        try:
            stream = DECODERS[name](clip, encoder, faults, keep_constant)
        except ConstantStream as error:
            constant[name] = f"{error}; it counts as missing, unless constant streams are kept"
            continue
        except (ValueError, OSError) as error:
            if clip.packed is not None and isinstance(error, OSError | WrongManifest):
                raise  # the store cannot be reached, or no row of the dataset can be trusted
            undecodable[name] = str(error)
            continue
        if stream is not None:
            media[name] = stream
    if media:
        return DecodedClip(clip, media, undecodable=undecodable, constant=constant)
    if not undecodable and not constant and not clip.missing:
        files = clip.packed.at if clip.packed else ", ".join(map(str, _distinct(clip.files.values())))
        cause = f"no {' and no '.join(encoders)} to make features of"
        return DecodedClip(clip, {}, f"{files}: {cause}" if files else cause)
    causes = "; ".join(dict.fromkeys((undecodable | clip.missing | constant).values()))
    return DecodedClip(clip, {}, causes, undecodable, constant)


def _decode_audio(clip: Clip, encoder: Any, faults: Counter[str], keep_constant: bool) -> np.ndarray | None:
    if clip.packed is not None:
        return read_sound(clip.packed, encoder, keep_constant)
    if clip.audio is None:
        return None
    return read_audio(clip.audio, encoder.rate, clip.audio_span, faults, keep_constant)


def _decode_video(clip: Clip, encoder: Any, faults: Counter[str], keep_constant: bool) -> np.ndarray | None:
    if clip.packed is not None:
        return read_pictures(clip.packed, encoder, keep_constant)
    if clip.video is None:
        return None
    decoded = read_frames(
        clip.video, encoder.fps, clip.video_span, clip.crop, encoder.largest_side, faults, keep_constant
    )
    return None if decoded is None else decoded[0]


def _decode_text(clip: Clip, encoder: Any, faults: Counter[str], keep_constant: bool) -> Words | None:
    return None if clip.text is None else clip.text.words


# What an encoder is given of a clip, by modality; None if the clip has no such stream.
DECODERS: dict[str, Callable[[Clip, Any, Counter[str], bool], np.ndarray | Words | None]] = {
    "audio": _decode_audio,
    "video": _decode_video,
    "text": _decode_text,
}


def _distinct(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))


def _read_through(path: Path) -> None:
    """Raise OSError if the file cannot be read to its end."""
    with open(path, "rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass


def decode_ahead(
    clips: Iterable[Clip], encoders: Encoders, threads: int, keep_constant: bool = False
) -> Generator[DecodedClip, None, None]:
    """`decode` each clip, in order, at most `AHEAD_CLIPS` and about `AHEAD_BYTES` ahead of the caller."""
    remaining = iter(clips)
    waiting: deque[Future[DecodedClip]] = deque()
    yielded, yielded_bytes = 0, 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        while True:
            # The size of a clip that is being decoded is not known: take the mean of those before.
            mean_bytes = yielded_bytes / yielded if yielded else AHEAD_BYTES / threads
            while len(waiting) < AHEAD_CLIPS and (
                not waiting or _waiting_bytes(waiting, mean_bytes) < AHEAD_BYTES
            ):
                clip = next(remaining, None)
                if clip is None:
                    break
                waiting.append(pool.submit(decode, clip, encoders, keep_constant))
            if not waiting:
                return
            decoded = waiting.popleft().result()
            yielded, yielded_bytes = yielded + 1, yielded_bytes + decoded.bytes
            yield decoded
    finally:
        pool.shutdown(cancel_futures=True)


def _waiting_bytes(waiting: Iterable[Future[DecodedClip]], mean_bytes: float) -> float:
    """Bytes of the clips that are decoded, and an estimate for those that are being decoded."""
    return sum(future.result().bytes if future.done() else mean_bytes for future in waiting)


def encode(
    decoded: Iterable[DecodedClip],
    encoders: Encoders,
    batch: int,
    on_progress: Callable[[], None] = lambda: None,
    store_text: bool = False,
) -> Iterator[Sample | BadSample]:
    """Features of decoded clips, in order; for a clip that fails, a `BadSample` with the cause.

    A modality is None if the clip has no such stream or the encoder finds nothing in it (no face). The
    metadata `UNDECODABLE` gives the cause for streams that cannot be decoded, the metadata `CONSTANT` the
    modalities of streams that never change, `ROUNDED` those of sound that is stored with rounded samples, and
    `TEXT_SPANS` the times of words.

    Args:
        decoded: read a window at a time.
        encoders: by modality.
        batch: clips encoded at a time.
        on_progress: called after each batch.
        store_text: keep the words, too, as the metadata `TEXT_WORDS`.
    """
    for window in _windows(decoded):
        encoded = {
            name: _encode_window(window, name, encoder, batch, on_progress)
            for name, encoder in encoders.items()
        }
        for i, each in enumerate(window):
            results = {name: of_window[i] for name, of_window in encoded.items()}
            causes = [each.cause, *(result for result in results.values() if isinstance(result, str))]
            if cause := next((cause for cause in causes if cause), None):
                yield BadSample(each.clip.key, cause, each.clip.source)
            else:
                yield _sample(each, results, encoders, store_text)


def _sample(decoded: DecodedClip, results: dict[str, Any], encoders: Encoders, store_text: bool) -> Sample:
    clip = decoded.clip
    features = {name: None if of is None or not len(of) else of for name, of in results.items()}
    undecodable = as_text(clip.missing | decoded.undecodable)  # causes name files, which may not be UTF-8
    meta = clip.meta | ({UNDECODABLE: undecodable} if undecodable else {})
    meta |= {CONSTANT: sorted(decoded.constant)} if decoded.constant else {}
    rounded = [name for name, of in results.items() if _is_rounded(decoded, name, of, encoders[name])]
    before = clip.meta.get(ROUNDED, ()) if clip.packed else ()
    meta |= {ROUNDED: sorted({*rounded, *before})} if rounded else {}
    if clip.text is not None and "text" in results:
        meta |= {TEXT_SPANS: np.round(clip.text.spans, 3).tolist()} if clip.text.spans else {}
        meta |= {TEXT_WORDS: list(clip.text.words)} if store_text else {}
    return Sample(clip.key, clip.split, clip.label, features, meta, clip.source)


def _is_rounded(decoded: DecodedClip, name: str, result: Any, encoder: Any) -> bool:
    """Whether the modality is sound to be stored as recorded, and 16 bits do not hold it exactly."""
    if result is None or not hasattr(encoder, "recording") or not encoder.recording.is_sound:
        return False
    return not np.array_equal(result, np.asarray(decoded.media[name]) * np.float32(FULL_SCALE))


def _windows(decoded: Iterable[DecodedClip]) -> Iterator[list[DecodedClip]]:
    """Consecutive clips that fit into memory together; where a window ends depends on the clips alone."""
    window: list[DecodedClip] = []
    window_bytes = 0
    for each in decoded:
        window.append(each)
        window_bytes += each.bytes
        if len(window) >= WINDOW_CLIPS or window_bytes >= WINDOW_BYTES:
            yield window
            window, window_bytes = [], 0
    if window:
        yield window


def _encode_window(
    window: list[DecodedClip], name: str, encoder: Any, batch: int, on_progress: Callable[[], None]
) -> list[np.ndarray | str | None]:
    """Per clip its features [T, D]; None without a stream of the modality; the cause where it failed."""
    results: list[np.ndarray | str | None] = [None] * len(window)
    by_length = [i for i, each in enumerate(window) if name in each.media]
    by_length.sort(key=lambda i: len(window[i].media[name]))
    for first in range(0, len(by_length), batch):
        rows = by_length[first : first + batch]
        encoded = _encode([window[i].media[name] for i in rows], encoder)
        for i, result in zip(rows, encoded, strict=True):
            results[i] = result
        on_progress()
    return results


def _encode(media: list[np.ndarray | Words], encoder: Any) -> list[np.ndarray | str]:
    """Features of each, or the cause. If the encoder refuses a batch, its clips are encoded one by one."""
    try:
        return list(encoder.encode(media))
    except ValueError as error:
        if len(media) == 1:
            return [str(error)]
    return [result for each in media for result in _encode([each], encoder)]
