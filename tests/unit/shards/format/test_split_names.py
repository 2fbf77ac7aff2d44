"""Splits called "valid" or "dev" are "val", in all sources and for all readers; what is not used is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from shards_support import corpus, pack, utterance

from awtpn.config.settings import DataConfig, SelectConfig
from awtpn.run.data import remarks_on_splits, stream_source
from shards import FeatureStream
from shards.format.split_names import find_split, usual_names


def test_splits_get_their_usual_names() -> None:
    assert usual_names(["Train", "valid", "testing"]) == {"Train": "train", "valid": "val", "testing": "test"}
    assert usual_names(["All", "dev", "extra", "eval"]) == {
        "All": "all",
        "dev": "val",
        "extra": "extra",
        "eval": "eval",
    }


def test_two_splits_that_mean_the_same_are_not_mixed() -> None:
    assert usual_names(["train", "Train", "dev", "val"]) == {
        "train": "train",
        "Train": "train",
        "dev": "dev",
        "val": "val",
    }
    assert find_split("val", ["dev", "val"]) == "val"
    assert find_split("validation", ["dev", "val"]) is None
    assert find_split("val", ["train", "development"]) == "development"


@pytest.mark.parametrize("name", ["valid", "dev", "Validation"])
def test_a_dataset_packed_with_another_name_is_validated_on(tmp_path: Path, name: str) -> None:
    url = str(tmp_path / "d")
    rest = [utterance(i, split) for i, split in ((100, name), (101, name), (102, "extra"))]
    pack([*corpus(), *rest], url)
    data = DataConfig(train=url)
    source = stream_source(data, "val")
    assert source is not None
    train, val = FeatureStream(url), FeatureStream(source["url"], source["split"])
    assert (val.split, val.num_utterances) == (name, 2)
    test = FeatureStream(url, "test")
    assert remarks_on_splits(train, (val, test)) == [
        f"data.val: its utterances are the split {name!r} of {url}",
        f"not used of {url}: split 'extra' (1 utterances); data.val and data.test take URL#SPLIT",
    ]
    with pytest.raises(ValueError, match="no split 'eval'; it has"):
        FeatureStream(url, "eval")


def test_utterances_that_no_selection_takes_are_told(tmp_path: Path) -> None:
    url = str(tmp_path / "d")
    pack([utterance(i, "all") for i in range(30)], url)
    data = DataConfig(train=url, select=SelectConfig(train={"fold": 0}, test={"fold": 1}))
    streams = {}
    for role in ("train", "test"):
        source = stream_source(data, role)
        assert source is not None
        streams[role] = FeatureStream(**source)
    assert stream_source(data, "val") is None
    told = f"not used of {url}#all: 10 utterances that no data.select takes"
    assert remarks_on_splits(streams["train"], (None, streams["test"])) == [told]
    both = FeatureStream(url, select={"fold": [0, 2]})
    assert remarks_on_splits(both, (None, streams["test"])) == []
