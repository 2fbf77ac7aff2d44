"""Sound and pictures of recordings, cut by their timestamps: PyAV decodes any container FFmpeg knows.

Time 0 of a recording is where its earliest stream begins (or its clock's 0, if a stream begins before that,
as the priming of AAC and Opus does), so that a span of sound and the same span of pictures are simultaneous:

- sound before its stream begins, and where packets are missing, is silence;
- the picture at a time is the frame shown then: the last that began by that time (or the first of all).

Times are as exact as the container's timestamps: 1 ms in FLV and Matroska, a sample in most others. AVI has
only the order of decoding: where pictures refer to later ones, they come one or two pictures late.

Packets that cannot be decoded are skipped and counted. A recording fails only if nothing of it decodes.

On request, a stream that never changes raises `ConstantStream`: sound that stays within one step of 16-bit
sound, as the silent sound track of a video has, or two or more identical pictures, as music with a cover has.
A stream of a single picture is an image, and does not raise.

- `container`: a recording opened: its streams, its clock, packets
- `audio`: its sound, mixed to one channel and resampled; `video`: its pictures at regular times
"""

from shards.extraction.media.audio import read_audio, resample
from shards.extraction.media.container import ConstantStream, MediaError, MediaInfo, probe
from shards.extraction.media.video import iterate_frames, read_frames

__all__ = [
    "ConstantStream",
    "MediaError",
    "MediaInfo",
    "iterate_frames",
    "probe",
    "read_audio",
    "read_frames",
    "resample",
]
