"""Packing utterances with targets: what is stored, and which utterances are bad."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from shards_support import utterance
from targets_support import AFFECT, EMOTIONS, FURTHER, SENTIMENT, SOME, corpus, of_columns, pack, unlabeled

from shards import FeatureStream, Manifest
from shards.format.manifest import parse_manifest
from shards.format.targets import CLASSES, Target
from shards.tools.verify import verify


def read(path: Path) -> Manifest:
    return parse_manifest((path / "manifest.json").read_text(), "m")


@pytest.mark.parametrize(
    ("target", "targets"),
    [
        (AFFECT, FURTHER),
        (SENTIMENT, {}),
        (EMOTIONS, {"sentiment": SENTIMENT}),
        (Target("multilabel", {"joy": None}), {"affect": AFFECT, "some": SOME}),
    ],
)
def test_a_dataset_without_classes(tmp_path: Path, target: Target, targets: dict[str, Target]) -> None:
    manifest = pack(corpus(), tmp_path / "d", target=target, targets=targets)
    assert read(tmp_path / "d") == manifest
    assert (manifest.target, manifest.targets, manifest.classes) == (target, targets, [])
    assert [split.class_counts for split in manifest.splits.values()] == [[], []]
    assert {n: manifest.columns[n] for n in ("valence", "sentiment", "activation")} == {
        "valence": "float",
        "sentiment": "int",
        "activation": "optional float",
    }
    assert verify(str(tmp_path / "d"), progress=False).faults == []
    for split, first in (("train", 0), ("test", 1_000)):
        for name, chosen in ((None, target), *targets.items()):
            stream = FeatureStream(str(tmp_path / "d"), split, target=name)
            expected = np.array([of_columns(first + i, chosen) for i in range(40 if split == "train" else 7)])
            known = ~np.isnan(expected).all(axis=1)
            np.testing.assert_array_equal(stream.target_values(), expected[known])
            assert stream.without_target == np.count_nonzero(~known)


def test_webdataset_reads_the_values(tmp_path: Path) -> None:
    pack(corpus(9, 0), tmp_path / "d")
    urls = sorted(str(path) for path in (tmp_path / "d").glob("*.tar"))
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [f"train-{i}" for i in range(9)]
    for i, sample in enumerate(read):
        assert "label" not in sample["json"]
        for target in (AFFECT, *FURTHER.values()):
            found = [math.nan if sample["json"][n] is None else sample["json"][n] for n in target.columns]
            np.testing.assert_array_equal(found, of_columns(i, target))


def test_classes_beside_another_target(tmp_path: Path) -> None:
    samples = [utterance(i, meta=unlabeled(i).meta) for i in range(12)]
    manifest = pack(samples, tmp_path / "d", classes=["calm", "happy", "sad"])
    assert manifest.splits["train"].class_counts == [4, 4, 4]
    own = FeatureStream(str(tmp_path / "d"), global_batch_size=12)
    assert (own.target, own.classes, own.class_counts().tolist()) == (AFFECT, [], [])
    by_class = FeatureStream(str(tmp_path / "d"), global_batch_size=12, target="label")
    assert (by_class.target, by_class.classes) == (CLASSES, ["calm", "happy", "sad"])
    assert by_class.class_counts().tolist() == [4, 4, 4]
    [batch], [other] = by_class.epoch(0), own.epoch(0)
    assert [int(key.rpartition("-")[2]) % 3 for key in batch.key] == batch.label.tolist()
    assert (other.key, other.label.tolist()) == (batch.key, [0] * 12)
    assert [meta["label"] for _, meta in own.metadata()] == ["calm", "happy", "sad"] * 4


def test_how_values_are_stored(tmp_path: Path) -> None:
    """NumPy's scalars and truth values become numbers of JSON; a value that is absent becomes null."""
    metas = [
        {"joy": np.True_, "anger": np.float32(0.5), "surprise": True},
        {"joy": False, "anger": np.int8(3), "surprise": None},
        {"joy": 2, "anger": 0.0},
    ]
    samples = [utterance(i, label=None, meta=meta) for i, meta in enumerate(metas)]
    manifest = pack(samples, tmp_path / "d", target=EMOTIONS, targets={"some": SOME})
    assert manifest.columns == {"anger": "float", "joy": "int", "surprise": "optional float"}
    stored = [meta for _, meta in FeatureStream(str(tmp_path / "d")).metadata()]
    assert [json.dumps(meta) for meta in stored] == [
        '{"joy": 1, "anger": 0.5, "surprise": 1}',
        '{"joy": 0, "anger": 3, "surprise": null}',
        '{"joy": 2, "anger": 0.0, "surprise": null}',
    ]


def test_a_further_target_that_no_utterance_has(tmp_path: Path) -> None:
    nothing = Target("regression", {"x": [0, 1]}, missing=True)
    manifest = pack(corpus(6, 2), tmp_path / "d", targets={"nothing": nothing})
    assert manifest.columns["x"] == "optional float"
    assert verify(str(tmp_path / "d"), progress=False).faults == []
    with pytest.raises(ValueError, match=r"#train: no utterance has a value of 'x'; choose"):
        FeatureStream(str(tmp_path / "d"), target="nothing")


# --- Bad utterances ------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "beyond the range": ({"valence": 5.5}, "its 'valence' is 5.5, outside of 1 to 5"),
    "text": ({"sentiment": "high"}, "its 'sentiment' is 'high', not a number"),
    "NaN": ({"joy": math.nan}, "its 'joy' is nan; write a number, or leave it empty"),
    "infinite": ({"activation": math.inf}, "its 'activation' is inf"),
    "400 digits": ({"activation": 10**400}, "its 'activation' is inf"),
    "a negative label": ({"anger": -1}, "its 'anger' is -1, outside of 0 to 3"),
    "missing": ({"sentiment": None}, "has no 'sentiment'; fill it in"),
    "all missing": ({"valence": None, "activation": None}, "has no target: no value of 'valence' nor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_bad_utterances(tmp_path: Path, name: str) -> None:
    change, cause = BAD[name]
    samples = [unlabeled(i, **(change if i == 3 else {})) for i in range(8)]
    with pytest.raises(ValueError, match=f"utterance 'train-3': {cause}"):
        pack(samples, tmp_path / "d")
    assert not list((tmp_path / "d").glob("*"))
    manifest = pack(samples, tmp_path / "d", on_bad="skip")
    assert (manifest.skipped, manifest.splits["train"].utterances) == (1, 7)
    [line] = (tmp_path / "d" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "train-3"
    assert cause in json.loads(line)["cause"]


def test_an_utterance_without_a_further_target_is_sound(tmp_path: Path) -> None:
    some = Target("regression", {"activation": None}, missing=True)
    samples = [unlabeled(i, activation=None) for i in range(4)]
    manifest = pack(samples, tmp_path / "d", target=SENTIMENT, targets={"some": some})
    assert manifest.splits["train"].utterances == 4


@pytest.mark.parametrize(
    ("options", "change", "told"),
    [
        ({}, {"label": "calm"}, "has the label 'calm', but there are no classes"),
        ({"classes": ["calm"]}, {}, "has no label"),
        ({"classes": [], "target": CLASSES}, {}, "must be distinct names, at least one"),
        ({"targets": {"label": SENTIMENT}}, {}, "'label' cannot be a name"),
        ({"target": Target("regression", {"valence": [5, 1]})}, {}, "not a least and a larger number"),
        ({"target": Target("ranking", {"valence": None})}, {}, "type 'ranking' must be one of"),
        ({}, {"meta": {"label": "calm", **unlabeled(0).meta}}, "metadata must not be named 'label'"),
    ],
)
def test_labels_and_targets_that_do_not_fit(
    tmp_path: Path, options: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    sample = utterance(0, **({"label": None, "meta": unlabeled(0).meta} | change))
    with pytest.raises(ValueError, match=told):
        pack([sample], tmp_path / "d", **options)
    assert not list(tmp_path.glob("d/*"))


@pytest.mark.parametrize("order", [list, lambda samples: samples[::-1]])
def test_shards_differ_in_what_they_lack(tmp_path: Path, order: Callable[[list[Any]], list[Any]]) -> None:
    """A shard may have all values of a column as integers, another some, and another none."""
    given = [3, 1, 2, 5] * 3 + [1.5, None, 2, 3] * 3 + [None] * 12
    samples = order([unlabeled(i, activation=value) for i, value in enumerate(given)])
    pack(samples, tmp_path / "d")
    kinds = set()
    for path in (tmp_path / "d").glob("*.npz"):
        with np.load(path) as index:
            kinds.add(index["column.activation"].dtype.kind if "column.activation" in index else None)
    assert kinds == {"i", "f", None}
    found = FeatureStream(str(tmp_path / "d")).target_values()[:, 1]
    expected = order([math.nan if value is None else value for value in given])
    np.testing.assert_array_equal(found, expected)
    assert verify(str(tmp_path / "d"), progress=False).faults == []
