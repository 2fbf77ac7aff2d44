"""Fixtures that the tests of extraction share."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora_support import write_sound, write_tree

from shards import BadSample
from shards.sources import recordings
from shards.sources.base import Clip, ClipSource


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    """Twenty tones of different pitch and length: 14 to train on, 6 to test on."""
    folder = tmp_path_factory.mktemp("tones")
    clips: list[Clip | BadSample] = []
    for i in range(20):
        path = write_sound(folder / f"{i}.wav", seconds=0.5 + 0.25 * (i * 7 % 5), hertz=100 + 40 * i)
        split = "train" if i % 10 < 7 else "test"
        clips.append(
            Clip(f"tone{i}", split, ["low", "high"][i % 2], path, None, meta={"pitch": 100 + 40 * i})
        )
    return ClipSource(clips, ["low", "high"], {"corpus": "tones"})


@pytest.fixture
def tree(tmp_path: Path) -> ClipSource:
    """Twelve real clips: .mp4 and .avi with both streams, and sounds."""
    return recordings.read(write_tree(tmp_path / "tree"))
