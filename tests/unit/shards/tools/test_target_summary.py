"""What info, preview and verify tell of targets, and tars of other programs whose numbers are missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_support import corpus as labeled
from shards_support import pack as pack_labeled
from targets_support import FURTHER, corpus, of_columns, pack, values
from tars_support import index as index_tars
from tars_support import plain

from awtpn.cli import main
from awtpn.cli.dataset_summary import print_targets
from shards import FeatureStream
from shards.format.targets import Target
from shards.tools.info import format_info, format_preview, info, preview
from shards.tools.target_summary import ColumnSummary, target_lines, targets_of
from shards.tools.verify import verify


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pack(corpus(), tmp_path / "d")
    return tmp_path / "d"


def test_info_counts_the_values(dataset: Path) -> None:
    found = info(str(dataset))
    train = found.splits["train"]
    assert list(train.targets) == ["target", *(f"further target {name}" for name in FURTHER)]
    assert train.class_counts == {}
    valence = [values(i)["valence"] for i in range(40)]
    assert train.targets["target"]["valence"] == ColumnSummary(
        40, 0, min(valence), max(valence), pytest.approx(np.mean(valence)), 40
    )
    activation = [v for i in range(40) if (v := values(i)["activation"]) is not None]
    summary = train.targets["target"]["activation"]
    assert (summary.known, summary.missing, summary.least) == (14, 26, min(activation))
    assert train.targets["further target some"]["surprise"].present == 5
    text = format_info(found)
    for part in (
        "target: regression of valence (1 to 5), activation; values may be missing",
        "further target sentiment: regression of sentiment (-3 to 3)\n",
        "further target emotions: multilabel of joy (0 to 3), anger (0 to 3)\n",
        "50.0% present",
        "26 without",
        "activation (optional float)",
    ):
        assert part in text
    assert "class" not in text


def test_a_target_under_two_names_is_told_once(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Target("regression", {"valence": [1, 5], "activation": None}, missing=True)
    manifest = replace(info(str(dataset)).manifest, targets={"vad": own})
    assert list(targets_of(manifest)) == ["target, named vad"]
    assert target_lines(manifest)[0].startswith("target, named vad: regression of valence (1 to 5)")
    print_targets(manifest)
    shown = capsys.readouterr().out
    assert shown.startswith("target, named vad: regression of valence (1 to 5)")
    assert "further" not in shown


def test_info_without_values(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = info(f"{dataset}#test", lengths=False)
    assert found.splits["test"].targets == {}
    assert "further target some: multilabel of surprise (0 to 1); values may be missing" in format_info(found)
    main(["shards", "info", str(dataset)])
    assert "further target some:" in capsys.readouterr().out


def test_info_of_classes(tmp_path: Path) -> None:
    pack_labeled(labeled(), tmp_path / "d")
    assert "target: one of 3 classes" in format_info(info(str(tmp_path / "d")))
    samples = [sample for sample in labeled() if sample.split == "train"]
    pack_labeled(samples, tmp_path / "e", target=Target("regression", {"gain": [0, 20]}))
    text = format_info(info(str(tmp_path / "e")))
    assert "target: regression of gain (0 to 20)\nfurther target label: one of 3 classes\n" in text
    assert "class calm" in text


def test_info_of_a_target_without_values(tmp_path: Path) -> None:
    pack(corpus(6, 0), tmp_path / "d", targets={"none": Target("regression", {"x": None}, missing=True)})
    lines = format_info(info(str(tmp_path / "d"))).splitlines()
    [line] = [line for line in lines if line.startswith("    x ")]
    assert line.split() == ["x", "no", "value", "0", "utterances", "6", "without"]


def test_preview_without_classes(dataset: Path) -> None:
    [first, *_] = preview(str(dataset))
    assert first.label is None
    assert first.meta["valence"] == 1.0
    text = format_preview(first)
    assert text.startswith("train-0  (train, train-000000.tar)\n")
    assert "  valence: 1.0" in text


def test_verify_compares_columns_with_the_shard(dataset: Path) -> None:
    assert verify(str(dataset), progress=False).faults == []
    path = dataset / "train-000000.index.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["column.valence"][1] += 0.5
    arrays["column.speaker"][2] = "s9"
    arrays["column.activation"][[0, 3]] = arrays["column.activation"][0], math.nan
    np.savez(path, **arrays)
    record = json.loads((dataset / "manifest.json").read_text())
    from shards.format.hashing import hash_file

    fields = {"index_sha256": hash_file(path), "index_bytes": path.stat().st_size}
    record["splits"]["train"]["shards"][0].update(fields)
    (dataset / "manifest.json").write_text(json.dumps(record))
    found = {(fault.key, fault.cause) for fault in verify(str(dataset), progress=False).faults}
    assert found == {
        ("train-1", "column 'valence': the index differs from the shard; pack it again"),
        ("train-2", "column 'speaker': the index differs from the shard; pack it again"),
        ("train-3", "column 'activation': the index differs from the shard; pack it again"),
    }


def test_verify_compares_values_with_the_target(dataset: Path) -> None:
    path = dataset / "manifest.json"
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            record | {"target": {"type": "regression", "columns": {"valence": [4, 5]}, "missing": False}}
        )
    )
    faults = verify(str(dataset), progress=False).faults
    assert faults
    assert {(fault.key, fault.cause.partition(" holds ")[0]) for fault in faults} == {
        (None, "column 'valence'")
    }
    own = {"type": "regression", "columns": {"activation": None}, "missing": True}
    path.write_text(json.dumps(record | {"target": own}))
    faults = verify(str(dataset), progress=False).faults
    lacking = {
        key
        for split in record["splits"]
        for key, meta in FeatureStream(str(dataset), split, target="valence").metadata()
        if meta["activation"] is None
    }
    assert {fault.key for fault in faults} == lacking
    assert {fault.cause for fault in faults} == {"it has no value of the target; pack it again"}


# --- Tars of other programs ----------------------------------------------------------------------


def test_numbers_that_utterances_of_foreign_tars_lack(tmp_path: Path) -> None:
    def with_values(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        found = []
        for name, content in files:
            if name.endswith(".json"):
                record: dict[str, Any] = json.loads(content)
                i = int(name[1])
                record |= {"valence": None if i % 3 else float(i), "rating": i}
                content = json.dumps(record if i % 2 else record | {"arousal": i / 2}).encode()
            found.append((name, content))
        return found

    index_tars(plain(tmp_path / "t", with_values), tmp_path / "cache")
    stream = FeatureStream(
        str(tmp_path / "t"), global_batch_size=4, target="valence,arousal", cache_dir=tmp_path / "cache"
    )
    assert stream.manifest.columns == {
        "arousal": "optional float",
        "rating": "int",
        "speaker": "str",
        "valence": "optional float",
    }
    expected = np.array(
        [[math.nan if i % 3 else i, math.nan if i % 2 else i / 2] for i in range(10)], np.float64
    )
    known = ~np.isnan(expected).all(axis=1)
    np.testing.assert_array_equal(stream.target_values(), expected[known])
    for batch in stream.epoch(0):
        np.testing.assert_array_equal(batch.target, expected[[int(key[1:]) for key in batch.key]])
    assert "target: one of 2 classes" in format_info(info(str(tmp_path / "t"), cache_dir=tmp_path / "cache"))
    assert verify(str(tmp_path / "t"), progress=False, cache_dir=tmp_path / "cache").faults == []


def test_the_values_that_are_expected(dataset: Path) -> None:
    """The formulas of the corpus reach the stream, so that the other tests compare with the right ones."""
    stream = FeatureStream(str(dataset), target="emotions")
    np.testing.assert_array_equal(
        stream.target_values()[:4], [of_columns(i, FURTHER["emotions"]) for i in range(4)]
    )
