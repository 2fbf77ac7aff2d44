"""Packing: what is written, what is refused, and what a rerun does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
from shards_support import CLASSES, DIMS, corpus, pack, utterance
from support import REPO

from awtpn.cli import main
from shards import BadSample, FeatureStream, Sample
from shards.format.manifest import parse_manifest
from shards.packing import output_folder
from shards.tools.index_tars import index_url


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    samples = corpus()
    manifest = pack(samples, tmp_path / "d")
    assert len(manifest.splits["train"].shards) > 3
    for split in ("train", "test"):
        urls = [str(tmp_path / "d" / shard.name) for shard in manifest.splits[split].shards]
        read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        wanted = [sample for sample in samples if sample.split == split]
        assert [record["__key__"] for record in read] == [sample.key for sample in wanted]
        for record, sample in zip(read, wanted, strict=True):
            assert record["json"] == {"label": sample.label, **sample.meta}
            for name, values in sample.features.items():
                if values is None:
                    assert f"{name}.npy" not in record
                else:
                    assert record[f"{name}.npy"].dtype == np.float16
                    np.testing.assert_array_equal(record[f"{name}.npy"], values)


def test_manifest_tells_the_dataset(tmp_path: Path) -> None:
    samples = corpus()
    returned = pack(samples, tmp_path / "d", provenance={"format": "test"})
    manifest = parse_manifest((tmp_path / "d" / "manifest.json").read_text(), "m")
    assert manifest == returned
    assert manifest.classes == CLASSES
    assert manifest.columns == {"fold": "int", "gain": "float", "speaker": "str"}
    assert {name: m.dim for name, m in manifest.modalities.items()} == DIMS
    assert manifest.provenance["format"] == "test"
    train = manifest.splits["train"]
    assert train.utterances == 40
    assert train.class_counts == [14, 13, 13]
    steps = np.concatenate(
        [s.features["video"] for s in samples if s.split == "train" and s.features["video"] is not None]
    )
    assert train.steps["video"] == train.moments["video"].count == len(steps)
    np.testing.assert_allclose(train.moments["video"].mean, steps.mean(0), rtol=1e-5)
    np.testing.assert_allclose(train.moments["video"].std, steps.std(0), rtol=1e-5)
    for shard in train.shards:
        assert (tmp_path / "d" / shard.name).stat().st_size == shard.bytes


def test_same_utterances_give_same_bytes(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "a")
    pack(corpus(), tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_long_and_foreign_keys(tmp_path: Path) -> None:
    keys = ["ü" * 40, "k" * 200]
    pack([utterance(i, key=key) for i, key in enumerate(keys)], tmp_path / "d")
    stream = FeatureStream(str(tmp_path / "d"), shuffle=False)
    assert next(stream.epoch(0)).key == keys


def bad(**changes: Any) -> Sample:
    return utterance(3, **changes)


def audio(values: Any) -> dict[str, Any]:
    return {"features": {"audio": np.asarray(values)}}


NAN = np.full((4, 5), 1.0)
NAN[2, 3] = np.nan

REFUSED = {
    "nan": (bad(**audio(NAN)), r"audio is nan at step 2, dimension 3"),
    "infinite": (bad(**audio(NAN * 0 + np.inf)), r"audio is (nan|inf) at step 0"),
    "dim": (bad(**audio(np.ones((4, 6)))), r"audio has 6 features per step, while 'train-0' has 5"),
    "one-dimensional": (bad(**audio(np.ones(5))), r"audio has shape \(5,\)"),
    "a number": (bad(**audio(3.0)), r"audio has shape \(\)"),
    "text": (bad(**audio([["a", "b"]])), r"real numbers"),
    "label": (bad(label="angry"), r"label 'angry' is unknown; the classes are \['calm'"),
    "no steps": (bad(features={"audio": None, "video": np.ones((0, 3))}), r"no steps in any modality"),
    "duplicate": (bad(key="train-0"), r"'train-0': this key was packed before"),
    "duplicate over splits": (bad(key="train-0", split="test"), r"this key was packed before"),
    "dot": (bad(key="a.wav"), r"'a.wav': a key must be .* free of dots"),
    "slash": (bad(key="a/b"), r"free of dots, slashes"),
    "empty key": (bad(key=""), r"non-empty"),
    "split": (bad(key="x", split="../x"), r"split '../x'"),
    "modality": (bad(features={"Audio": np.ones((1, 5))}), r"modality 'Audio'"),
    "json": (bad(features={"json": np.ones((1, 5))}), r"modality 'json' must .* not be 'json'"),
    "metadata": (bad(meta={"x": {1}}), r"metadata cannot be written as JSON"),
    "nan in metadata": (bad(meta={"x": float("nan")}), r"metadata cannot be written as JSON"),
    "label in metadata": (bad(meta={"label": 1}), r"must not be named 'label'"),
    "overflow": (bad(**audio(np.full((2, 5), 1e5))), r"audio\[0\] is 100000"),
    "missing file": (BadSample("x", "no such file x.npy", "table.csv"), r"table.csv: utterance 'x': no such"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(tmp_path: Path, name: str) -> None:
    sample, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        pack([utterance(0), sample], tmp_path / "d")
    assert not (tmp_path / "d" / "manifest.json").exists()


def test_the_source_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.pt: utterance 'train-3': label"):
        pack([bad(label="angry", source="train.pt")], tmp_path / "d")


def test_bad_input_is_skipped_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [utterance(0), *(sample for sample, _ in REFUSED.values()), utterance(1)]
    manifest = pack(samples, tmp_path / "d", on_bad="skip")
    listed = [json.loads(line) for line in (tmp_path / "d" / "skipped.jsonl").read_text().splitlines()]
    assert manifest.skipped == len(listed) == len(REFUSED)
    assert listed[-1] == {"key": "x", "cause": "table.csv: no such file x.npy"}
    assert manifest.splits["train"].utterances == 2
    assert f"{len(REFUSED)} bad samples skipped" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"on_bad": "ignore"}, "on_bad 'ignore'"),
        ({"classes": []}, "classes"),
        ({"classes": ["calm", "calm"]}, "distinct"),
        ({"classes": ["calm", ""]}, "distinct"),
        ({"shard_bytes": -1}, "shard_bytes -1: must be positive"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(corpus(), tmp_path / "d", **options)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("size", ["inf", "nan", "-1", "0", "much"])
def test_sizes_of_shards_that_cannot_be(
    tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["pack", "x", str(tmp_path / "d"), "--format", "npz", f"--shard_mb={size}"])
    assert f"'{size}' is no size in MiB" in capsys.readouterr().err


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no samples"):
        pack([], tmp_path / "d")
    with pytest.raises(ValueError, match="nothing to pack: all 1 samples are bad"):
        pack([bad(label="x")], tmp_path / "e", on_bad="skip")


def test_float16_that_ruins_a_feature_is_refused(tmp_path: Path) -> None:
    """A small spread beside a large mean: float16 steps are 0.5 there."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (200, 5))
    values[:, 2] += 1_000
    with pytest.raises(ValueError, match=r"audio\[2\]: stored as float16 .* dtype='float32'"):
        pack([utterance(0, **audio(values))], tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())
    pack([utterance(0, **audio(values))], tmp_path / "b", dtype="float32")
    assert next(FeatureStream(str(tmp_path / "b")).epoch(0)).features["audio"].values.dtype.itemsize == 4


def test_a_feature_that_float16_cannot_hold_is_told_by_its_own_spread(tmp_path: Path) -> None:
    """All is stored as zeros, whose spread is none."""
    values = np.random.default_rng(0).normal(0, 1e-9, (200, 5))
    with pytest.raises(ValueError, match=r"off by 1\S*e-09, more than 10 % of their standard .* 1\S*e-09;"):
        pack([utterance(0, **audio(values))], tmp_path / "d")


def test_a_ruined_feature_is_refused_before_all_is_read(tmp_path: Path) -> None:
    rng, read = np.random.default_rng(0), []

    def samples() -> Iterator[Sample]:
        for i in range(100):
            read.append(i)
            yield utterance(i, **audio(rng.normal(1_000, 0.1, (200, 5))))

    with pytest.raises(ValueError, match=r"more than 10 % of their standard deviation 0\.\d+; pack with"):
        pack(samples(), tmp_path / "d")  # type: ignore[arg-type]
    assert len(read) < 20
    assert not list((tmp_path / "d").iterdir())


def test_a_spread_that_grows_is_waited_for(tmp_path: Path) -> None:
    """One speaker's utterances are nearly alike, and disturbed by more than 1 % of that; all are not."""
    rng = np.random.default_rng(0)
    speakers = [rng.normal(mean, 0.01, (400, 5)) for mean in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="more than 1 %"):
        pack([utterance(0, **audio(speakers[3]))], tmp_path / "one")
    pack([utterance(i, **audio(values)) for i, values in enumerate(speakers)], tmp_path / "d", shard_bytes=1)


def test_a_constant_feature_passes_the_guard(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(0, 1, (200, 5))
    values[:, 1] = 0.1
    pack([utterance(0, **audio(values))], tmp_path / "d")


def test_finished_output_is_refused_or_replaced(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    before = files(tmp_path / "d")
    with pytest.raises(ValueError, match="finished dataset; pack elsewhere, or pass overwrite"):
        pack(corpus(8), tmp_path / "d")
    assert files(tmp_path / "d") == before
    manifest = pack(corpus(8), tmp_path / "d", overwrite=True)
    assert manifest.splits["train"].utterances == 8
    names = {shard.name for split in manifest.splits.values() for shard in split.shards}
    assert {name for name in files(tmp_path / "d") if name.endswith(".tar")} == names


class Interrupted(BaseException):
    """Stands for a kill: nothing may catch it."""


def test_interrupted_packing_starts_afresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interrupted() -> Iterator[Sample]:
        yield from corpus()
        raise Interrupted

    with pytest.raises(Interrupted):
        pack(interrupted(), tmp_path / "d")  # type: ignore[arg-type]
    assert any(name.endswith(".tar") for name in files(tmp_path / "d"))
    # What a kill would leave besides.
    (tmp_path / "d" / ".packing-killed").mkdir()
    with pytest.raises(ValueError, match=r"manifest.json: no such file.*interrupted"):
        FeatureStream(str(tmp_path / "d"))
    pack(corpus(8), tmp_path / "d")
    assert "an earlier packing was interrupted" in caplog.text
    pack(corpus(8), tmp_path / "e")
    assert files(tmp_path / "d") == files(tmp_path / "e")


def test_a_second_packing_is_refused_while_one_is_at_work(tmp_path: Path) -> None:
    def busy() -> Iterator[Sample]:
        for i, sample in enumerate(corpus(8)):
            if i == 3:
                told = rf"d: another packing is running here, process {os.getpid()} on \S+; wait for it"
                for overwrite in (False, True):
                    with pytest.raises(ValueError, match=told):
                        pack(corpus(2), tmp_path / "d", overwrite=overwrite)
            yield sample

    pack(busy(), tmp_path / "d")  # type: ignore[arg-type]
    pack(corpus(8), tmp_path / "e")
    assert files(tmp_path / "d") == files(tmp_path / "e")


def test_a_killed_packing_holds_nothing(tmp_path: Path) -> None:
    """Its lock goes with it, whatever its marker says."""
    code = "import sys; from shards_support import dying; dying(sys.argv[1])"
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "d"], cwd=REPO / "tests")
    assert ran.returncode == 9
    assert {".packing", "train-000000.tar"} <= {path.name for path in (tmp_path / "d").iterdir()}
    assert pack(corpus(8), tmp_path / "d").splits["train"].utterances == 8


def in_memory() -> str:
    return f"memory://{uuid.uuid4().hex}/d"


def marker_made(url: str, age_s: int) -> None:
    """As a packing leaves it that began so long ago."""
    token = f"packing 0123 since {int(time.time()) - age_s} by process 7 on far.example"
    fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/.packing", token.encode())


def test_a_young_packing_in_a_store_is_taken_to_be_at_work() -> None:
    """A store has no locks: only time tells."""
    url = in_memory()
    marker_made(url, 100)
    told = r"began here 10\d s ago, process 7 on far.example; if it is dead, wait (500|49\d) s, or pass"
    with pytest.raises(ValueError, match=told):
        pack(corpus(8), url)
    pack(corpus(8), url, overwrite=True)
    url = in_memory()
    marker_made(url, 700)
    assert pack(corpus(8), url).splits["train"].utterances == 8


def test_two_packings_in_a_store_never_mix() -> None:
    """The one that was overtaken finds out when it begins a shard, or ends one."""
    url = in_memory()

    def overtaken() -> Iterator[Sample]:
        yield utterance(0)
        pack(corpus(8), url, overwrite=True)
        yield utterance(1, "test")

    with pytest.raises(OSError, match="another packing has begun here; this one stops"):
        pack(overtaken(), url)  # type: ignore[arg-type]
    assert FeatureStream(url).num_utterances == 8


def test_a_dataset_finished_while_we_looked_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    url, take = in_memory(), output_folder.clear_and_mark

    def take_late(*arguments: Any) -> None:
        monkeypatch.setattr(output_folder, "clear_and_mark", take)
        pack(corpus(8), url)
        take(*arguments)

    monkeypatch.setattr(output_folder, "clear_and_mark", take_late)
    with pytest.raises(ValueError, match="holds a finished dataset"):
        pack(corpus(2), url)
    assert FeatureStream(url).num_utterances == 8
    assert not fsspec.filesystem("memory").exists(f"{url.removeprefix('memory:/')}/.packing")


@pytest.mark.parametrize("what", ["indexed", "beside", "damaged"])
def test_overwrite_spares_what_packing_did_not_make(tmp_path: Path, what: str) -> None:
    """webdataset names its tars as we do."""
    folder = tmp_path / "d"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "train-000000.tar")) as tar:
        tar.write({"__key__": "a", "audio.npy": np.ones((2, 3), np.float16), "json": {"label": "calm"}})
    if what == "indexed":
        index_url(str(folder), progress=False)
    else:
        (folder / "train-000000.tar").rename(tmp_path / "theirs.tar")
        pack(corpus(8), folder)
        (tmp_path / "theirs.tar").rename(folder / "train-000009.tar")
    if what == "damaged":
        (folder / "manifest.json").write_text("{}")
    before = files(folder)
    told = {
        "indexed": "holds tars that others made, indexed in place; pack elsewhere",
        "beside": r"its manifest does not name \('train-000009.tar'\); move them away",
        "damaged": "manifest.json: .* packing does not know which files it may replace",
    }
    with pytest.raises(ValueError, match=told[what]):
        pack(corpus(8), folder, overwrite=True)
    assert files(folder) == before


@pytest.mark.parametrize("bad", [lambda: bad(label="angry"), KeyboardInterrupt])
def test_a_refusal_leaves_nothing_behind(tmp_path: Path, bad: Any) -> None:
    def samples() -> Iterator[Any]:
        yield from corpus()
        if isinstance(bad, type):
            raise bad
        yield bad()

    with pytest.raises((ValueError, KeyboardInterrupt)):
        pack(samples(), tmp_path / "d")  # type: ignore[arg-type]
    assert not list((tmp_path / "d").iterdir())


@pytest.mark.parametrize("name", ["holiday.jpg", "train-000000.tar"])
def test_files_of_others_are_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"files that packing did not write \\('{name}'\\)"):
        pack(corpus(), tmp_path, overwrite=True)
    assert files(tmp_path) == {name: b"mine"}


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(ValueError, match="is a file; pack into a folder"):
        pack(corpus(), tmp_path / "f")


def test_remote_output_equals_local(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    pack(corpus(), tmp_path / "d")
    pack(corpus(), "memory://pack-remote/d")
    remote = {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.ls("/pack-remote/d", detail=False)}
    remote.pop("manifest.json")
    assert remote == files(tmp_path / "d")
    with pytest.raises(ValueError, match="finished dataset"):
        pack(corpus(), "memory://pack-remote/d")


def test_a_modality_may_first_appear_late(tmp_path: Path) -> None:
    late = [
        replace(s, features={**s.features, "video": s.features["video"] if i > 20 else None})
        for i, s in enumerate(corpus(30, 0))
    ]
    pack(late, tmp_path / "d")
    batch = next(FeatureStream(str(tmp_path / "d"), shuffle=False, global_batch_size=30).epoch(0))
    assert batch.features["video"].lengths[:21].sum() == 0
    assert batch.features["video"].lengths[21] > 0


def test_columns_need_one_kind_in_all_utterances(tmp_path: Path) -> None:
    metas = [{"a": 1, "b": 1, "c": 1, "d": "x" * 500}, {"a": 1.5, "b": "1", "d": "y"}]
    manifest = pack([utterance(i, meta=meta) for i, meta in enumerate(metas)], tmp_path / "d")
    assert manifest.columns == {"a": "float", "c": "optional float"}
