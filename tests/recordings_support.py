"""Datasets of recordings for tests: clips with known sound and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from media_support import chirp, numbered, record

from shards import FeatureBatch, FeatureStream
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.sources.base import Clip, ClipSource

SECONDS = (0.5, 1.23, 0.8, 2.05, 1.0)
RATE, FPS, SIDE = 16000, 10.0, 32


def recorded(**video: Any) -> dict[str, Any]:
    """The encoders of recordings, for small pictures."""
    return {
        "audio": open_audio_encoder("waveform"),
        "video": open_video_encoder("frames", **{"side": SIDE, "fps": FPS} | video),
    }


def clips_of(folder: Path) -> ClipSource:
    """Seven clips: five of sound and pictures, one of sound alone, one of pictures alone."""
    folder.mkdir(parents=True, exist_ok=True)
    clips: list[Any] = []
    for i, seconds in enumerate(SECONDS):
        pictures = [numbered(20 * i + j) for j in range(round(seconds * FPS))]
        path = record(folder / f"{i}.mkv", pictures, sound=sound_of(i))
        clips.append(Clip(f"clip{i}", "train", ["calm", "loud"][i % 2], path, path, meta={"number": i}))
    sound = record(folder / "sound.wav", sound=chirp(0.7))
    silent = record(folder / "silent.mkv", [numbered(200 + j) for j in range(6)])
    clips.append(Clip("sound", "test", "calm", sound, None, meta={"number": 5}))
    clips.append(Clip("pictures", "test", "loud", None, silent, meta={"number": 6}))
    return ClipSource(clips, ["calm", "loud"], {"corpus": "clips"})


def sound_of(i: int) -> np.ndarray:
    """float32 [samples] of clip i, each value a multiple of 1 / 32768."""
    return (np.rint(chirp(SECONDS[i]) * (i + 1) / 6 * 32768) / 32768).astype(np.float32)


def one_split(source: ClipSource) -> ClipSource:
    """The same clips, all of them to train on."""
    return replace(source, clips=[replace(clip, split="train") for clip in source.clips])  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Row:
    """An utterance of a batch: place, key and label; number of samples; sound and pictures."""

    place: int
    key: str
    label: int
    samples: int
    sound: np.ndarray
    pictures: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Row) and all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(Row)
        )


def rows_of(batch: FeatureBatch) -> list[Row]:
    """The utterances of a batch of sound and pictures; the arrays are copies."""
    audio, video = batch.features["audio"], batch.features["video"]
    return [
        Row(
            int(batch.place[i]),
            batch.key[i],
            int(batch.label[i]),
            int(batch.samples["audio"][i]),
            audio.values[audio.offsets[i] : audio.offsets[i + 1]].numpy().copy(),
            video.values[video.offsets[i] : video.offsets[i + 1]].numpy().copy(),
        )
        for i in range(len(batch))
    ]


def steps_of(streams: Sequence[FeatureStream], epoch: int, start_step: int = 0) -> list[list[Row]]:
    """The utterances of each step, over the streams of all ranks."""
    of_ranks = [[rows_of(batch) for batch in stream.epoch(epoch, start_step)] for stream in streams]
    return [[row for part in parts for row in part] for parts in zip(*of_ranks, strict=True)]
