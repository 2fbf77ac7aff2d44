"""Extractions for tests: a quick encoder, one that is killed, several ranks in one process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from corpora_support import put_bytes
from support import LIMIT

from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.extraction.extract import extract
from shards.format.schema import Manifest
from shards.sources.base import Clip, ClipSource


class Killed(BaseException):
    """Stands for a kill: no code may catch it."""


class Counting:
    """An audio encoder of two features per 0.25 s; it can raise `Killed`, and refuse a length."""

    name, rate, dim, step_seconds = "counting", 8000, 2, 0.25
    refused_samples = 0

    def __init__(self, kill_after: int | None = None, step: float = 0.25, precision: str = "float32") -> None:
        self.settings: dict[str, Any] = {"id": "counting", "step_seconds": step, "dtype": precision}
        self.settings |= {"device": "anywhere", "versions": {"counting": "1"}}
        self.clips, self.kill_after = 0, kill_after

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        if any(len(wave) == self.refused_samples for wave in waves):
            raise ValueError("too odd a length")
        self.clips += len(waves)
        if self.kill_after is not None and self.clips > self.kill_after:
            raise Killed
        steps = [wave[: len(wave) // 2000 * 2000].reshape(-1, 2000) for wave in waves]
        return [np.stack([s.mean(1), s.std(1)], 1).astype(np.float32) for s in steps]


class Meanwhile(Counting):
    """An encoder that calls `happens` once, after so many clips."""

    def __init__(self, after: int, happens: Callable[[], object]) -> None:
        super().__init__()
        self.after, self.happens = after, happens

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        before, made = self.clips, super().encode(waves)
        if before <= self.after < self.clips:
            self.happens()
        return made


def built_in(**video: Any) -> dict[str, Any]:
    return {"audio": open_audio_encoder("logmel"), "video": open_video_encoder("descriptor", **video)}


def extracted(source: ClipSource, out: Path | str, **options: Any) -> Manifest:
    manifest = extract(source, str(out), **{"clips_per_shard": 3, "progress": False} | options)
    assert manifest is not None
    return manifest


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def skipped(folder: Path) -> dict[str, str]:
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {entry["key"]: entry["cause"] for entry in map(json.loads, lines)}


def over_ranks(ranks: int, call: Callable[..., Any]) -> list[Any]:
    """Run `call(rank=, world_size=, all_gather_object=)` on all ranks; what each returned or raised."""
    barrier, results = threading.Barrier(ranks, timeout=LIMIT), [None] * ranks
    values: list[Any] = [None] * ranks

    def run(rank: int) -> None:
        def all_gather_object(value: Any) -> list[Any]:
            values[rank] = value
            barrier.wait()
            found = list(values)
            barrier.wait()
            return found

        try:
            results[rank] = call(rank=rank, world_size=ranks, all_gather_object=all_gather_object)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def copied(tones: ClipSource, folder: Path) -> ClipSource:
    """The same clips in a folder of their own."""
    folder.mkdir()
    clips = [
        replace(clip, audio=put_bytes(folder / clip.audio.name, clip.audio.read_bytes()))
        for clip in tones.clips
        if isinstance(clip, Clip) and clip.audio
    ]
    return replace(tones, clips=clips)
