"""Extraction: the same shards for any number of ranks; clips that fail are listed by name."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
from corpora_support import (
    GARBAGE,
    put_bytes,
    write_empty_track,
    write_sound,
    write_video,
)
from extraction_support import (
    Counting,
    Killed,
    Meanwhile,
    built_in,
    copied,
    extracted,
    files,
    over_ranks,
    skipped,
)

from shards import BadSample
from shards.extraction.extract import extract
from shards.extraction.pipeline import decode_ahead, encode
from shards.format.manifest import parse_manifest
from shards.format.schema import Manifest
from shards.sources.base import Clip, ClipSource
from shards.tools.info import format_info, info

# --- What is in the shards -----------------------------------------------------------------------


def test_without_pyav_nothing_is_written(
    tmp_path: Path, tree: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders = built_in()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "awtpn-at-scale\[extract\]"'):
        extract(tree, str(tmp_path / "d"), **encoders, progress=False)
    assert not (tmp_path / "d").exists()


def test_sequences_have_the_lengths_of_their_clips(tmp_path: Path, tree: ClipSource) -> None:
    manifest = extracted(tree, tmp_path / "d", **built_in(fps=5))
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
    """Each utterance has its own features, label and metadata, whichever batch it was in."""
    extracted(tones, tmp_path / "d", audio=Counting(), batch=4, dtype="float32")
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
    alone = extracted(tones, tmp_path / "alone", audio=Counting())

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


def test_a_log_tells_how_far_it_is(
    tmp_path: Path, tones: ClipSource, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, also with several ranks."""
    over_ranks(2, lambda **rank: extract(tones, str(tmp_path / "d"), audio=Counting(), batch=4, **rank))
    told = capsys.readouterr().err
    assert "\r" not in told
    assert len(re.findall(r"^extract: (\d+)/\1 clips \(100 %\) in \d", told, re.MULTILINE)) == 1


def test_remote_output_equals_local(tmp_path: Path, tones: ClipSource) -> None:
    fs = fsspec.filesystem("memory")
    extracted(tones, tmp_path / "d", audio=Counting())
    with pytest.raises(Killed):
        extracted(tones, "memory://extract/d", audio=Counting(kill_after=9))
    extracted(tones, "memory://extract/d", audio=Counting())
    remote = {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.ls("/extract/d", detail=False)}
    remote.pop("manifest.json")
    assert remote == files(tmp_path / "d")
    fs.rm("/extract", recursive=True)


def test_a_modality_that_no_clip_has_is_left_out(tmp_path: Path, tones: ClipSource) -> None:
    manifest = extracted(tones, tmp_path / "d", **built_in())
    assert list(manifest.modalities) == list(manifest.provenance["features"]) == ["audio"]


def test_the_manifest_tells_how_features_were_made(tmp_path: Path, tree: ClipSource) -> None:
    manifest = extracted(tree, tmp_path / "d", **built_in(), provenance={"command": "awtpn extract a b"})
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
    manifest = extracted(source, tmp_path / "d", audio=encoder)
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
    # What is known before the extraction begins is reported then.
    assert "5 of 29 clips cannot be used; the first, gone: table.csv: row 7: " in caplog.text


def test_a_stream_that_cannot_be_decoded_is_left_out_and_reported(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    """A sound track without packets beside a good picture; a missing picture file beside sound."""
    first = tones.clips[0]
    assert isinstance(first, Clip)
    clips = [
        replace(first, key="silent", audio=(film := write_empty_track(tmp_path / "a.mkv")), video=film),
        replace(first, key="blind", video=tmp_path / "gone.mp4"),
        replace(first, key="neither", audio=film, video=tmp_path / "gone.mp4"),
    ]
    extracted(replace(tones, clips=clips), tmp_path / "d", **built_in())
    assert skipped(tmp_path / "d").keys() == {"neither"}
    assert "a.mkv: no sound can be decoded; " in skipped(tmp_path / "d")["neither"]
    assert "gone.mp4: no such file" in skipped(tmp_path / "d")["neither"]
    assert "2 clips are without a stream that cannot be decoded" in caplog.text
    [shard] = (tmp_path / "d").glob("*.tar")
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(str(shard), shardshuffle=False)}
    lacking = {key: json.loads(sample["json"])["lacking"] for key, sample in samples.items()}
    assert lacking == {
        "silent": {"audio": f"{film}: no sound can be decoded"},
        "blind": {"video": f"{tmp_path / 'gone.mp4'}: no such file"},
    }
    assert "video.npy" in samples["silent"]
    assert "audio.npy" not in samples["silent"]
    # A file that no encoder needs may be missing.
    extracted(replace(tones, clips=clips[1:2]), tmp_path / "e", audio=Counting())
    assert not (tmp_path / "e" / "skipped.jsonl").exists()


def test_refused_clips_stop_the_extraction(tmp_path: Path, tones: ClipSource) -> None:
    known = replace(tones, clips=[BadSample("known", "missing", "list.txt"), *tones.clips])
    with pytest.raises(ValueError, match=r"'known': list.txt: missing"):
        extracted(known, tmp_path / "d", audio=Counting(), on_bad="refuse")
    assert not (tmp_path / "d").exists()
    gone = Clip("gone", "train", "low", tmp_path / "gone.wav", None)
    with pytest.raises(ValueError, match=r"'gone': .*gone.wav: no such file"):
        extracted(
            replace(tones, clips=[*tones.clips, gone]), tmp_path / "e", audio=Counting(), on_bad="refuse"
        )


def test_where_every_clip_fails_nothing_is_left_to_continue(tmp_path: Path, tones: ClipSource) -> None:
    path = tmp_path / "late.wav"
    source = replace(tones, clips=[Clip("late", "train", "low", path, None)])
    with pytest.raises(ValueError, match=r"all 1 clips failed; the first is .*late.wav: no such file"):
        extracted(source, tmp_path / "d", audio=Counting())
    assert list((tmp_path / "d").iterdir()) == []
    write_sound(path)
    assert extracted(source, tmp_path / "d", audio=Counting()).splits["train"].utterances == 1
    with pytest.raises(ValueError, match="no clips"):
        extracted(replace(tones, clips=[]), tmp_path / "e", audio=Counting())


def test_a_shard_of_which_every_clip_fails_stops(tmp_path: Path, tones: ClipSource) -> None:
    source = copied(tones, tmp_path / "t")
    whole = {path: path.read_bytes() for path in (tmp_path / "t").iterdir()}
    for path in whole:
        path.write_bytes(bytes(len(whole[path])))
    with pytest.raises(
        ValueError, match=r"all 10 clips of train-000000 failed, the first, tone0, because .*0.wav: "
    ):
        extracted(source, tmp_path / "d", audio=Counting(), clips_per_shard=10)
    for path, content in whole.items():
        path.write_bytes(content)
    assert extracted(source, tmp_path / "d", audio=Counting(), clips_per_shard=10).skipped == 0


def test_a_feature_for_which_float16_is_too_coarse_is_warned_of(
    tmp_path: Path, tones: ClipSource, caplog: pytest.LogCaptureFixture
) -> None:
    """Packing refuses it; an extraction has taken hours, so it only warns."""

    class Shifted(Counting):
        def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            return [values + np.float32(1000) for values in super().encode(waves)]

    manifest = extracted(tones, tmp_path / "d", audio=Shifted())
    assert "stored as float16" in caplog.text
    assert "(--dtype float32)" in caplog.text
    assert "stored as float16" in manifest.provenance["warning"]
    assert "warning" not in extracted(tones, tmp_path / "e", audio=Shifted(), dtype="float32").provenance


def test_a_skipped_file_may_have_a_name_that_is_not_utf8(tmp_path: Path, tones: ClipSource) -> None:
    """File systems allow any bytes in a name; Python reads bytes that are not UTF-8 as surrogates."""
    odd = Clip("odd", "train", "low", tmp_path / os.fsdecode(b"caf\xe9 \xe2\x98\x83.wav"), None)
    extracted(replace(tones, clips=[*tones.clips, odd]), tmp_path / "d", audio=Counting())
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
        with pytest.raises(OSError, match=r"d: no room left .*Make room, and the same command continues"):
            extracted(tones, tmp_path / "d", audio=Counting())
    encoder = Counting()
    extracted(tones, tmp_path / "d", audio=encoder)
    assert encoder.clips == 20 - 6, "8 files are 2 shards with index and record, and a third's tar and index"
    extracted(tones, tmp_path / "alone", audio=Counting())
    assert files(tmp_path / "d") == files(tmp_path / "alone")


def test_recordings_that_go_away_are_no_bad_clips(
    tmp_path: Path, tones: ClipSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.extraction.pipeline.AHEAD_CLIPS", 1)
    mounted, gone = tmp_path / "mounted", tmp_path / "gone"
    source = copied(tones, mounted)
    with pytest.raises(
        OSError, match=r"\.wav: no such file: the recordings are no longer there; .* same command continues"
    ):
        extracted(source, tmp_path / "d", audio=Meanwhile(9, lambda: mounted.rename(gone)))
    assert 2 <= len(list((tmp_path / "d").glob("*.part.json"))) < 7
    with pytest.raises(ValueError, match="unfinished extraction of other clips"):
        extracted(source, tmp_path / "d", audio=Counting())
    gone.rename(mounted)
    manifest = extracted(source, tmp_path / "d", audio=Counting())
    assert manifest.skipped == 0
    extracted(source, tmp_path / "alone", audio=Counting())
    assert files(tmp_path / "d") == files(tmp_path / "alone")


def test_wrong_options_are_refused(tmp_path: Path, tones: ClipSource) -> None:
    with pytest.raises(ValueError, match="give an encoder"):
        extracted(tones, tmp_path / "d")
    with pytest.raises(ValueError, match="clips_per_shard=0"):
        extracted(tones, tmp_path / "d", audio=Counting(), clips_per_shard=0)
    with pytest.raises(ValueError, match="a#b: '#' begins the name of a split"):
        extracted(tones, tmp_path / "a#b", audio=Counting())
    with pytest.raises(ValueError, match="dtype 'float8'"):
        extracted(tones, tmp_path / "d", audio=Counting(), dtype="float8")
    assert not (tmp_path / "d").exists()
