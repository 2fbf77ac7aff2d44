"""A recording and what is said in it: as a clip to be encoded, and its parts that are plotted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.extraction.media import MediaError, probe, read_audio, read_frames
from shards.extraction.media.container import Span
from shards.sources.base import Clip
from shards.sources.reading.recordings_folder import TRANSCRIPT, with_transcript
from shards.sources.reading.transcripts import Transcript, checked_text, transcript_of

TEXT = "text"  # the modality; the key of an utterance that has nothing else
FRAMES = 7  # shown side by side
LARGEST_SIDE = 480  # pixels of a shown frame
RATE = 16000  # Hz of the waveform


@dataclass(frozen=True)
class Recording:
    """The parts of a recording that are plotted.

    Attributes:
        name: for the title.
        duration: in seconds; 0 for text alone.
        sound: [samples] at `rate` Hz, or None.
        pictures: uint8 [N, H, W, 3], or None: the middle frames of the first N of `FRAMES` equal time spans;
            N is less than `FRAMES` if the video ends before the audio.
        step_seconds: length of a step, by modality.
        transcript: what is said, or None.
    """

    name: str
    duration: float
    sound: NDArray[np.float32] | None
    rate: int
    pictures: NDArray[np.uint8] | None
    step_seconds: dict[str, float]
    transcript: Transcript | None = None

    @property
    def has_media(self) -> bool:
        """Whether there is sound or a picture, and so a time axis."""
        return self.sound is not None or self.pictures is not None

    @property
    def has_times(self) -> bool:
        """Whether the words can be drawn on the time axis."""
        return self.has_media and self.transcript is not None and bool(self.transcript.spans)


# --- To be encoded -------------------------------------------------------------------------------


def clip_of(path: Path, text: str | Transcript | None = None, *, wants_text: bool = True) -> Clip:
    """A recording, or a text file, as a clip.

    Args:
        path: of sound or video; or of a `.txt` file, which is text alone.
        text: what is said; None: what the `.txt` file beside the recording says, if there is one.
        wants_text: False: no text file is read.

    Raises:
        ValueError: a text is given that cannot be used, or for a file that is a text itself.
    """
    is_text = path.suffix.lower() == TRANSCRIPT
    media = None if is_text else path
    clip = Clip(str(path), "", "", media, media)
    if text is not None:
        if is_text:
            raise ValueError(f"{path} is what is said, and another text is given: give one of the two")
        return replace(clip, text=usable_transcript(text, str(path)))
    if not wants_text:
        return clip
    return _with_file(clip, path, path if is_text else path.with_suffix(TRANSCRIPT))


def _with_file(clip: Clip, path: Path, file: Path) -> Clip:
    """The clip of `path` with what is said in `file`; else with the cause why it has no text."""
    if not path.exists():
        cause = f"{path}: no such file"
    elif not file.exists():
        cause = f"there is no {file.name} beside it"
    else:
        cause = f"{file}: it has no words"
        try:
            clip = with_transcript(clip, file)
        except OSError as error:
            cause = f"{file}: cannot be read ({error.strerror})"
    return clip if clip.text or clip.missing else replace(clip, missing={TEXT: cause})


def text_clip(text: str | Transcript, name: str = TEXT) -> Clip:
    """What is said, without a recording, as a clip of this name.

    Raises:
        ValueError: it has no words, or cannot be used.
    """
    return Clip(name, "", "", None, None, text=usable_transcript(text, name))


def usable_transcript(text: str | Transcript, name: str) -> Transcript:
    """The words of a text; errors name whose it is, and never quote it.

    Raises:
        ValueError: it has no words, or cannot be used.
    """
    if isinstance(text, Transcript):
        return text
    try:
        found = transcript_of(checked_text(text))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if found is None:
        raise ValueError(f"{name}: the text that is given has no words: leave it out")
    return found


# --- To be plotted -------------------------------------------------------------------------------


def load(clip: Clip, step_seconds: dict[str, float]) -> Recording:
    """Read the frames and the waveform of a clip; without those that cannot be decoded.

    Args:
        clip: of this module; no more of its recording is decoded than its spans say.
        step_seconds: length of a step, by modality.

    Raises:
        MediaError: none can be decoded, and there is no text.
    """
    found = Recording(Path(clip.key).name, 0.0, None, RATE, None, step_seconds, clip.text)
    if clip.audio is None:
        return found
    try:
        return _with_media(found, clip.audio, clip.audio_span)
    except MediaError:
        if clip.text is None:
            raise
        return found


def _with_media(recording: Recording, path: Path, span: Span | None) -> Recording:
    info = probe(path)
    duration = info.duration if span is None else min(info.duration, span[1])
    pictures = sound = None
    causes = []
    if info.has_video and duration > 0:
        try:
            of_pictures = None if span is None else (0.0, duration)
            found = read_frames(path, FRAMES / duration, of_pictures, largest_side=LARGEST_SIDE)
            pictures = found[0][:FRAMES] if found else None
        except MediaError as error:
            causes.append(error)
    if info.has_audio:
        try:
            sound = read_audio(path, RATE, span)
        except MediaError as error:
            causes.append(error)
    if causes and pictures is None and sound is None:
        raise causes[0]
    return replace(recording, duration=duration, sound=sound, pictures=pictures)
