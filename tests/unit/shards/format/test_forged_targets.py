"""Targets in manifests and indexes that nobody packed are refused; early manifests read as before."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shards_support import changed
from support import REPO
from targets_support import AFFECT, corpus, pack, unlabeled

from shards import FeatureStream
from shards.format.class_checks import WrongManifest
from shards.format.manifest import parse_manifest
from shards.format.schema import SCHEMA_VERSION, TARGETS_SINCE, dump_manifest
from shards.format.targets import CLASSES
from shards.tools.info import info, preview
from shards.tools.verify import verify

Record = dict[str, Any]
INDEX = "train-000000.index.npz"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pack(corpus(12, 6), tmp_path / "d")
    return tmp_path / "d"


def own(**fields: Any) -> Callable[[Record], None]:
    return lambda record: record["target"].update(fields)


def column(name: str, bounds: Any) -> Callable[[Record], None]:
    return lambda record: record["target"]["columns"].update({name: bounds})


FORGED: dict[str, tuple[Callable[[Record], Any], str]] = {
    "no target": (lambda r: r.pop("target"), "field 'target' is missing"),
    "no targets": (lambda r: r.pop("targets"), "field 'targets' is missing"),
    "target a list": (lambda r: r.update(target=[]), "field 'target' must be dict"),
    "target empty": (
        lambda r: r.update(target={}),
        "target: field 'missing' must be true or false, not None",
    ),
    "targets a list": (lambda r: r.update(targets=[]), "field 'targets' must be dict"),
    "further a string": (lambda r: r["targets"].update(x="y"), r"targets.x: field 'missing'"),
    "type": (own(type="ranking"), "type 'ranking' must be one of"),
    "type a number": (own(type=3), "field 'type' must be str"),
    "long type": (own(type="x" * 10_000), "must be one of"),
    "columns a list": (own(columns=["valence"]), "field 'columns' must be dict"),
    "no columns": (own(columns={}), "has at least one column"),
    "missing a number": (own(missing=1), "field 'missing' must be true or false, not 1"),
    "none missing": (own(missing=False), "'activation' is missing in some utterances"),
    "classes as target": (
        lambda r: r.update(target={"type": "classification", "columns": {}, "missing": False}),
        "there are no classes",
    ),
    "column of text": (column("speaker", None), "'speaker' is not a column of numbers"),
    "unknown column": (column("arousal", None), "'arousal' is not a column of the dataset"),
    "column with a control character": (column("\x1b[2J", None), r"'\\x1b\[2J' cannot be the name"),
    "range NaN": (column("valence", [math.nan, 1]), "not a least and a larger number"),
    "range infinite": (column("valence", [-math.inf, 1]), "not a least and a larger number"),
    "range reversed": (column("valence", [5, 1]), r"range \[5, 1\], not a least and a larger"),
    "range empty": (column("valence", [1, 1]), "not a least and a larger number"),
    "range of three": (column("valence", [1, 2, 3]), "not a least and a larger number"),
    "range of text": (column("valence", ["1", "5"]), "not a least and a larger number"),
    "range of 300 digits": (column("valence", [1, 10**299]), "not a least and a larger number"),
    "a range that is a number": (column("valence", 5), "not a least and a larger number"),
    "labels below 0": (own(type="multilabel", columns={"valence": [-1, 5]}), "'valence' begins at -1"),
    "further target that is a path": (
        lambda r: r["targets"].update({"../x": r["target"]}),
        "targets: '../x' cannot be a name",
    ),
    "further target label": (lambda r: r["targets"].update(label=r["target"]), "'label' cannot be a name"),
    "kind of a column": (lambda r: r["columns"].update(speaker="optional str"), "columns must be"),
    "version 1 without classes": (lambda r: r.update(schema_version=1), "a modality and a class"),
    "version of tomorrow": (
        lambda r: r.update(schema_version=SCHEMA_VERSION + 1),
        f"reads up to {SCHEMA_VERSION}; upgrade",
    ),
    "class counts": (
        lambda r: r["splits"]["train"].update(class_counts=[12]),
        r"class_counts \[12\] do not add up",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_targets_are_refused(dataset: Path, name: str) -> None:
    change, told = FORGED[name]
    url = changed(dataset, change)
    for look in (lambda: FeatureStream(url), lambda: info(url), lambda: verify(url, progress=False)):
        with pytest.raises(ValueError, match=told) as caught:
            look()
        assert "manifest.json: " in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


def test_classes_that_were_removed_are_missed(tmp_path: Path) -> None:
    """Without a class nothing of the shards changes: their indexes and metadata still hold the labels."""
    samples = [unlabeled(i) for i in range(6)]
    for sample in samples:
        object.__setattr__(sample, "label", "calm")
    pack(samples, tmp_path / "d", classes=["calm", "happy"])
    url = changed(
        tmp_path / "d", lambda r: (r.update(classes=[]), r["splits"]["train"].update(class_counts=[]))
    )
    with pytest.raises(WrongManifest, match="2 classes, 0 by the manifest"):
        next(iter(FeatureStream(url).epoch(0)))
    with pytest.raises(WrongManifest, match="2 classes, 0 by the manifest"):
        list(preview(url))


# --- Indexes -------------------------------------------------------------------------------------


def with_index(folder: Path, **arrays: np.ndarray | None) -> str:
    """The URL of the dataset after a change of arrays of an index, with a manifest that names the result."""
    with np.load(folder / INDEX) as file:
        found = dict(file)
    for name, array in arrays.items():
        found.pop(name.replace("__", "."))
        if array is not None:
            found[name.replace("__", ".")] = array
    buffer = io.BytesIO()
    np.savez(buffer, **found)  # type: ignore[arg-type]
    content = buffer.getvalue()
    (folder / INDEX).write_bytes(content)
    fields = {"index_sha256": hashlib.sha256(content).hexdigest(), "index_bytes": len(content)}
    return changed(folder, lambda record: record["splits"]["train"]["shards"][0].update(fields))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"column__valence": np.full(4, np.nan)}, "column 'valence' holds nan"),
        ({"column__valence": np.full(4, np.inf)}, "column 'valence' holds inf"),
        ({"column__valence": np.array([1, 2, 3, 5.5])}, "'valence' holds 5.5, .* are 1 to 5"),
        ({"column__activation": np.full(4, -np.inf)}, "column 'activation' holds -inf"),
        ({"column__activation": np.full(4, 1e300)}, r"column 'activation' holds 1e\+300"),
    ],
)
@pytest.mark.parametrize("skip_damaged", [False, True])
def test_forged_values_are_refused(
    dataset: Path, arrays: dict[str, np.ndarray | None], told: str, skip_damaged: bool
) -> None:
    """A value that the target cannot have is never skipped as damage: all values would be in doubt."""
    stream = FeatureStream(with_index(dataset, **arrays), global_batch_size=6, skip_damaged=skip_damaged)
    for look in (lambda: list(stream.epoch(0)), stream.target_values):
        with pytest.raises(WrongManifest, match=told) as caught:
            look()
        assert "train-000000.index.npz" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"column__valence": np.full(4, "3")}, "array 'column.valence' is <U1"),
        ({"column__valence": np.full(4, 3 + 0j)}, "array 'column.valence' is complex128"),
        ({"column__valence": np.full(4, True)}, "array 'column.valence' is bool"),
        ({"column__valence": np.full(3, 3.0)}, r"array 'column.valence' is float64 \(3,\)"),
        ({"column__activation": np.full((4, 1), 3.0)}, r"array 'column.activation' is float64 \(4, 1\)"),
        ({"column__activation": np.full(4, "x")}, "array 'column.activation' is <U1"),
        ({"column__valence": None}, "array 'column.valence' is missing"),
        ({"label": np.ones(4, np.int32)}, "a label is 1 or 1, and there are 0 classes"),
    ],
)
def test_forged_columns_are_refused(dataset: Path, arrays: dict[str, np.ndarray | None], told: str) -> None:
    url = with_index(dataset, **arrays)
    stream = FeatureStream(url, global_batch_size=6)
    for look in (lambda: list(stream.epoch(0)), stream.target_values, lambda: info(url)):
        with pytest.raises(ValueError, match=told) as caught:
            look()
        assert "\n" not in str(caught.value)
    # An index that contradicts itself is damage, which can be skipped.
    stream = FeatureStream(url, global_batch_size=6, skip_damaged=True)
    damaged = {key: cause for batch in stream.epoch(0) for key, cause in batch.damaged.items()}
    assert damaged
    assert all("train-000000.index.npz" in cause for cause in damaged.values())
    assert np.isnan(stream.target_values()).all(axis=1).tolist() == [True] * 4 + [False] * 8


def test_a_column_that_no_utterance_of_a_shard_has_needs_no_array(dataset: Path) -> None:
    expected = FeatureStream(str(dataset), global_batch_size=6).target_values()
    expected[:4, 1] = np.nan
    url = with_index(dataset, column__activation=None)
    stream = FeatureStream(url, global_batch_size=6)
    np.testing.assert_array_equal(stream.target_values(), expected)
    # A manifest may name any number of columns that are not there: they take no memory.
    assert stream.index(0).columns["activation"].strides == (0,)
    faults = verify(url, progress=False).faults
    assert {fault.cause.partition(":")[0] for fault in faults} == {"column 'activation'"}
    assert [fault.key for fault in faults] == ["train-0", "train-3"]


# --- Early versions ------------------------------------------------------------------------------


@pytest.mark.parametrize("written_now", [False, True])
def test_version_1_reads_unchanged(tmp_path: Path, written_now: bool) -> None:
    """Its target is the classes; its text is the same, by which runs recognize their data."""
    folder = REPO / "tests" / "data" / "v0.1" / "dataset"
    if written_now:
        samples = [unlabeled(i) for i in range(8)]
        for i, sample in enumerate(samples):
            object.__setattr__(sample, "label", "ab"[i % 2])
        folder = tmp_path / "d"
        pack(samples, folder, classes=["a", "b"], target=CLASSES, targets={})
        optional = ["activation", "surprise"]
        text = changed(
            folder,
            lambda r: (
                [r.pop(name) for name in ("target", "targets")],
                [r["columns"].pop(name) for name in optional],
                r.update(schema_version=1),
            ),
        )
        (folder / "manifest.json").write_text(
            json.dumps(json.loads((Path(text) / "manifest.json").read_text()), indent=1) + "\n"
        )
    text = (folder / "manifest.json").read_text()
    manifest = parse_manifest(text, "m")
    assert (manifest.schema_version, manifest.target, manifest.targets) == (1, CLASSES, {})
    assert dump_manifest(manifest) == text
    stream = FeatureStream(str(folder), global_batch_size=4)
    assert (stream.target, stream.classes, stream.without_target) == (CLASSES, manifest.classes, 0)
    batch = next(iter(stream.epoch(0)))
    assert batch.target.shape == (4, 0)
    names = {key: meta["label"] for key, meta in stream.metadata()}
    assert [stream.classes[i] for i in batch.label.tolist()] == [names[key] for key in batch.key]
    assert verify(str(folder), progress=False).faults == []
    column = "valence" if written_now else "speaker"
    values = {key: meta[column] for key, meta in stream.metadata()}
    chosen = FeatureStream(str(folder), global_batch_size=4, target=column, task="regression")
    for batch in chosen.epoch(0):
        assert batch.target[:, 0].tolist() == [values[key] for key in batch.key]


def test_a_manifest_is_written_as_it_is_read(dataset: Path) -> None:
    text = (dataset / "manifest.json").read_text()
    manifest = parse_manifest(text, "m")
    assert (manifest.schema_version, manifest.target) == (TARGETS_SINCE, AFFECT)
    assert dump_manifest(manifest) == text
