"""Recordings encoded for tests: pictures that encode their number, sound whose values encode the time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 8
HEIGHT, WIDTH = 48, 16 * BITS
MILLISECOND = Fraction(1, 1000)


def numbered(number: int) -> np.ndarray:
    """A picture [HEIGHT, WIDTH, 3] of black and white bars, the bits of `number`."""
    bars = [255 * (number >> bit & 1) for bit in range(BITS)]
    row = np.repeat(np.array(bars, np.uint8), WIDTH // BITS)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def number_of(picture: np.ndarray) -> int:
    """The number that a picture of any size encodes."""
    columns = (np.arange(BITS) + 0.5) * picture.shape[1] / BITS
    values = picture[picture.shape[0] // 2, columns.astype(int)].mean(axis=1)
    return sum(1 << bit for bit in range(BITS) if values[bit] > 127)


def ramp(seconds: float, rate: int = 16000) -> np.ndarray:
    """Sound [samples] that grows from 0 to 0.5 over 10 s, so that a sample's value is its time / 20 s."""
    return (np.arange(round(seconds * rate)) / rate / 20).astype(np.float32)


def chirp(seconds: float, rate: int = 16000) -> np.ndarray:
    """Sound [samples] whose pitch grows, so that no two parts of it are alike."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 * t + 150 * t**2))).astype(np.float32)


def record(
    path: Path,
    pictures: Sequence[np.ndarray] = (),
    times: Sequence[float] | None = None,
    *,
    fps: int = 10,
    codec: str = "libx264",
    sound: np.ndarray | None = None,
    rate: int = 16000,
    sound_codec: str = "pcm_s16le",
    sound_begin: float = 0.0,
    gop: int = 5,
    rotation: tuple[int, bool] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode a recording.

    Args:
        path: its suffix chooses the container.
        pictures: [H, W, 3] each.
        times: presentation time of each in seconds; default i / fps.
        fps: nominal rate.
        codec: of the pictures.
        sound: float32 [samples] or [channels, samples].
        rate: of the sound.
        sound_codec: its codec.
        sound_begin: when it begins.
        gop: key frame interval in pictures.
        rotation: (degrees counter-clockwise, mirrored) of the display matrix.
        options: for the container.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        packets: list[Any] = []
        video = audio = None
        if len(pictures):
            video = container.add_stream(codec, rate=fps)
            video.height, video.width, video.pix_fmt = (
                *pictures[0].shape[:2],
                "rgb24" if codec == "png" else "yuv420p",
            )
            video.codec_context.time_base, video.codec_context.gop_size = MILLISECOND, gop
            if rotation is not None:
                video.set_display_rotation(rotation[0], hflip=rotation[1])
        if sound is not None:
            sound = np.atleast_2d(sound)
            audio = container.add_stream(
                sound_codec, rate=rate, layout="mono" if len(sound) == 1 else "stereo"
            )
        if video is not None:
            for i, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.time_base = MILLISECOND
                frame.pts = round(1000 * (times[i] if times is not None else i / fps))
                packets += video.encode(frame)
            packets += video.encode()
        if audio is not None and sound is not None:
            packets += encode_sound(audio, sound, rate, sound_begin)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def encode_sound(stream: Any, sound: np.ndarray, rate: int, begin: float) -> list[Any]:
    """Packets of sound [channels, samples]."""
    layout = "mono" if len(sound) == 1 else "stereo"
    resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
    fifo = av.AudioFifo()
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
    for part in resampler.resample(frame):
        fifo.write(part)
    size = stream.codec_context.frame_size or 1024
    packets: list[Any] = []
    while (part := fifo.read(size, partial=True)) is not None:
        part.pts += round(begin * rate)
        packets += stream.encode(part)
    return packets + stream.encode()


def spoil(path: Path, kind: str, numbers: range) -> int:
    """Overwrite packets of a stream with noise, in place; returns how many."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    content = bytearray(path.read_bytes())
    noise = np.random.default_rng(0)
    for number in numbers:
        begin = content.index(packets[number])
        content[begin : begin + len(packets[number])] = noise.bytes(len(packets[number]))
    path.write_bytes(content)
    return len(numbers)
