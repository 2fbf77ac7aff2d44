"""Extraction: the same shards for any number of ranks and after any stop; what fails is listed by name."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
from corpora_support import (
    GARBAGE,
    put,
    put_bytes,
    write_empty_track,
    write_sound,
    write_tree,
    write_video,
)
from media_support import record
from support import LIMIT, same_bits_or_close

from shards import BadSample, pack
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.extraction.encoders.descriptor import describe as describe_pictures
from shards.extraction.extract import extract
from shards.extraction.heartbeat import RankMonitor, heartbeat_writer
from shards.extraction.media import read_frames
from shards.extraction.pipeline import decode, decode_ahead, encode
from shards.extraction.reopen_encoder import reopen_encoder
from shards.extraction.shard_jobs import ShardJob, read_records
from shards.format.feature_space import check_same_space, describe, space_of
from shards.format.manifest import parse_manifest
from shards.format.schema import Manifest
from shards.packing.output_folder import clear_and_mark, open_folder, open_workdir, write_marker
from shards.sources import recordings
from shards.sources.base import Clip, ClipSource
from shards.storage.store import Store
from shards.tools.info import format_info, info
from shards.tools.verify import verify


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


class Counting:
    """An audio encoder of two features a quarter of a second; it can be told to stop, and refuses a pitch."""

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


@pytest.fixture(scope="module")
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


def built_in(**video: Any) -> dict[str, Any]:
    return {"audio": open_audio_encoder("logmel"), "video": open_video_encoder("descriptor", **video)}


def made(source: ClipSource, out: Path | str, **options: Any) -> Manifest:
    manifest = extract(source, str(out), **{"clips_per_shard": 3, "progress": False} | options)
    assert manifest is not None
    return manifest


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def skipped(folder: Path) -> dict[str, str]:
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {entry["key"]: entry["cause"] for entry in map(json.loads, lines)}


def over_ranks(ranks: int, call: Callable[..., Any]) -> list[Any]:
    """`call(rank=, world_size=, all_gather_object=)` of all ranks at once; what each returned."""
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


# --- What is in the shards -----------------------------------------------------------------------


def test_sequences_have_the_lengths_of_their_clips(tmp_path: Path, tree: ClipSource) -> None:
    manifest = made(tree, tmp_path / "d", **built_in(fps=5))
    assert manifest.classes == ["calm", "happy"]
    assert {name: m.dim for name, m in manifest.modalities.items()} == {"audio": 80, "video": 148}
    assert [shard.name for shard in manifest.splits["train"].shards] == [
        "train-000000.tar",
        "train-000001.tar",
    ]
    urls = [str(tmp_path / "d" / s.name) for split in manifest.splits.values() for s in split.shards]
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()}
    assert len(found) == 12
    for key, sample in found.items():
        assert 10 <= len(sample["audio.npy"]) <= 11, "a second in steps of 0.1 s; codecs add a little"
        assert ("video.npy" in sample) == (not key.endswith("_c"))
        if "video.npy" in sample:
            assert sample["video.npy"].shape == (5, 148)


def test_features_are_the_encoders_own(tmp_path: Path, tones: ClipSource) -> None:
    """Whatever batch they went through, each utterance has its own features, label and metadata."""
    made(tones, tmp_path / "d", audio=Counting(), batch=4, dtype="float32")
    urls = [str(path) for path in sorted((tmp_path / "d").glob("*.tar"))]
    found = {sample["__key__"]: sample for sample in webdataset.WebDataset(urls, shardshuffle=False).decode()}
    assert len(found) == 20
    for clip in tones.clips:
        assert isinstance(clip, Clip)
        [alone] = list(encode(decode_ahead([clip], {"audio": Counting()}, 1), {"audio": Counting()}, 1))
        assert not isinstance(alone, BadSample)
        np.testing.assert_array_equal(found[clip.key]["audio.npy"], alone.features["audio"])
        assert found[clip.key]["json"] == {"label": clip.label, **clip.meta}


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_shards_do_not_depend_on_the_number_of_ranks(tmp_path: Path, tones: ClipSource, ranks: int) -> None:
    alone = made(tones, tmp_path / "alone", audio=Counting())

    def one(**rank: Any) -> Manifest | None:
        return extract(
            tones, str(tmp_path / "d"), audio=Counting(), clips_per_shard=3, progress=False, **rank
        )

    manifest, *others = over_ranks(ranks, one)
    assert others == [None] * (ranks - 1)
    assert files(tmp_path / "d") == files(tmp_path / "alone")
    assert len(files(tmp_path / "d")) == 2 * (5 + 2), "7 shards with their indexes, and no record is left"
    assert replace(manifest, provenance={}) == replace(alone, provenance={})
    assert manifest == parse_manifest((tmp_path / "d" / "manifest.json").read_text(), "m")


def test_a_stopped_extraction_goes_on_with_another_number_of_ranks(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    alone = made(tones, tmp_path / "alone", audio=Counting())
    with pytest.raises(Killed):
        made(tones, tmp_path / "d", audio=Counting(kill_after=7))
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
    assert "going on; 2 of 7 shards are there" in caplog.text
    assert sum(encoder.clips for encoder in encoders) == 20 - 6, "only what was missing was made"
    assert files(tmp_path / "d") == files(tmp_path / "alone")
    assert replace(manifest, provenance={}) == replace(alone, provenance={})


def files_of_shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_remote_output_equals_local(tmp_path: Path, tones: ClipSource) -> None:
    fs = fsspec.filesystem("memory")
    made(tones, tmp_path / "d", audio=Counting())
    with pytest.raises(Killed):
        made(tones, "memory://extract/d", audio=Counting(kill_after=9))
    made(tones, "memory://extract/d", audio=Counting())
    remote = {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.ls("/extract/d", detail=False)}
    remote.pop("manifest.json")
    assert remote == files(tmp_path / "d")
    fs.rm("/extract", recursive=True)


# --- What fails ----------------------------------------------------------------------------------


def test_clips_that_fail_are_listed_with_their_cause(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    first = tones.clips[0]
    assert isinstance(first, Clip)
    film = write_video(tmp_path / "silent.mp4", sound=False)
    broken = put_bytes(tmp_path / "broken.mp4", GARBAGE)
    bad = [
        replace(first, key="gone", audio=tmp_path / "gone.wav", source="table.csv: row 7"),
        replace(first, key="broken", audio=broken),
        replace(first, key="silent", audio=film, video=film),
        replace(first, key="past", audio_span=(8.0, 9.0)),
        replace(first, key="odd", audio_span=(0.0, 0.123)),
        replace(first, key="nameless", label="angry"),
        replace(first, key="tone3"),
        replace(first, key="nowhere", split="../train"),
        BadSample("known", "missing in the archive", "list.txt"),
    ]
    encoder = Counting()
    encoder.refused_samples = 984  # of "odd", in a batch with sound ones
    source = replace(tones, clips=[*tones.clips, *bad])
    manifest = made(source, tmp_path / "d", audio=encoder)
    causes = skipped(tmp_path / "d")
    assert causes.keys() == {clip.key for clip in bad}
    assert manifest.skipped == len(bad)
    assert causes["gone"] == f"table.csv: row 7: {tmp_path / 'gone.wav'}: no such file"
    assert "broken.mp4: not a recording" in causes["broken"]
    assert causes["silent"] == f"{film}: no audio to make features of"
    assert "8 s to 9 s" in causes["past"]
    assert causes["odd"] == "too odd a length"
    assert "label 'angry' is unknown" in causes["nameless"]
    assert "this key was packed before" in causes["tone3"]
    assert "split '../train'" in causes["nowhere"]
    assert causes["known"] == "list.txt: missing in the archive"
    assert sum(split.utterances for split in manifest.splits.values()) == 20
    assert "9 bad samples skipped" in caplog.text
    # What is known before the extraction begins is told then.
    assert "5 of 29 clips cannot be used; the first, gone: table.csv: row 7: " in caplog.text


def test_a_stream_that_cannot_be_decoded_is_lacking_and_told(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    """A track of sound without packets beside a good picture; a picture whose file is gone beside sound."""
    first = tones.clips[0]
    assert isinstance(first, Clip)
    clips = [
        replace(first, key="silent", audio=(film := write_empty_track(tmp_path / "a.mkv")), video=film),
        replace(first, key="blind", video=tmp_path / "gone.mp4"),
        replace(first, key="neither", audio=film, video=tmp_path / "gone.mp4"),
    ]
    made(replace(tones, clips=clips), tmp_path / "d", **built_in())
    assert skipped(tmp_path / "d").keys() == {"neither"}
    assert "a.mkv: no sound can be decoded; " in skipped(tmp_path / "d")["neither"]
    assert "gone.mp4: no such file" in skipped(tmp_path / "d")["neither"]
    assert "2 clips go without a stream that cannot be decoded" in caplog.text
    [shard] = (tmp_path / "d").glob("*.tar")
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(str(shard), shardshuffle=False)}
    lacking = {key: json.loads(sample["json"])["lacking"] for key, sample in samples.items()}
    assert lacking == {
        "silent": {"audio": f"{film}: no sound can be decoded"},
        "blind": {"video": f"{tmp_path / 'gone.mp4'}: no such file"},
    }
    assert "video.npy" in samples["silent"]
    assert "audio.npy" not in samples["silent"]
    # What nobody wants may be gone.
    made(replace(tones, clips=clips[1:2]), tmp_path / "e", audio=Counting())
    assert not (tmp_path / "e" / "skipped.jsonl").exists()


def test_refused_clips_stop_the_extraction(tmp_path: Path, tones: ClipSource) -> None:
    known = replace(tones, clips=[BadSample("known", "missing", "list.txt"), *tones.clips])
    with pytest.raises(ValueError, match=r"'known': list.txt: missing"):
        made(known, tmp_path / "d", audio=Counting(), on_bad="refuse")
    assert not (tmp_path / "d").exists()
    gone = Clip("gone", "train", "low", tmp_path / "gone.wav", None)
    with pytest.raises(ValueError, match=r"'gone': .*gone.wav: no such file"):
        made(replace(tones, clips=[*tones.clips, gone]), tmp_path / "e", audio=Counting(), on_bad="refuse")


def test_where_every_clip_fails_nothing_is_left_to_go_on_with(tmp_path: Path, tones: ClipSource) -> None:
    path = tmp_path / "late.wav"
    source = replace(tones, clips=[Clip("late", "train", "low", path, None)])
    with pytest.raises(ValueError, match=r"all 1 clips failed; the first is .*late.wav: no such file"):
        made(source, tmp_path / "d", audio=Counting())
    assert list((tmp_path / "d").iterdir()) == []
    write_sound(path)
    assert made(source, tmp_path / "d", audio=Counting()).splits["train"].utterances == 1
    with pytest.raises(ValueError, match="no clips"):
        made(replace(tones, clips=[]), tmp_path / "e", audio=Counting())


def test_a_modality_that_no_clip_has_is_left_out(tmp_path: Path, tones: ClipSource) -> None:
    manifest = made(tones, tmp_path / "d", **built_in())
    assert list(manifest.modalities) == list(manifest.provenance["features"]) == ["audio"]


def test_a_feature_that_float16_ruins_is_warned_of(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    """Packing refuses it; after hours of encoding that would be a pity."""

    class Shifted(Counting):
        def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            return [values + np.float32(1000) for values in super().encode(waves)]

    manifest = made(tones, tmp_path / "d", audio=Shifted())
    assert "stored as float16" in caplog.text
    assert "(--dtype float32)" in caplog.text
    assert "stored as float16" in manifest.provenance["warning"]
    assert "warning" not in made(tones, tmp_path / "e", audio=Shifted(), dtype="float32").provenance


def test_what_is_skipped_may_have_a_name_that_is_no_text(tmp_path: Path, tones: ClipSource) -> None:
    """File systems take any bytes for a name; of those that are no UTF-8 Python makes half characters."""
    odd = Clip("odd", "train", "low", tmp_path / os.fsdecode(b"caf\xe9 \xe2\x98\x83.wav"), None)
    made(replace(tones, clips=[*tones.clips, odd]), tmp_path / "d", audio=Counting())
    assert "caf\\udce9 \u2603.wav" in (tmp_path / "d" / "skipped.jsonl").read_text(encoding="utf-8")
    assert skipped(tmp_path / "d")["odd"] == f"{odd.audio}: no such file"


def test_a_full_disk_costs_one_shard(
    tmp_path: Path, tones: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced, room = os.replace, [8]

    def replace_while_there_is_room(path: Path, to: Path) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(path, to)

    with monkeypatch.context() as full:
        full.setattr("shards.packing.output_folder.os.replace", replace_while_there_is_room)
        with pytest.raises(OSError, match=r"d: no room left .*Make room, and the same command goes on"):
            made(tones, tmp_path / "d", audio=Counting())
    encoder = Counting()
    made(tones, tmp_path / "d", audio=encoder)
    assert encoder.clips == 20 - 6, "8 files are 2 shards with index and record, and a third's tar and index"
    made(tones, tmp_path / "alone", audio=Counting())
    assert files(tmp_path / "d") == files(tmp_path / "alone")


# --- Storage that fails --------------------------------------------------------------------------


class Meanwhile(Counting):
    """An encoder during whose work something happens, once."""

    def __init__(self, after: int, happens: Callable[[], object]) -> None:
        super().__init__()
        self.after, self.happens = after, happens

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        before, made = self.clips, super().encode(waves)
        if before <= self.after < self.clips:
            self.happens()
        return made


def copied(tones: ClipSource, folder: Path) -> ClipSource:
    """The same clips in a folder of their own."""
    folder.mkdir()
    clips = [
        replace(clip, audio=put_bytes(folder / clip.audio.name, clip.audio.read_bytes()))
        for clip in tones.clips
        if isinstance(clip, Clip) and clip.audio
    ]
    return replace(tones, clips=clips)


def test_recordings_that_go_away_are_no_bad_clips(
    tmp_path: Path, tones: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.extraction.pipeline.AHEAD_CLIPS", 1)
    mounted, gone = tmp_path / "mounted", tmp_path / "gone"
    source = copied(tones, mounted)
    with pytest.raises(
        OSError, match=r"\.wav: no such file: the recordings went away; .* same command goes on"
    ):
        made(source, tmp_path / "d", audio=Meanwhile(9, lambda: mounted.rename(gone)))
    assert 2 <= len(list((tmp_path / "d").glob("*.part.json"))) < 7
    with pytest.raises(ValueError, match="unfinished extraction of other clips"):
        made(source, tmp_path / "d", audio=Counting())
    gone.rename(mounted)
    manifest = made(source, tmp_path / "d", audio=Counting())
    assert manifest.skipped == 0
    made(source, tmp_path / "alone", audio=Counting())
    assert files(tmp_path / "d") == files(tmp_path / "alone")


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_what_the_system_cannot_read_is_told_from_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(error, os.strerror(error))

    path = put_bytes(tmp_path / "a.wav", GARBAGE)
    clip = Clip("a", "all", "low", path, None)
    broken = decode(clip, {"audio": Counting()})
    assert not broken.lost
    assert "not a recording" in str(broken.cause)
    monkeypatch.setattr("shards.extraction.pipeline.open", fails, raising=False)
    unread = decode(clip, {"audio": Counting()})
    assert unread.lost
    assert unread.cause == f"{path}: cannot be read ({os.strerror(error)})"


def test_a_read_error_halfway_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg goes on behind it, with what is left: a clip would silently be shorter."""
    path = write_sound(tmp_path / "a.wav")

    def read_with_faults(path: Path, rate: int, span: Any, faults: Any, keep: bool) -> np.ndarray:
        faults["audio"] += next(failures, 0)
        return np.ones(8 if failing else 2000, np.float32)

    for failing in (True, False):
        failures = iter([1])
        monkeypatch.setattr("shards.extraction.pipeline.read_audio", read_with_faults)
        with monkeypatch.context() as lost:
            if failing:
                lost.setattr("shards.extraction.pipeline._read_through", lambda path: os.stat(path / "x"))
            decoded = decode(Clip("a", "all", "low", path, None), {"audio": Counting()})
        assert decoded.lost == failing
    assert len(decoded.media["audio"]) == 2000


def test_a_shard_of_which_every_clip_fails_stops(tmp_path: Path, tones: ClipSource) -> None:
    source = copied(tones, tmp_path / "t")
    whole = {path: path.read_bytes() for path in (tmp_path / "t").iterdir()}
    for path in whole:
        path.write_bytes(bytes(len(whole[path])))
    with pytest.raises(
        ValueError, match=r"all 10 clips of train-000000 failed, the first, tone0, since .*0.wav: "
    ):
        made(source, tmp_path / "d", audio=Counting(), clips_per_shard=10)
    for path, content in whole.items():
        path.write_bytes(content)
    assert made(source, tmp_path / "d", audio=Counting(), clips_per_shard=10).skipped == 0


@pytest.mark.parametrize("again", [False, True])
def test_shards_with_clips_that_failed_can_be_made_again(
    tmp_path: Path, tones: ClipSource, again: bool
) -> None:
    source = copied(tones, tmp_path / "t")
    path = tmp_path / "t" / "1.wav"
    whole = path.read_bytes()
    path.write_bytes(GARBAGE)
    with pytest.raises(Killed):
        made(source, tmp_path / "d", audio=Counting(kill_after=7))
    path.write_bytes(whole)
    encoder = Counting()
    manifest = made(source, tmp_path / "d", audio=encoder, retry_failed=again)
    assert manifest.skipped == (0 if again else 1)
    assert encoder.clips == 20 - (3 if again else 6), "of two shards there, one had a clip left out"
    if again:
        made(source, tmp_path / "alone", audio=Counting())
        assert files(tmp_path / "d") == files(tmp_path / "alone")


# --- Other ranks and other launches --------------------------------------------------------------


def test_an_extraction_that_another_launch_follows_stops(tmp_path: Path, tones: ClipSource) -> None:
    """The same command, given twice: the second goes on, and what both made is whole."""
    out = tmp_path / "d"

    def killed_launch() -> None:
        with pytest.raises(Killed):
            made(tones, out, audio=Counting(kill_after=4))

    with pytest.raises(OSError, match="d: another extraction has begun here; this one stops"):
        made(tones, out, audio=Meanwhile(7, killed_launch))
    with pytest.raises(OSError, match="another packing has begun here; this one stops"):
        made(tones, out, audio=Meanwhile(0, lambda: made(tones, out, audio=Counting())))
    made(tones, tmp_path / "alone", audio=Counting())
    assert files(out) == files(tmp_path / "alone")
    assert not verify(str(out)).faults


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
    assert "rank 1 has made nothing for 0.0333333 min; train-000004 is missing; stop the job" in str(first)
    manifest = made(tones, tmp_path / "d", audio=Counting())
    assert manifest.skipped == 0
    made(tones, tmp_path / "alone", audio=Counting())
    assert files(tmp_path / "d") == files(tmp_path / "alone")


class Clock:
    """A clock that is told the time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_patience_is_with_who_makes_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr("shards.extraction.heartbeat.time", clock)
    store = open_folder(str(tmp_path / "d"), None)
    clear_and_mark(store, b"token", False)
    target = open_workdir(store, b"token")
    tick = heartbeat_writer(target, 1, patience=100)
    watch = RankMonitor(target, {"train-000001": 1, "train-000004": 2}, patience=100)
    put_bytes(tmp_path / "d" / "train-000004.part.json", b"{}")
    for _ in range(10):
        clock.now += 50
        tick()
        assert watch.missing() == ["train-000001"]
    clock.now += 1000  # this rank itself was stopped: the other had no chance to be seen
    assert watch.missing() == ["train-000001"]
    clock.now += 50
    with pytest.raises(OSError, match=r"rank 1 has made nothing for 1\.66667 min; train-000001 is missing"):
        watch.missing()
    write_marker(store, b"other")
    clock.now += 50
    with pytest.raises(OSError, match="another packing has begun here"):
        tick()


# --- What is in the folder already ---------------------------------------------------------------


def test_an_unfinished_extraction_is_not_thrown_away(tmp_path: Path, tones: ClipSource) -> None:
    out = tmp_path / "d"
    with pytest.raises(Killed):
        made(tones, out, audio=Counting(kill_after=7))
    before = files_of_shards(out)
    others: list[dict[str, Any]] = [
        {"audio": Counting(step=0.5)},
        {"audio": Counting(), "clips_per_shard": 4},
        {"audio": Counting(), "dtype": "float32"},
        {"audio": Counting(precision="bfloat16")},
        {**built_in()},
    ]
    for options in others:
        with pytest.raises(
            ValueError, match=r"unfinished extraction of other clips or settings; finish that"
        ):
            made(tones, out, **options)
    with pytest.raises(ValueError, match="unfinished extraction"):
        pack([], str(out), classes=["low"], progress=False)
    with pytest.raises(ValueError, match="unfinished extraction"):
        made(replace(tones, clips=tones.clips[1:]), out, audio=Counting())
    assert files_of_shards(out) == before
    manifest = made(tones, out, audio=Counting(), clips_per_shard=4, overwrite=True)
    assert len(manifest.splits["train"].shards) == 4
    with pytest.raises(ValueError, match="finished dataset; pack elsewhere, or pass overwrite"):
        made(tones, out, audio=Counting(), clips_per_shard=3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_finished_extraction_repeated_is_complete(
    tmp_path: Path,
    tones: ClipSource,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ranks: int,
) -> None:
    """As a batch system may do, even after a kill between the manifest and the end."""
    out = tmp_path / "d"

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as kill:
        kill.setattr("shards.packing.output_folder.remove_temporary", killed)
        with pytest.raises(Killed):
            made(tones, out, audio=Counting())
    assert {".packing", "test-000000.part.json"} <= files_of_shards(out).keys()
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
    made(tones, tmp_path / "alone", audio=Counting())
    assert files(out) == files(tmp_path / "alone"), "no record and no marker is left"
    again = Counting()
    made(tones, out, audio=again, overwrite=True)
    assert again.clips == 20


def test_an_interrupted_replacement_is_not_taken_for_complete(
    tmp_path: Path, tones: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new marker beside the old manifest: what is there is the old dataset."""
    out = tmp_path / "d"
    made(tones, out, audio=Counting())

    def killed(store: Store, token: bytes) -> None:
        write_marker(store, token)
        raise Killed

    with monkeypatch.context() as kill:
        kill.setattr("shards.packing.output_folder.write_marker", killed)
        with pytest.raises(Killed):
            made(tones, out, audio=Counting(step=0.5), overwrite=True)
    with pytest.raises(ValueError, match="finished dataset"):
        made(tones, out, audio=Counting(step=0.5))
    encoder = Counting(step=0.5)
    made(tones, out, audio=encoder, overwrite=True)
    assert encoder.clips == 20


def test_a_replaced_extraction_goes_on_and_the_old_dataset_stays_until_then(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "d"
    made(tones, out, audio=Counting())
    before = files(out)
    with pytest.raises(Killed):
        made(tones, out, audio=Counting(step=0.5, kill_after=7), overwrite=True)
    assert before.items() <= files_of_shards(out).items()
    assert verify(str(out)).faults == []
    with pytest.raises(ValueError, match="finished dataset"):
        made(tones, out, audio=Counting(step=0.125))
    assert (
        made(tones, out, audio=Counting()).provenance["features"]["audio"]["settings"]["step_seconds"] == 0.25
    )
    encoder = Counting(step=0.5)
    manifest = made(tones, out, audio=encoder)  # the same command, with or without overwrite
    assert "going on; 2 of 7 shards are there" in caplog.text
    assert encoder.clips == 14
    assert files(out).keys() == {
        name for split in manifest.splits.values() for e in split.shards for name in (e.name, e.index)
    }
    alone = made(tones, tmp_path / "alone", audio=Counting(step=0.5))
    assert [e.sha256 for e in manifest.splits["train"].shards] == [
        e.sha256 for e in alone.splits["train"].shards
    ]


def test_ranks_replace_a_dataset_together(tmp_path: Path, tones: ClipSource) -> None:
    out = tmp_path / "d"
    made(tones, out, audio=Counting())

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


def test_all_ranks_refuse_alike(tmp_path: Path, tones: ClipSource) -> None:
    put_bytes(tmp_path / "d" / "holiday.jpg", b"mine")
    results = over_ranks(3, lambda **rank: extract(tones, str(tmp_path / "d"), audio=Counting(), **rank))
    assert [type(result) for result in results] == [ValueError] * 3
    assert all("holiday.jpg" in str(result) for result in results)


def test_a_rank_that_reads_other_clips_is_refused(tmp_path: Path, tones: ClipSource) -> None:
    """Say, a host whose copy of the corpus is not whole."""

    def one(rank: int, **others: Any) -> Manifest | None:
        source = replace(tones, clips=tones.clips[rank:])
        return extract(source, str(tmp_path / "d"), audio=Counting(), progress=False, rank=rank, **others)

    results = over_ranks(3, one)
    assert [type(result) for result in results] == [ValueError] * 3, "none waits for one that stopped"
    assert all("ranks [1, 2] read other clips" in str(result) for result in results)
    assert not (tmp_path / "d").exists()


def test_a_rank_that_sees_another_folder_is_refused(tmp_path: Path, tones: ClipSource) -> None:
    """Say, a folder on the host's own disk."""

    def one(rank: int, **others: Any) -> Manifest | None:
        out = str(tmp_path / f"host{rank}" / "d")
        return extract(tones, out, audio=Counting(), progress=False, rank=rank, **others)

    results = over_ranks(2, one)
    assert [type(result) for result in results] == [ValueError] * 2
    assert all("rank 1 sees another folder than rank 0" in str(result) for result in results)


def test_wrong_options_are_refused(tmp_path: Path, tones: ClipSource) -> None:
    with pytest.raises(ValueError, match="give an encoder"):
        made(tones, tmp_path / "d")
    with pytest.raises(ValueError, match="clips_per_shard=0"):
        made(tones, tmp_path / "d", audio=Counting(), clips_per_shard=0)
    with pytest.raises(ValueError, match="a#b: '#' begins the name of a split"):
        made(tones, tmp_path / "a#b", audio=Counting())
    with pytest.raises(ValueError, match="dtype 'float8'"):
        made(tones, tmp_path / "d", audio=Counting(), dtype="float8")
    assert not (tmp_path / "d").exists()


# --- Feature spaces ------------------------------------------------------------------------------


def test_the_manifest_tells_how_features_were_made(tmp_path: Path, tree: ClipSource) -> None:
    manifest = made(tree, tmp_path / "d", **built_in(), provenance={"command": "awtpn extract a b"})
    provenance = manifest.provenance
    assert provenance["corpus"] == "recordings"
    assert provenance["command"] == "awtpn extract a b"
    assert provenance["features"]["audio"]["settings"]["id"] == "logmel"
    assert provenance["features"]["video"]["settings"]["fps"] == 10
    assert {"av", "numpy", "torch"} <= provenance["versions"].keys()
    assert provenance["extracted"].startswith("20")
    text = format_info(info(str(tmp_path / "d")))
    assert f"audio: feature space {provenance['features']['audio']['space']}" in text
    assert "logmel (rate 16000, step_seconds 0.1," in text
    assert "command: awtpn extract a b" in text


def test_a_feature_space_is_what_decides_the_values() -> None:
    settings = {"id": "facebook/wav2vec2-base", "revision": "abc", "layer": 9, "dtype": "float32"}
    name = space_of(settings)
    assert name.startswith("wav2vec2-base-")
    assert space_of({**settings, "dtype": "bfloat16", "versions": {"transformers": "9"}}) == name
    for change in ({"layer": 8}, {"revision": "abd"}, {"step_seconds": 0.2}):
        assert space_of(settings | change) != name
    local = {"id": "mine", "path": "/a/mine", "sha256": "77", "model_type": "wav2vec2"}
    assert space_of(local) == space_of(local | {"id": "yours", "path": "/b/yours"})
    assert space_of(local) != space_of(local | {"sha256": "78"})


def test_another_feature_space_is_refused_by_name(tmp_path: Path, tree: ClipSource) -> None:
    def of(**settings: Any) -> dict[str, Any]:
        return {"features": {m: {"space": space_of(s), "settings": s} for m, s in settings.items()}}

    logmel = {"id": "logmel", "version": 1, "step_seconds": 0.1}
    wav2vec = {"id": "facebook/wav2vec2-base", "layer": 9, "step_seconds": 0.1}
    with pytest.raises(
        ValueError,
        match=r"no: audio: logmel \(step_seconds 0.1\) against facebook/wav2vec2-base \(layer 9, "
        r"step_seconds 0.1\); fix",
    ):
        check_same_space(of(audio=logmel), of(audio=wav2vec), ["audio"], "no", "fix")
    with pytest.raises(
        ValueError, match=r"audio: logmel \(step_seconds 0.1\) against logmel \(step_seconds 0.2"
    ):
        check_same_space(of(audio=logmel), of(audio=logmel | {"step_seconds": 0.2}), ["audio"], "no", "fix")
    check_same_space(of(audio=logmel), of(audio=logmel, video=wav2vec), ["audio", "video"], "no", "fix")
    check_same_space(of(audio=logmel), of(audio=wav2vec), ["video"], "no", "fix")
    check_same_space({}, of(audio=wav2vec), ["audio"], "no", "fix")
    check_same_space({"features": "by hand"}, of(audio=wav2vec), ["audio"], "no", "fix")


def wav2vec2(folder: Path, seed: int) -> Path:
    """A small wav2vec 2.0 of random weights."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(seed)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    Wav2Vec2Model(Wav2Vec2Config(**size, conv_dim=[16] * 7)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_an_encoder_is_opened_again_as_it_was_recorded(tmp_path: Path, tones: ClipSource) -> None:
    """A Hugging Face model, moved since: its files tell that it is the same; another is refused."""
    encoder = open_audio_encoder(str(wav2vec2(tmp_path / "a", 0)), layer=1, step_seconds=0.2)
    manifest = made(tones, tmp_path / "d", audio=encoder)
    settings = manifest.provenance["features"]["audio"]["settings"]
    assert (settings["layer"], settings["step_seconds"]) == (1, 0.2)
    computed = f"computed in float32, transformers {settings['versions']['transformers']}, torch "
    assert computed in format_info(info(str(tmp_path / "d")))
    (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="no such folder"):
        reopen_encoder("audio", settings)
    again = reopen_encoder("audio", settings, spec=str(tmp_path / "moved"))
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert encoder is not None
    assert same_bits_or_close(again.encode([wave])[0], encoder.encode([wave])[0])
    with pytest.raises(
        ValueError, match=r"is not the one that was recorded: .*sha256.* then, .*sha256.* now"
    ):
        reopen_encoder("audio", settings, spec=str(wav2vec2(tmp_path / "b", 1)))

    for faces in ("none", "opencv"):
        video = open_video_encoder("descriptor", fps=4, step_seconds=0.5, faces=faces)
        settings = video.settings
        assert reopen_encoder("video", settings).settings == settings
        assert "step_seconds 0.5" in describe(settings)


# --- Decoding ------------------------------------------------------------------------------------


class AtOnce:
    """An executor that does what it is given before it returns."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*arguments))
        return future

    def shutdown(self, **_: Any) -> None: ...


@pytest.mark.parametrize(
    ("name", "bound", "ahead"), [("AHEAD_CLIPS", 5, 5), ("AHEAD_BYTES", 70_000, 3)], ids=["clips", "bytes"]
)
def test_decoding_runs_ahead_within_bounds(
    tones: ClipSource, monkeypatch: pytest.MonkeyPatch, name: str, bound: int, ahead: int
) -> None:
    """Seconds of sound at 8 kHz are 16, 24 and so on, up to 48 kB: any three are beyond 70 kB."""
    monkeypatch.setattr("shards.extraction.pipeline.ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(f"shards.extraction.pipeline.{name}", bound)
    taken: list[Clip] = []

    def clips() -> Iterator[Clip]:
        for clip in tones.clips:
            assert isinstance(clip, Clip)
            taken.append(clip)
            yield clip

    for i, each in enumerate(decode_ahead(clips(), {"audio": Counting()}, threads=1), start=1):
        assert each.clip == tones.clips[i - 1]
        assert len(taken) <= i - 1 + ahead
    assert len(taken) == 20


class WhenAsked(AtOnce):
    """An executor whose work stays under way until its result is asked for."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        class Asked(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                return call(*arguments)

        return Asked()


def test_clips_under_way_count_as_much_as_others(tones: ClipSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads could decode dozens of films while the encoder is busy with the first."""
    monkeypatch.setattr("shards.extraction.pipeline.ThreadPoolExecutor", WhenAsked)
    monkeypatch.setattr("shards.extraction.pipeline.AHEAD_BYTES", 150_000)
    taken: list[Clip] = []

    def clips() -> Iterator[Clip]:
        for clip in tones.clips:
            assert isinstance(clip, Clip)
            taken.append(clip)
            yield clip

    ahead = []
    for i, _ in enumerate(decode_ahead(clips(), {"audio": Counting()}, threads=2), start=1):
        ahead.append(len(taken) - i)
    assert len(ahead) == 20
    # Two threads have a clip each, until it is known how large one is: the first has 16 kB, the mean 32.
    assert ahead[:2] == [1, 150 // 16]
    assert max(ahead[5:]) == 5


def test_pictures_are_decoded_as_large_as_the_encoder_looks_at_them(tmp_path: Path) -> None:
    """Ten minutes of film at full size would not fit into memory; at the descriptor's they do."""
    y, x = np.arange(540)[:, None, None] / 100, np.arange(960)[:, None] / 100
    waves = 127 + 60 * np.sin(3 * x + y * [1, 2, 3]) + 60 * np.sin(x * [2, 3, 1] - 4 * y)
    film = record(tmp_path / "a.mkv", [waves.astype(np.uint8)] * 3, codec="mpeg4")
    clip = Clip("a", "all", "calm", None, film)
    encoders = {"video": open_video_encoder("descriptor")}
    pictures = decode(clip, encoders).media["video"]
    assert pictures.shape == (3, 144, 256, 3)
    whole = read_frames(film, 10)[0]
    assert whole.shape == (3, 540, 960, 3)
    np.testing.assert_allclose(describe_pictures(pictures), describe_pictures(whole), atol=0.03)
    with_faces = {"video": open_video_encoder("descriptor", faces="opencv")}
    assert decode(clip, with_faces).media["video"].shape == whole.shape


def test_streams_of_a_clip_may_lie_in_files_of_their_own(tmp_path: Path) -> None:
    sound, film = write_sound(tmp_path / "a.wav", 2.0), put("both.avi", tmp_path / "b.avi")
    clip = Clip("x", "all", "calm", sound, film, audio_span=(0.5, 1.25), video_span=(0.0, 0.4))
    encoders = built_in()
    [sample] = list(encode(decode_ahead([clip], encoders, 2), encoders, 16))
    assert not isinstance(sample, BadSample)
    assert {name: len(values) for name, values in sample.features.items() if values is not None} == {
        "audio": 7,
        "video": 4,
    }


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        {"part": {"moments": [], "entry": {}}, "skipped": []},
        {"part": {"moments": {"audio": [1, [2.0]]}, "entry": {}}, "skipped": []},
        {"part": {"moments": {}, "entry": {}}, "skipped": []},
        {"part": None, "skipped": 3},
        {"part": None, "skipped": [], "constant": []},
    ],
)
def test_what_is_no_record_of_a_shard_is_refused_by_name(tmp_path: Path, record: Any) -> None:
    put_bytes(tmp_path / "d" / "train-000000.part.json", json.dumps(record).encode())
    message = r"/train-000000\.part\.json: not the record of a shard \([^\n;]+\); remove it$"
    with pytest.raises(ValueError, match=message):
        read_records(open_folder(str(tmp_path / "d"), None), [ShardJob("train-000000", [])])
