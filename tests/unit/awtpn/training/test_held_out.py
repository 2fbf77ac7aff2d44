"""What is judged on is held out by content, whatever its dataset, split and keys are called."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_support import write_sound
from shards_support import CLASSES, corpus, pack, utterance
from support import arguments, pack_corpus

from awtpn.training import trainer
from awtpn.training.evaluate import evaluate_command
from awtpn.training.held_out import check_held_out
from shards import FeatureStream, Sample
from shards.extraction.encoders import open_audio_encoder
from shards.extraction.extract import extract
from shards.format.index import ShardIndex
from shards.sources.base import Clip, ClipSource
from shards.streaming import common_utterances


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("held-out") / "d"
    pack(corpus(), folder)
    return folder


def opened(url: Any, split: str = "train", **options: Any) -> FeatureStream:
    return FeatureStream(str(url), split, **options)


def renamed(samples: list[Sample], split: str) -> list[Sample]:
    return [replace(sample, key=f"other-{i}", split=split) for i, sample in enumerate(samples)]


def link(dataset: Path, tmp_path: Path) -> str:
    os.symlink(dataset, tmp_path / "link")
    return str(tmp_path / "link")


def copy(dataset: Path, tmp_path: Path) -> str:
    return shutil.copytree(dataset, tmp_path / "copy")


SPELLINGS: dict[str, Callable[[Path, Path], str]] = {
    "itself": lambda dataset, tmp_path: str(dataset),
    "link": link,
    "copy": copy,
    "two slashes": lambda dataset, tmp_path: str(dataset).replace("/d", "//d"),
    "dots": lambda dataset, tmp_path: f"{dataset}/../d/manifest.json",
    "URL": lambda dataset, tmp_path: f"file://{dataset}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_split_is_refused_however_it_is_spelled(
    dataset: Path, tmp_path: Path, spelling: str
) -> None:
    other = SPELLINGS[spelling](dataset, tmp_path)
    train = opened(dataset, select={"fold": [0, 1]})
    told = r"^13 utterances of .*, split train are both trained on and evaluated on: change data\.select"
    with pytest.raises(ValueError, match=told):
        check_held_out(train, None, opened(other, select={"fold": [1, 2]}))
    with pytest.raises(ValueError, match=told):
        check_held_out(train, opened(other, select={"fold": [1, 2]}), None)
    assert check_held_out(train, opened(other, select={"fold": 2}), opened(other, "test")) == []


def test_the_same_features_under_other_keys_are_refused(dataset: Path, tmp_path: Path) -> None:
    pack(renamed(corpus()[3:12], "mine"), tmp_path / "renamed", shard_bytes=5_000)
    told = r"^all 9 utterances of .*/renamed, split mine have the features of utterances that are trained on "
    told += r"\(other-0, other-1, other-2, other-3, other-4 and 4 more\): change"
    with pytest.raises(ValueError, match=told):
        check_held_out(opened(dataset), None, opened(tmp_path / "renamed", "mine"))
    # Of what is selected alone.
    held_out = opened(dataset, select={"speaker": "s0"})
    other = opened(tmp_path / "renamed", "mine", select={"speaker": ["s1", "s2", "s3"]})
    assert check_held_out(held_out, other, None) == []


def test_a_part_is_warned_of_with_count_and_names(tmp_path: Path) -> None:
    """Within one dataset, too: two of five utterances of a split are in another under other keys."""
    again = [replace(utterance(i), key=f"again-{i}", split="test") for i in (4, 6)]  # 4 lacks video
    pack([*corpus(20, 3), *again], tmp_path / "d")
    train, test = opened(tmp_path / "d"), opened(tmp_path / "d", "test")
    (told,) = check_held_out(train, None, test)
    assert told.startswith(f"warning: 2 of 5 utterances of {test.url}, split test have the features of")
    assert told.endswith("trained on (again-4, again-6); the figures flatter the model")
    # A model of one modality takes for the same what is the same to it.
    halves = [replace(s, features=s.features | {"video": np.ones((2, 3), np.float32)}) for s in again]
    pack([*corpus(20, 3), *halves], tmp_path / "h")
    assert check_held_out(opened(tmp_path / "h"), None, opened(tmp_path / "h", "test")) == []
    streams = [opened(tmp_path / "h", split, modalities=["audio"]) for split in ("train", "test")]
    assert "warning: 2 of 5 " in check_held_out(streams[0], None, streams[1])[0]


def test_equal_texts_need_not_be_the_same_utterance(tmp_path: Path) -> None:
    texts = [replace(s, features={"text": s.features["audio"]}) for s in corpus(20, 3)]
    pack([*texts, replace(texts[0], key="again", split="test")], tmp_path / "d")
    (told,) = check_held_out(opened(tmp_path / "d"), None, opened(tmp_path / "d", "test"))
    assert told.endswith(
        "(again); if that is not because short texts are the same, the figures flatter the model"
    )


def test_a_validation_on_the_test_is_told_once(dataset: Path, tmp_path: Path) -> None:
    train, test = opened(dataset), opened(dataset, "test")
    (told,) = check_held_out(train, opened(copy(dataset, tmp_path), "test"), test)
    assert told.startswith(
        f"warning: all of 7 utterances of {test.url}, split test are validated on, too (te"
    )
    assert "the best checkpoint is chosen by what it is tested on" in told
    (told,) = check_held_out(train, opened(dataset, "test", select={"speaker": "s1"}), test)
    assert told.startswith("warning: 2 of 7 utterances")
    assert check_held_out(train, test, None) == check_held_out(train, None, test) == []


def test_the_same_names_in_another_dataset_are_warned_of(dataset: Path, tmp_path: Path) -> None:
    """Such as those of one corpus packed in another dtype, or with other features."""
    pack([replace(sample, split="test") for sample in corpus(20, 0)], tmp_path / "wide", dtype="float32")
    train, wide = opened(dataset), opened(tmp_path / "wide", "test")
    for val, test in ((wide, None), (None, wide)):
        (told,) = check_held_out(train, val, test)
        assert told.startswith(f"warning: all of 20 utterances of {wide.url}, split test have the names of ")
        assert told.endswith("and 15 more); if they are the same recordings, the figures say nothing")
    # Of what is selected alone.
    held_out = opened(dataset, select={"speaker": "s0"})
    rest = opened(tmp_path / "wide", "test", select={"speaker": ["s1", "s2", "s3"]})
    assert check_held_out(held_out, rest, None) == []
    # What is the same by its content is told once.
    part = [replace(sample, split="test") for sample in corpus(3, 0)]
    more = [replace(utterance(900 + i), key=corpus()[5 + i].key, split="test") for i in range(2)]
    pack([*part, *more], tmp_path / "part")
    content, names = check_held_out(train, None, opened(tmp_path / "part", "test"))
    assert "warning: 3 of 5 utterances" in content
    assert "warning: 2 of 5 utterances" in names


def test_utterances_without_anything_in_common_are_fine(dataset: Path) -> None:
    assert check_held_out(opened(dataset), None, opened(dataset, "test")) == []
    assert check_held_out(opened(dataset), None, None) == []


# --- Where contents are not known ----------------------------------------------------------------


@pytest.mark.parametrize("cause", ["too many", "too many remote", "early version"])
def test_what_is_not_compared_by_content_is_said(
    dataset: Path, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    place: Any = dataset
    if cause == "too many":
        monkeypatch.setattr(common_utterances, "MOST_UTTERANCES", 40)
        expected = "47 utterances are more than 40"
    elif cause == "too many remote":
        monkeypatch.setattr(common_utterances, "MOST_REMOTE_INDEXES", 3)
        place, expected = remote, r"\d+ remote index files are more than 3"
    else:
        index = FeatureStream.index

        def without_checksums(stream: FeatureStream, shard: int) -> ShardIndex:
            return replace(index(stream, shard), crc={})

        monkeypatch.setattr(FeatureStream, "index", without_checksums)
        expected = "a dataset of an early version has no checksums; pack it again"
    train, test = (opened(place, split, cache_dir=tmp_path / "cache") for split in ("train", "test"))
    (told,) = check_held_out(train, None, test)
    assert told.startswith("warning: the evaluated utterances were not searched for training utterances")
    assert re.search(expected, told)
    with pytest.raises(ValueError, match=r"40 utterances of .* are both trained on"):
        check_held_out(train, train, test)
    assert "warning: all of 7 utterances" in check_held_out(train, test, test)[1], "the hashes of shards tell"


def test_a_damaged_index_is_left_to_who_leaves_it_out(dataset: Path, tmp_path: Path) -> None:
    folder = Path(copy(dataset, tmp_path))
    train = opened(folder, skip_damaged=True)
    (folder / train.shards[0].index).write_bytes(b"")
    assert check_held_out(train, None, opened(folder, "test")) == []
    with pytest.raises(ValueError, match=r"0 bytes, \d+ by the manifest"):
        check_held_out(opened(folder), None, opened(folder, "test"))


def test_recordings_that_are_the_same_file_are_found(tmp_path: Path) -> None:
    """Also in other company: each clip's features are its own."""
    sounds = [write_sound(tmp_path / f"{i}.wav", seconds=0.5 + 0.1 * i, hertz=200 + 50 * i) for i in range(6)]
    os.symlink(sounds[1], tmp_path / "take two.wav")
    clips = [Clip(f"c{i}", "train", CLASSES[i % 3], path, None) for i, path in enumerate(sounds[:5])]
    clips += [Clip("other", "test", CLASSES[1], tmp_path / "take two.wav", None)]
    clips += [Clip("new", "test", CLASSES[2], sounds[5], None)]
    encoders = {"audio": open_audio_encoder("logmel")}
    extract(ClipSource(clips, CLASSES, {}), str(tmp_path / "d"), **encoders, progress=False)
    (told,) = check_held_out(opened(tmp_path / "d"), None, opened(tmp_path / "d", "test"))
    assert "warning: 1 of 2 utterances" in told
    assert "trained on (other)" in told


# --- A run ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_accelerator")
def test_a_run_refuses_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pack_corpus(tmp_path / "d", train=16, val=6, test=6)
    settings = {"model.shared_dim": 8, "train.epochs": 1, "train.pictures": "never", "data.train": data}
    settings |= {"train.global_batch_size": 8, "run.dir": tmp_path / "run"}
    with pytest.raises(ValueError, match=r"16 utterances of .*/copy, split train are both"):
        trainer.main(arguments(settings | {"data.val": f"{copy(Path(data), tmp_path)}#train"}))
    assert not (tmp_path / "run" / "checkpoints").exists()
    trainer.main(arguments(settings | {"data.val": f"{data}#test"}))
    assert capsys.readouterr().out.count("are validated on, too") == 1
    # Evaluated later, by the run's folder or one in it.
    run, val = tmp_path / "run", pack_corpus(tmp_path / "other", train=16, val=8, test=6)
    shutil.copytree(run / "checkpoints/best", tmp_path / "alone")
    note = ": these are the utterances that it was trained on"

    def told(checkpoint: Path, **options: Any) -> str:
        given: dict[str, Any] = dict.fromkeys(("data", "out", "predictions", "select", "target"))
        given |= dict.fromkeys(("cache_dir", "storage_options")) | {"checkpoint": checkpoint, "split": None}
        evaluate_command(argparse.Namespace(**given | options))
        return capsys.readouterr().out.partition(" utterances\n")[0]

    assert f"note: {data}, split train{note}\n" in told(run, split="train")
    assert note in told(run / "checkpoints/best", data=f"{tmp_path}/copy#train")
    assert note not in told(tmp_path / "alone", data=data, split="train")
    assert told(run).startswith(f"{data}, split test: 6")
    assert told(run, data=val, split="val").startswith(f"{val}, split val: 8")
    os.rename(data, tmp_path / "gone")
    assert told(run, data=f"{tmp_path}/copy", split="train").startswith(f"{tmp_path}/copy, split train: 16")
