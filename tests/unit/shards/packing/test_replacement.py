"""A dataset that is packed over: it stays whole until the new one is, on disks and in stores."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from shards_support import corpus, pack, utterance

from shards import FeatureStream
from shards.format.manifest import parse_manifest
from shards.format.schema import MANIFEST
from shards.packing import output_folder
from shards.packing.replacement import REPLACES, generation_of, named_files
from shards.tools.verify import verify


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


class Folder:
    """An output folder, on disk or in a store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.root = fsspec.core.url_to_fs(url)

    def files(self) -> dict[str, bytes]:
        self.fs.invalidate_cache()
        paths = self.fs.find(self.root)
        return {path.removeprefix(f"{self.root}/"): self.fs.cat_file(path) for path in paths}

    def utterances(self) -> int:
        assert verify(self.url).faults == []
        return sum(FeatureStream(self.url, split).num_utterances for split in ("train", "test"))


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    local = request.param == "disk"
    return Folder(str(tmp_path / "d") if local else f"memory://{uuid.uuid4().hex}/d")


def broken(error: Any) -> Iterator[Any]:
    yield from corpus(8)
    if isinstance(error, type):
        raise error
    yield error


@pytest.mark.parametrize("error", [utterance(0, label="angry"), KeyboardInterrupt])
def test_what_is_refused_or_interrupted_leaves_the_old_dataset(folder: Folder, error: Any) -> None:
    pack([*corpus(), utterance(99, label="angry")], folder.url, on_bad="skip")
    before = folder.files()
    assert "skipped.jsonl" in before
    with pytest.raises((ValueError, KeyboardInterrupt)):
        pack(broken(error), folder.url, overwrite=True)  # type: ignore[arg-type]
    assert folder.files() == before


def test_the_old_dataset_is_read_until_the_new_one_is_there(folder: Folder) -> None:
    pack(corpus(), folder.url)

    def looking() -> Iterator[Any]:
        for sample in corpus(16):
            yield sample
            assert folder.utterances() == 47

    manifest = pack(looking(), folder.url, overwrite=True)  # type: ignore[arg-type]
    assert folder.utterances() == 23
    assert folder.files().keys() == {MANIFEST, *named_files(manifest)}
    assert {generation_of(name) for name in named_files(manifest)} == {1}
    # Never a name again that a reader may have met with another content.
    again = pack(corpus(8), folder.url, overwrite=True)
    assert folder.files().keys() == {MANIFEST, *named_files(again)}
    assert {generation_of(name) for name in named_files(again)} == {2}


def test_only_the_names_tell_that_something_was_replaced(folder: Folder, tmp_path: Path) -> None:
    fresh = Folder(str(tmp_path / "fresh"))
    pack(corpus(16), fresh.url)
    pack(corpus(), folder.url)
    pack(corpus(16), folder.url, overwrite=True)
    named = {name.replace("-g1", ""): content for name, content in folder.files().items()}
    assert named.keys() == fresh.files().keys()
    for name, content in fresh.files().items():
        assert name == MANIFEST or named[name] == content


def test_what_a_kill_leaves_is_removed_by_the_next_packing(folder: Folder) -> None:
    pack(corpus(), folder.url)
    before = folder.files()
    with pytest.raises(Killed):
        pack(broken(Killed), folder.url, overwrite=True)  # type: ignore[arg-type]
    left = folder.files()
    assert before.items() <= left.items()
    assert any(generation_of(name) for name in left)
    assert folder.utterances() == 47
    with pytest.raises(ValueError, match="finished dataset"):
        pack(corpus(2), folder.url)
    manifest = pack(corpus(4), folder.url, overwrite=True)
    assert folder.files().keys() == {MANIFEST, *named_files(manifest)}


def test_a_forged_record_removes_no_file_of_others(tmp_path: Path) -> None:
    """Names in it are removed once the new dataset is there."""
    pack(corpus(), str(tmp_path / "d"))
    (tmp_path / "thesis.tex").write_text("the only copy")
    (tmp_path / "d" / REPLACES).write_text(json.dumps({"generation": 0, "old": ["../thesis.tex"]}))
    pack(corpus(4), str(tmp_path / "d"), overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("old", [[], ["train-000000.tar"]])
def test_a_forged_record_claims_no_tars_of_others(folder: Folder, old: list[str]) -> None:
    """Plain names are those of generation 0, which replaces nothing."""
    pack(corpus(), folder.url)
    folder.fs.pipe_file(f"{folder.root}/mine-000000.tar", b"the only copy")
    folder.fs.pipe_file(f"{folder.root}/{REPLACES}", json.dumps({"generation": 0, "old": old}).encode())
    with pytest.raises(ValueError, match=r"does not name \('mine-000000\.tar'\)"):
        pack(corpus(4), folder.url, overwrite=True)
    assert folder.files()["mine-000000.tar"] == b"the only copy"


@pytest.mark.parametrize(
    "changes", [{"split": "s" * 120}, {"features": {"m" * 101: np.ones((3, 4), np.float32)}}]
)
def test_a_name_that_no_reader_takes_leaves_the_old_dataset(folder: Folder, changes: dict[str, Any]) -> None:
    pack(corpus(), folder.url)
    before = folder.files()
    with pytest.raises(ValueError, match=r"sss|mmm"):
        pack([*corpus(4), utterance(99, **changes)], folder.url, overwrite=True)
    assert folder.files() == before


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_stop_after_the_new_manifest_loses_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    pack(corpus(), folder.url)

    def stopped(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "remove_temporary", stopped)
        with pytest.raises(error):
            pack(corpus(16), folder.url, overwrite=True)
    assert folder.utterances() == 23
    manifest = pack(corpus(4), folder.url, overwrite=True)
    assert folder.files().keys() == {MANIFEST, *named_files(manifest)}


def test_the_list_of_skipped_samples_is_the_datasets_own(folder: Folder) -> None:
    pack([*corpus(), utterance(99, label="angry")], folder.url, on_bad="skip")
    pack([*corpus(8), utterance(98, label="bored")], folder.url, on_bad="skip", overwrite=True)
    assert [json.loads(line)["key"] for line in folder.files()["skipped.jsonl"].splitlines()] == ["train-98"]
    pack(corpus(8), folder.url, overwrite=True)
    assert "skipped.jsonl" not in folder.files()
    assert parse_manifest(folder.files()[MANIFEST], "m").skipped == 0


def test_tars_of_others_beside_an_interrupted_replacement_are_spared(folder: Folder) -> None:
    pack(corpus(), folder.url)
    with pytest.raises(Killed):
        pack(broken(Killed), folder.url, overwrite=True)  # type: ignore[arg-type]
    folder.fs.pipe_file(f"{folder.root}/train-000099.tar", b"mine")
    before = folder.files()
    with pytest.raises(ValueError, match=r"its manifest does not name \('train-000099.tar'\)"):
        pack(corpus(4), folder.url, overwrite=True)
    assert folder.files() == before
