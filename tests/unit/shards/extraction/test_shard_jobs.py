"""The plan of an extraction: what is finished is not made again, and all ranks agree on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corpora_support import (
    GARBAGE,
    put_bytes,
)
from extraction_support import (
    Counting,
    Killed,
    Meanwhile,
    built_in,
    copied,
    extracted,
    files,
    files_in,
    over_ranks,
)

from shards import pack
from shards.extraction.extract import extract
from shards.extraction.shard_jobs import ExtractionPlan, plan_jobs
from shards.format.manifest import parse_manifest
from shards.format.schema import Manifest
from shards.packing.marker import write_marker
from shards.packing.output_folder import open_output_store
from shards.sources.base import ClipSource
from shards.storage.store import Store
from shards.tools.info import info
from shards.tools.verify import verify

# --- Continue ------------------------------------------------------------------------------------


def test_a_plan_names_all_shards_and_those_that_are_finished(tmp_path: Path, tones: ClipSource) -> None:
    out = tmp_path / "d"

    def plan() -> ExtractionPlan:
        return plan_jobs(
            tones,
            {"audio": Counting()},
            open_output_store(str(out), None),
            {"clips_per_shard": 3, "dtype": "float16", "on_bad": "skip", "constant": "missing"},
            overwrite=False,
            retry_failed=False,
            rank=0,
            all_gather_object=lambda value: [value],
        )

    first = plan()
    names = [f"train-{i:06d}" for i in range(5)] + [f"test-{i:06d}" for i in range(2)]
    assert [job.name for job in first.jobs] == [job.name for job in first.unfinished] == names
    assert [len(job.clips) for job in first.jobs] == [3, 3, 3, 3, 2, 3, 3]
    with pytest.raises(Killed):
        extracted(tones, out, audio=Counting(kill_after=7))
    second = plan()
    assert second.finished == {"train-000000", "train-000001"}
    assert [job.name for job in second.unfinished] == names[2:]
    assert (second.extraction, second.generation) == (first.extraction, 0)
    assert second.token != first.token, "an extraction that still runs in the folder stops"
    extracted(tones, out, audio=Counting())
    assert plan().is_complete


def test_a_stopped_extraction_continues_with_another_number_of_ranks(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    alone = extracted(tones, tmp_path / "alone", audio=Counting())
    with pytest.raises(Killed):
        extracted(tones, tmp_path / "d", audio=Counting(kill_after=7))
    (tmp_path / "d" / ".packing-killed").mkdir()  # what a kill leaves besides
    there = sorted(path.name for path in (tmp_path / "d").glob("*.tar"))
    assert there == ["train-000000.tar", "train-000001.tar"]
    with pytest.raises(ValueError, match="no such file"):
        info(str(tmp_path / "d"))

    encoders = [Counting(), Counting()]

    def one(rank: int, **others: Any) -> Manifest | None:
        encoder = encoders[rank]
        return extract(
            tones, str(tmp_path / "d"), audio=encoder, clips_per_shard=3, progress=False, rank=rank, **others
        )

    manifest, _ = over_ranks(2, one)
    assert "continues; 2 of 7 shards are there" in caplog.text
    assert sum(encoder.clips for encoder in encoders) == 20 - 6, "only what was missing was made"
    assert files(tmp_path / "d") == files(tmp_path / "alone")
    assert replace(manifest, provenance={}) == replace(alone, provenance={})


@pytest.mark.parametrize("again", [False, True])
def test_shards_with_clips_that_failed_can_be_made_again(
    tmp_path: Path, tones: ClipSource, again: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = copied(tones, tmp_path / "t")
    path = tmp_path / "t" / "1.wav"
    whole = path.read_bytes()
    path.write_bytes(GARBAGE)
    with pytest.raises(Killed):
        extracted(source, tmp_path / "d", audio=Counting(kill_after=7))
    path.write_bytes(whole)
    encoder = Counting()
    manifest = extracted(source, tmp_path / "d", audio=encoder, retry_failed=again)
    assert manifest.skipped == (0 if again else 1)
    assert encoder.clips == 20 - (3 if again else 6), "of two shards there, one had a clip left out"
    if again:
        extracted(source, tmp_path / "alone", audio=Counting())
        assert files(tmp_path / "d") == files(tmp_path / "alone")
        extracted(source, tmp_path / "d", audio=Counting(), retry_failed=True)
        told = "d: already complete; failed clips are tried again only while it is not; pass overwrite"
        assert told in caplog.text


def test_an_extraction_stops_when_another_launch_takes_over(tmp_path: Path, tones: ClipSource) -> None:
    """The same command, given twice: the second continues, and the dataset of both is correct."""
    out = tmp_path / "d"

    def killed_launch() -> None:
        with pytest.raises(Killed):
            extracted(tones, out, audio=Counting(kill_after=4))

    with pytest.raises(OSError, match="d: another extraction has begun here; this one stops"):
        extracted(tones, out, audio=Meanwhile(7, killed_launch))
    with pytest.raises(OSError, match="another packing has begun here; this one stops"):
        extracted(tones, out, audio=Meanwhile(0, lambda: extracted(tones, out, audio=Counting())))
    extracted(tones, tmp_path / "alone", audio=Counting())
    assert files(out) == files(tmp_path / "alone")
    assert not verify(str(out)).faults


# --- What is in the folder already ---------------------------------------------------------------


def test_an_unfinished_extraction_is_not_removed(tmp_path: Path, tones: ClipSource) -> None:
    out = tmp_path / "d"
    with pytest.raises(Killed):
        extracted(tones, out, audio=Counting(kill_after=7))
    before = files_in(out)
    others: list[dict[str, Any]] = [
        {"audio": Counting(step=0.5)},
        {"audio": Counting(), "clips_per_shard": 4},
        {"audio": Counting(), "dtype": "float32"},
        {"audio": Counting(precision="bfloat16")},
        {**built_in()},
    ]
    for options in others:
        with pytest.raises(ValueError, match=r"unfinished extraction of other clips or settings; finish it"):
            extracted(tones, out, **options)
    with pytest.raises(ValueError, match="unfinished extraction"):
        pack([], str(out), classes=["low"], progress=False)
    with pytest.raises(ValueError, match="unfinished extraction"):
        extracted(replace(tones, clips=tones.clips[1:]), out, audio=Counting())
    assert files_in(out) == before
    manifest = extracted(tones, out, audio=Counting(), clips_per_shard=4, overwrite=True)
    assert len(manifest.splits["train"].shards) == 4
    with pytest.raises(ValueError, match="finished dataset; pack elsewhere, or pass overwrite"):
        extracted(tones, out, audio=Counting(), clips_per_shard=3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_finished_extraction_repeated_is_complete(
    tmp_path: Path,
    tones: ClipSource,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ranks: int,
) -> None:
    """As a batch system may do, also after a kill between the manifest and the end."""
    out = tmp_path / "d"

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as kill:
        kill.setattr("shards.packing.output_folder.remove_temporary", killed)
        with pytest.raises(Killed):
            extracted(tones, out, audio=Counting())
    assert {".packing", "test-000000.part.json"} <= files_in(out).keys()
    encoders = [Counting(), Counting()]

    def one(rank: int, **others: Any) -> Manifest | None:
        encoder = encoders[rank]
        return extract(tones, str(out), audio=encoder, clips_per_shard=3, progress=False, rank=rank, **others)

    for _ in range(2):
        manifest, *others = over_ranks(ranks, one)
        assert others == [None] * (ranks - 1)
        assert manifest == parse_manifest((out / "manifest.json").read_text(), "m")
    assert "already complete" in caplog.text
    assert sum(encoder.clips for encoder in encoders) == 0
    extracted(tones, tmp_path / "alone", audio=Counting())
    assert files(out) == files(tmp_path / "alone"), "no record and no marker is left"
    again = Counting()
    extracted(tones, out, audio=again, overwrite=True)
    assert again.clips == 20


def test_an_interrupted_replacement_is_not_taken_for_complete(
    tmp_path: Path, tones: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new marker beside the old manifest: the dataset there is the old one."""
    out = tmp_path / "d"
    extracted(tones, out, audio=Counting())

    def killed(store: Store, token: bytes) -> None:
        write_marker(store, token)
        raise Killed

    with monkeypatch.context() as kill:
        kill.setattr("shards.packing.output_folder.write_marker", killed)
        with pytest.raises(Killed):
            extracted(tones, out, audio=Counting(step=0.5), overwrite=True)
    with pytest.raises(ValueError, match="finished dataset"):
        extracted(tones, out, audio=Counting(step=0.5))
    encoder = Counting(step=0.5)
    extracted(tones, out, audio=encoder, overwrite=True)
    assert encoder.clips == 20


def test_a_replacement_continues_and_the_old_dataset_stays_until_then(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "d"
    extracted(tones, out, audio=Counting())
    before = files(out)
    with pytest.raises(Killed):
        extracted(tones, out, audio=Counting(step=0.5, kill_after=7), overwrite=True)
    assert before.items() <= files_in(out).items()
    assert verify(str(out)).faults == []
    with pytest.raises(ValueError, match="finished dataset"):
        extracted(tones, out, audio=Counting(step=0.125))
    assert (
        extracted(tones, out, audio=Counting()).provenance["features"]["audio"]["settings"]["step_seconds"]
        == 0.25
    )
    encoder = Counting(step=0.5)
    manifest = extracted(tones, out, audio=encoder)  # the same command, with or without overwrite
    assert "continues; 2 of 7 shards are there" in caplog.text
    assert encoder.clips == 14
    assert files(out).keys() == {
        name for split in manifest.splits.values() for e in split.shards for name in (e.name, e.index)
    }
    alone = extracted(tones, tmp_path / "alone", audio=Counting(step=0.5))
    assert [e.sha256 for e in manifest.splits["train"].shards] == [
        e.sha256 for e in alone.splits["train"].shards
    ]


def test_ranks_replace_a_dataset_together(tmp_path: Path, tones: ClipSource) -> None:
    out = tmp_path / "d"
    extracted(tones, out, audio=Counting())

    def one(**others: Any) -> Manifest | None:
        encoder = Counting(step=0.5)
        options = {"audio": encoder, "clips_per_shard": 3, "progress": False, "overwrite": True}
        return extract(tones, str(out), **options, **others)

    manifest, *others = over_ranks(3, one)
    assert others == [None, None]
    shards = [entry for split in manifest.splits.values() for entry in split.shards]
    assert all(entry.name.endswith("-g1.tar") for entry in shards)
    assert files(out).keys() == {name for entry in shards for name in (entry.name, entry.index)}
    assert verify(str(out)).faults == []


# --- Ranks ---------------------------------------------------------------------------------------


def test_all_ranks_refuse_alike(tmp_path: Path, tones: ClipSource) -> None:
    put_bytes(tmp_path / "d" / "holiday.jpg", b"mine")
    results = over_ranks(3, lambda **rank: extract(tones, str(tmp_path / "d"), audio=Counting(), **rank))
    assert [type(result) for result in results] == [ValueError] * 3
    assert all("holiday.jpg" in str(result) for result in results)


def test_a_rank_that_reads_other_clips_is_refused(tmp_path: Path, tones: ClipSource) -> None:
    """For example, a host whose copy of the corpus is incomplete."""

    def one(rank: int, **others: Any) -> Manifest | None:
        source = replace(tones, clips=tones.clips[rank:])
        return extract(source, str(tmp_path / "d"), audio=Counting(), progress=False, rank=rank, **others)

    results = over_ranks(3, one)
    assert [type(result) for result in results] == [ValueError] * 3, "none waits for one that stopped"
    assert all("ranks [1, 2] read other clips" in str(result) for result in results)
    assert not (tmp_path / "d").exists()


def test_a_rank_that_sees_another_folder_is_refused(tmp_path: Path, tones: ClipSource) -> None:
    """For example, a folder on the host's own disk."""

    def one(rank: int, **others: Any) -> Manifest | None:
        out = str(tmp_path / f"host{rank}" / "d")
        return extract(tones, out, audio=Counting(), progress=False, rank=rank, **others)

    results = over_ranks(2, one)
    assert [type(result) for result in results] == [ValueError] * 2
    assert all("rank 1 sees another folder than rank 0" in str(result) for result in results)
