"""Whether a file that somebody sent is a recording that is taken; and error messages without paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from awtpn.inference.recording import clip_of, text_clip, usable_transcript
from awtpn.model.sharing.privacy import basename
from shards.extraction.media import MediaError, probe
from shards.extraction.media.container import describe_span, open_container
from shards.safe_io.printable import printable
from shards.sources.base import Clip

CLIP, WORDS = "the clip", "the words"  # what messages call them
# What FFmpeg calls the formats that are taken: those of `recordings_folder.SOUND` and `PICTURE`. Others may
# be playlists (hls, dash, concat), which would play any file of this machine that they name.
FORMATS = frozenset(
    {
        *("aac", "ac3", "aiff", "amr", "amrnb", "amrwb", "asf", "au", "avi", "caf", "eac3", "flac", "flv"),
        *("matroska", "mov", "mp3", "mp4", "mpeg", "mpegts", "mpegvideo", "ogg", "w64", "wav", "webm"),
    }
)
UNREADABLE = (
    f"{CLIP} is not a recording that can be read: choose a file of sound or video, such as .wav, .mp4 or "
    ".webm"
)
NOTHING = "there is nothing to predict: choose or record a clip, or write words if the model takes text"
# A recorder stops a little after its time; and headers round.
SLACK_S = 1.0


def clip_to_predict(path: Path | None, words: str, most_seconds: float, takes_text: bool) -> Clip:
    """What somebody sent, as a clip. No more than about `most_seconds` of it are ever decoded.

    Args:
        path: of the recording, or None.
        words: what is said in it; "" if it is not known.
        most_seconds: of a recording.
        takes_text: whether text is a modality of the model.

    Raises:
        ValueError: one line without paths: what is wrong, and what to do.
    """
    if words.strip() and not takes_text:
        raise ValueError("the model takes no text: leave the words out")
    said = usable_transcript(words, WORDS) if words.strip() else None
    if path is None:
        if said is None:
            raise ValueError(NOTHING)
        return text_clip(said, WORDS)
    check_recording(path, most_seconds)
    # Headers may lie: the span bounds what is decoded, whatever they say.
    span = (0.0, most_seconds + SLACK_S)
    clip = clip_of(path, said, wants_text=False)
    return replace(clip, key=CLIP, audio_span=span, video_span=span)


def check_recording(path: Path, most_seconds: float) -> None:
    """Raise ValueError unless a file is a recording of a known format that is not too long."""
    try:
        with open_container(path) as container:
            is_known = not FORMATS.isdisjoint(container.format.name.split(","))
        duration = probe(path).duration if is_known else 0.0
    except MediaError:
        is_known, duration = False, 0.0
    if not is_known:
        raise ValueError(UNREADABLE)
    if duration > most_seconds + SLACK_S:
        raise ValueError(
            f"{CLIP} is {duration:.0f} s long, and at most {most_seconds:g} s are taken: cut it, or start "
            "awtpn serve with a larger --max_seconds"
        )


def plain_cause(cause: str, clip: Clip) -> str:
    """Why a clip, or a modality of it, cannot be used, in one line that names no path.

    Args:
        cause: a message of the extraction.
        clip: whose.
    """
    for path in clip.files.values():
        cause = cause.replace(str(path), CLIP)
    # The span is only a bound: that of the whole clip.
    cause = cause.replace(describe_span(clip.audio_span), "").removeprefix(f"{CLIP}: ")
    return printable(basename(cause))
