"""A rank that vanished or hangs is noticed; one that works is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpora_support import (
    put_bytes,
)
from extraction_support import (
    Counting,
    Killed,
    extracted,
    files,
    over_ranks,
)

from shards.extraction.extract import extract
from shards.extraction.heartbeat import RankMonitor, heartbeat_writer
from shards.format.schema import Manifest
from shards.packing.marker import write_marker
from shards.packing.output_folder import clear_and_mark, open_output_store, open_workdir
from shards.sources.base import ClipSource


def test_a_rank_that_vanished_is_not_waited_for(tmp_path: Path, tones: ClipSource) -> None:
    def one(rank: int, **others: Any) -> Manifest | None:
        encoder = Counting(kill_after=4 if rank == 1 else None)
        return extract(
            tones,
            str(tmp_path / "d"),
            audio=encoder,
            clips_per_shard=3,
            progress=False,
            patience=2.0,
            rank=rank,
            **others,
        )

    first, second, third = over_ranks(3, one)
    assert (type(second), third) == (Killed, None)
    assert isinstance(first, OSError)
    assert "rank 1 has made no progress for 0.0333333 min; train-000004 is missing; stop the job" in str(
        first
    )
    manifest = extracted(tones, tmp_path / "d", audio=Counting())
    assert manifest.skipped == 0
    extracted(tones, tmp_path / "alone", audio=Counting())
    assert files(tmp_path / "d") == files(tmp_path / "alone")


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_rank_without_progress_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr("shards.extraction.heartbeat.time", clock)
    store = open_output_store(str(tmp_path / "d"), None)
    clear_and_mark(store, b"token", False)
    folder = open_workdir(store, b"token")
    on_progress = heartbeat_writer(folder, 1, patience=100)
    monitor = RankMonitor(folder, {"train-000001": 1, "train-000004": 2}, patience=100)
    put_bytes(tmp_path / "d" / "train-000004.part.json", b"{}")
    for _ in range(10):
        clock.now += 50
        on_progress()
        assert monitor.missing() == ["train-000001"]
    clock.now += 1000  # this rank itself was stopped: the other had no chance to be seen
    assert monitor.missing() == ["train-000001"]
    clock.now += 50
    with pytest.raises(
        OSError, match=r"rank 1 has made no progress for 1\.66667 min; train-000001 is missing"
    ):
        monitor.missing()
    write_marker(store, b"other")
    clock.now += 50
    with pytest.raises(OSError, match="another packing has begun here"):
        on_progress()
