"""Targets of corpora and recordings from the command line into a dataset, and back from its stream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_support import IEMOCAP_TURNS, put, write_clip_table, write_iemocap, write_mosei, write_mosi

from awtpn.cli import main
from shards import FeatureStream

MOSEI = ("--audio", "CMU_MOSEI_COVAREP.csd", "--folds", "cmu_mosei_std_folds.py")
TEXT_ALONE = ("--audio", "none", "--video", "none", "--text", "chargrams", "--text_width", 8)


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def skipped(folder: Path) -> dict[str, str]:
    """The causes by key, without the place in the source."""
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {record["key"]: record["cause"].rpartition(": ")[2] for record in map(json.loads, lines)}


def values(folder: Path, split: str, target: str | None = None) -> dict[str, list[float]]:
    """The target's values by key, as a run reads them."""
    stream = FeatureStream(str(folder), split=split, global_batch_size=1, shuffle=False, target=target)
    keys = [key for key, _ in stream.metadata()]
    return dict(zip(keys, stream.target_values().tolist(), strict=True))


def test_emotions_of_mosei(tmp_path: Path) -> None:
    root, out = write_mosei(tmp_path / "mosei"), tmp_path / "out"
    awtpn("pack", root, out, "--format", "mosei", *MOSEI, "--target", "emotions")
    written = manifest(out)
    assert (written["schema_version"], written["classes"]) == (2, [])
    assert written["target"]["type"] == "multilabel"
    assert list(written["target"]["columns"]) == ["happy", "sad", "anger", "surprise", "disgust", "fear"]
    assert written["targets"].keys() == {"sentiment", "emotions"}
    assert values(out, "val") == {
        "hh04W3xXa5s_0": [0.0] * 6,
        "hh04W3xXa5s_1": pytest.approx([0, 0, 0, 0, 1 / 3, 2]),
    }
    assert values(out, "val", "emotions") == values(out, "val")
    assert values(out, "val", "sentiment") == {"hh04W3xXa5s_0": [0.0], "hh04W3xXa5s_1": [-2.7]}


def test_sentiment_of_mosi(tmp_path: Path) -> None:
    root, out = write_mosi(tmp_path / "mosi"), tmp_path / "out"
    named = ("--audio", "CMU_MOSI_COVAREP.csd", "--folds", "cmu_mosi_std_folds.py")
    awtpn("pack", root, out, "--format", "mosei", *named, "--target", "sentiment")
    assert manifest(out)["target"] == {
        "type": "regression",
        "columns": {"sentiment": [-3, 3]},
        "missing": False,
    }
    assert values(out, "train") == {"-3g5yACwYnA_0": [1.0], "-3g5yACwYnA_1": [-0.5]}


def test_classes_of_mosei_are_packed_as_before_with_further_targets(tmp_path: Path) -> None:
    root, out = write_mosei(tmp_path / "mosei"), tmp_path / "out"
    awtpn("pack", root, out, "--format", "mosei", *MOSEI)
    written = manifest(out)
    assert written["target"]["type"] == "classification"
    assert written["classes"] == ["happy", "sad", "anger", "surprise", "disgust", "fear"]
    stream = FeatureStream(str(out), split="train", global_batch_size=2, shuffle=False)
    assert [batch.label.tolist() for batch in stream.epoch(0)] == [[0, 1]]
    assert values(out, "train", "sentiment") == {"-3g5yACwYnA_0": [1.0], "-3g5yACwYnA_1": [-0.5]}


def test_text_of_mosi_alone_keeps_its_target(tmp_path: Path) -> None:
    root, out = write_mosi(tmp_path / "mosi"), tmp_path / "out"
    named = ("--format", "mosei", "--folds", "cmu_mosi_std_folds.py", "--target", "sentiment")
    awtpn("extract", root, out, *named, *TEXT_ALONE)
    assert values(out, "train") == {"-3g5yACwYnA_0": [1.0], "-3g5yACwYnA_1": [-0.5]}


def test_dimensions_of_iemocap(tmp_path: Path) -> None:
    root = write_iemocap(tmp_path / "IEMOCAP", sessions=[1], media=False)
    annotation = root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    text = annotation.read_text(encoding="latin-1")
    annotation.write_text(text.replace("3.5000", "5.7500", 1), encoding="latin-1")
    out = tmp_path / "out"
    awtpn("extract", root, out, "--target", "vad", *TEXT_ALONE)
    assert manifest(out)["classes"] == []
    found = values(out, "all")
    assert {tuple(of) for of in found.values()} == {(2.5, 3.5, 1.6667)}
    causes = skipped(out)
    assert causes["Ses01F_impro01_F000"] == "its 'activation' is 5.75, outside of 0.5 to 5.5"
    stored = FeatureStream(str(out), split="all", global_batch_size=1, shuffle=False)
    emotions = {meta["emotion"] for _, meta in stored.metadata()}
    assert emotions & {"xxx", "sur", "fru"}
    assert len(found) <= 2 * len(IEMOCAP_TURNS)
    classes = tmp_path / "classes"
    awtpn("extract", root, classes, *TEXT_ALONE)
    kept = values(classes, "all", "vad")
    assert kept
    assert kept.keys() < found.keys()


def test_values_of_recordings(tmp_path: Path) -> None:
    rows = []
    for i, valence in enumerate((1.5, "", 9, 4)):
        put("tone.wav", tmp_path / "clips" / f"u{i}.wav")
        rows.append({"name": f"u{i}", "valence": valence, "arousal": i})
    table, out = write_clip_table(tmp_path / "label-disdim.csv", rows), tmp_path / "out"
    named = ("--clip_folder", tmp_path / "clips", "--split", "train", "--video", "none")
    awtpn(
        "extract",
        table,
        out,
        *named,
        *("--target", "regression", "--target_columns", "valence=1:5,arousal"),
    )
    found = values(out, "train")
    assert found.keys() == {"u0", "u1", "u3"}
    np.testing.assert_array_equal([found[key] for key in sorted(found)], [[1.5, 0], [np.nan, 1], [4, 3]])
    assert skipped(out) == {"u2": "its 'valence' is 9.0, outside of 1 to 5"}
    assert manifest(out)["target"]["columns"] == {"valence": [1, 5], "arousal": None}
