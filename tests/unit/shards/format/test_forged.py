"""Manifests and indexes that nobody packed: refused in one line, before anything is read or touched."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from shards_support import CLASSES, changed, corpus, pack

from shards import FeatureStream
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.schema import TARGETS_SINCE
from shards.safe_io.bounded_json import DEEPEST, parse_json, read_json
from shards.safe_io.bounded_npz import read_uncompressed_npz
from shards.tools.info import format_info, info, preview
from shards.tools.verify import verify

Arrays = dict[str, np.ndarray]
Record = dict[str, Any]
INDEX = "train-000000.index.npz"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    pack(corpus(12, 6), tmp_path / "d")
    return tmp_path / "d"


def refusal(call: Callable[[], Any]) -> str:
    """The message of a refusal, which has one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what the caller looks at)
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first_batch(url: str, **options: Any) -> Any:
    return next(iter(FeatureStream(url, prefetch=0, **options).epoch(0)))


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 200_000, "nested too deeply"),
        ("[" * 500 + "]" * 500, "nested"),
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), f"more than {DEEPEST} levels"),
        ('{"a": ' + "1" * 10_000 + "}", "an integer of 10000 digits"),
        ("{", "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        ("", "not JSON"),
        ('{"label": "a", "label": "b"}', "the key 'label' is there twice in one object"),
        ('[{"x": {"a\\n": 1, "b": {}, "a\\u000a": 1}}]', r"the key 'a\n' is there twice in one object"),
    ],
)
def test_json_that_cannot_be_read_is_refused_in_a_line(tmp_path: Path, text: str | bytes, told: str) -> None:
    assert told in refusal(lambda: parse_json(text, "here"))
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(lambda: read_json(tmp_path / "x.json")).startswith(str(tmp_path / "x.json"))


def test_json_of_usual_depth_is_read() -> None:
    text = "[" * DEEPEST + '"[[[["' + "]" * DEEPEST
    found = parse_json(text, "here")
    for _ in range(DEEPEST):
        [found] = found
    assert found == "[[[["
    assert parse_json('{"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]}', "here")["b"] == [{"a": 2}, {"a": 3}]
    assert parse_json(b'{"id": 123456789012345678901234567890}', "here")["id"] > 2**63


# --- Manifests -----------------------------------------------------------------------------------


def shard(record: Record, split: str = "train") -> Record:
    found: Record = record["splits"][split]["shards"][0]
    return found


def set_in_shard(name: str, value: Any) -> Callable[[Record], None]:
    return lambda record: shard(record).update({name: value})


def set_moment(name: str, value: float) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        record["splits"]["train"]["moments"]["audio"][name][2] = value

    return change


def utterances(count: int) -> Callable[[Record], None]:
    """A split that claims to have so many more utterances."""

    def change(record: Record) -> None:
        split = record["splits"]["train"]
        shard(record)["utterances"] += count
        split["utterances"] += count
        split["class_counts"][0] += count

    return change


def twice(record: Record) -> None:
    split = record["splits"]["train"]
    split["shards"] *= 2
    for counts in (split["steps"], *split["moments"].values()):
        for name in counts:
            if isinstance(counts[name], int):
                counts[name] *= 2
    split["utterances"] *= 2
    split["class_counts"] = [2 * count for count in split["class_counts"]]


def in_two_splits(record: Record) -> None:
    record["splits"]["dev"] = record["splits"]["train"]


FORGED: dict[str, tuple[Callable[[Record], Any], str]] = {
    "hash that is a path": (set_in_shard("sha256", "../../../my"), "'../../../my' is not a hash"),
    "hash of the index": (set_in_shard("index_sha256", "../" * 30), "index_sha256 .* is not a hash"),
    "hash in capitals": (set_in_shard("sha256", "A" * 64), "is not a hash"),
    "hash and newline": (set_in_shard("sha256", "a" * 64 + "\n"), "is not a hash"),
    "name that is a path": (set_in_shard("index", "../x"), "not a plain file name"),
    "long name": (set_in_shard("name", "x" * 300), "not a plain file name"),
    "10^12 utterances": (utterances(10**12), "do not fit into"),
    "10^30 utterances": (utterances(10**30), "must be a count below"),
    "utterances beyond the index": (set_in_shard("index_bytes", 60), "4 utterances do not fit into 60 bytes"),
    "large index": (set_in_shard("index_bytes", 10**14), "the index do not fit|the index does not fit"),
    "bytes without end": (set_in_shard("bytes", 2**53 - 1), "more than is possible"),
    "steps beyond the bytes": (lambda r: shard(r)["steps"].update(audio=10**6), "features of .* do not fit"),
    "steps that do not add up": (lambda r: shard(r)["steps"].update(audio=1), "other numbers of steps"),
    "steps of a stranger": (lambda r: shard(r)["steps"].update({"\x1b[2J": 1}), r"steps of '\\x1b\[2J'"),
    "mean NaN": (set_moment("mean", float("nan")), r"mean\[2\] is nan"),
    "std infinite": (set_moment("std", float("inf")), r"std\[2\] is inf"),
    "std negative": (set_moment("std", -1.0), r"std\[2\] is -1.0"),
    "mean beyond float16": (set_moment("mean", 1e6), r"mean\[2\] is 1000000.0"),
    "classes twice": (lambda r: r.update(classes=["a", "b", "a"]), r"classes\[2\] 'a' is there twice"),
    "class empty": (lambda r: r.update(classes=["a", "", "b"]), r"classes\[1\] is empty"),
    "class no text": (
        lambda r: r.update(classes=["a", "\ud800", "b"]),
        r"classes\[1\] '\\ud800' is not valid text",
    ),
    "schema version 0": (lambda r: r.update(schema_version=0), "schema version 0"),
    "shard twice": (twice, "is named twice"),
    "shard in two splits": (in_two_splits, "is named twice"),
    "shard that is an index": (set_in_shard("name", INDEX), "is named twice"),
    "split that is a path": (
        lambda r: r["splits"].update({"../x": r["splits"].pop("test")}),
        r"splits: '\.\./x' cannot be a name",
    ),
    "modality": (
        lambda r: r["modalities"].update({"../x": r["modalities"]["audio"]}),
        r"modalities: '\.\./x' cannot be a name",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_manifests_are_refused(dataset: Path, name: str) -> None:
    change, told = FORGED[name]
    url = changed(dataset, change)
    with pytest.raises(ValueError, match=told):
        FeatureStream(url)
    for look in (lambda: FeatureStream(url), lambda: info(url), lambda: verify(url, progress=False)):
        assert "manifest.json: " in refusal(look)


def test_a_deep_or_endless_manifest(dataset: Path) -> None:
    path = dataset / "manifest.json"
    text = path.read_text()
    for content in (
        "[" * 200_000,
        text.replace(f'"schema_version": {TARGETS_SINCE}', f'"schema_version": {"1" * 10_000}'),
    ):
        path.write_text(content)
        assert "manifest.json: not JSON" in refusal(lambda: FeatureStream(str(dataset)))


def test_a_hash_that_is_a_path_touches_nothing(remote: str, tmp_path: Path) -> None:
    """Cached files are named by hash and name: this would be the file of a user, and have another size."""
    thesis = tmp_path / "home" / "my-thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("the only copy")
    memory = fsspec.filesystem("memory")
    path = f"{remote.removeprefix('memory:/')}/manifest.json"
    record = json.loads(memory.cat_file(path))
    shard(record).update(sha256="../../../my", name="thesis.tex")
    memory.pipe_file(path, json.dumps(record).encode())
    cache = tmp_path / "home" / ".cache" / "shards"
    for look in (
        lambda: first_batch(remote, cache_dir=cache),
        lambda: info(remote, cache_dir=cache),
        lambda: list(preview(remote, cache_dir=cache)),
        lambda: verify(remote, cache_dir=cache, progress=False),
    ):
        assert "is not a plain file name" in refusal(look) or "is not a hash" in refusal(look)
    assert thesis.read_text() == "the only copy"
    assert [p.name for p in (tmp_path / "home").iterdir() if p.is_file()] == ["my-thesis.tex"]


@pytest.mark.parametrize("skip_damaged", [False, True])
def test_class_counts_are_those_of_the_indexes(dataset: Path, skip_damaged: bool) -> None:
    """Planning takes them from the manifest: whoever weighs classes by them, or reads the shards, knows."""

    def exchange(record: Record) -> None:
        counts = record["splits"]["train"]["class_counts"]
        counts[0], counts[1] = counts[0] - 1, counts[1] + 1

    url = changed(dataset, exchange)
    told = r"train: class_counts \[3, 5, 4\] of the manifest are not those of its shards' indexes"
    with pytest.raises(ValueError, match=told):
        FeatureStream(url, skip_damaged=skip_damaged).class_counts()
    with pytest.raises(ValueError, match=told):
        list(FeatureStream(url, skip_damaged=skip_damaged).epoch(0))
    with pytest.raises(ValueError, match=told):
        info(url)
    [fault] = verify(url, progress=False).faults
    assert (fault.file, fault.key) == ("manifest.json", None)
    assert "class_counts [3, 5, 4]" in fault.cause
    assert FeatureStream(url, split="test").class_counts().tolist() == [2, 2, 2]


@pytest.mark.parametrize(("column", "kind"), [("nope", "int"), ("fold", "str"), ("speaker", "float")])
def test_columns_are_those_of_the_indexes(dataset: Path, column: str, kind: str) -> None:
    url = changed(dataset, lambda record: record["columns"].update({column: kind}))
    told = f"{INDEX}: array 'column.{column}' is "
    for look in (
        lambda: first_batch(url),
        lambda: FeatureStream(url, select={column: 1}),
        lambda: info(url),
    ):
        assert told in refusal(look)
    assert {fault.key for fault in verify(url, progress=False).faults} == {None}


@pytest.mark.parametrize(
    "features",
    [
        3,
        {"audio": 3},
        {"audio": {"space": "x", "settings": {}}},
        {"audio": {"space": "x", "settings": {"id": 3}}},
        {"audio": {"space": ["x"], "settings": {"id": "logmel", "dtype": "float32"}}},
        {"audio": {"space": "x", "settings": {"id": "logmel", "dtype": "float32", "versions": 3}}},
        {"audio": {"space": "x", "settings": {"id": "logmel", "dtype": [[]], "layers": {"a": {"b": [1]}}}}},
    ],
)
def test_provenance_may_be_anything(dataset: Path, features: Any) -> None:
    url = changed(dataset, lambda record: record["provenance"].update(features=features))
    assert "split train" in format_info(info(url))
    assert len(first_batch(url)) == 12


@pytest.mark.parametrize("rate", [0, -1, 1e12, float("nan"), "10", True])
def test_a_recorded_rate_that_cannot_be_is_refused(rate: Any) -> None:
    settings = {"id": "descriptor", "fps": rate, "step_seconds": 0.1}
    assert "video: fps cannot be " in refusal(lambda: reopen_encoder("video", settings))


# --- Class names ---------------------------------------------------------------------------------


def swap_classes(record: Record) -> None:
    record["classes"] = [CLASSES[1], CLASSES[0], CLASSES[2]]


def test_swapped_classes_are_noticed_by_all(dataset: Path) -> None:
    url = changed(dataset, swap_classes)
    told = f"{INDEX}: class 0 is 'calm', by the manifest 'happy'"
    for look in (
        lambda: first_batch(url),
        lambda: first_batch(url, skip_damaged=True, balance=False),
        lambda: FeatureStream(url).class_counts(),
        lambda: FeatureStream(url, select={"fold": 1}),
        lambda: list(FeatureStream(url).metadata()),
        lambda: info(url),
        lambda: list(preview(url)),
    ):
        assert told in refusal(look)
    faults = verify(url, progress=False).faults
    assert [fault.file for fault in faults] == [f"{p.name}" for p in sorted(dataset.glob("*.npz"), key=order)]


def order(path: Path) -> tuple[bool, str]:
    return path.name.startswith("test"), path.name


def test_swapped_classes_of_an_early_dataset_are_noticed_by_all(dataset: Path) -> None:
    """Its indexes know no names: the shards' own metadata do."""
    for path in dataset.glob("*.npz"):
        forge(dataset, path.name, lambda arrays: arrays.pop("classes"))
    assert len(list(FeatureStream(str(dataset)).epoch(0))) == 1
    url = changed(dataset, swap_classes)
    told = "its label is 'calm' in the shard, and 'happy' by the manifest"
    for look in (
        lambda: first_batch(url),
        lambda: first_batch(url, skip_damaged=True),
        lambda: list(FeatureStream(url).metadata()),
        lambda: list(preview(url)),
    ):
        assert told in refusal(look)
    faults = verify(url, progress=False).faults
    assert (faults[0].file, faults[0].key) == ("train-000000.tar", "train-0")
    assert told in faults[0].cause
    assert len(faults) == 12, "every utterance of two classes of three"


def test_damaged_metadata_of_an_early_dataset_do_not_stop_training(dataset: Path) -> None:
    """Training needs none of them."""
    forge(dataset, INDEX, lambda arrays: arrays.pop("classes"))
    with (dataset / INDEX).open("rb") as file:
        offset = int(read_uncompressed_npz(file.read())["json.offset"][0])
    content = bytearray((dataset / "train-000000.tar").read_bytes())
    content[offset] ^= 1
    (dataset / "train-000000.tar").write_bytes(content)
    assert len(first_batch(str(dataset))) == 12


# --- Indexes -------------------------------------------------------------------------------------


def forge(folder: Path, name: str, change: Callable[[Arrays], Any]) -> None:
    """Change the arrays of an index, and let the manifest name it as it is then."""
    with (folder / name).open("rb") as file:  # np.load would race with threads that read headers
        arrays = {key: values.copy() for key, values in read_uncompressed_npz(file.read()).items()}
    change(arrays)
    np.savez(folder / name, **arrays)
    name_again(folder, name)


def name_again(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()

    def change(record: Record) -> None:
        for split in record["splits"].values():
            for entry in split["shards"]:
                if entry["index"] == name:
                    entry["index_bytes"] = len(content)
                    entry["index_sha256"] = hashlib.sha256(content).hexdigest()

    changed(folder, change)


def put(name: str, row: int, value: Any) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name][row] = value

    return change


def add(name: str, row: int, value: int) -> Callable[[Arrays], None]:
    return lambda arrays: arrays[name].__setitem__(row, arrays[name][row] + value)


def cast(name: str, dtype: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: arrays[name].astype(dtype)})


def drop(name: str) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.pop(name)


def move_a_step(arrays: Arrays) -> None:
    """The same steps in all, but one of them is what lies behind an array."""
    arrays["steps.audio"][0] += 1
    arrays["steps.audio"][1] -= 1


def grow(arrays: Arrays) -> None:
    """An array that reaches into the next member; another is said to be that much shorter."""
    arrays["steps.audio"][1] = 100
    arrays["steps.audio"][0] -= 50
    arrays["steps.audio"][2] -= 50


def the_same_array_twice(arrays: Arrays) -> None:
    for what in ("offset", "steps"):
        arrays[f"{what}.audio"][1] = arrays[f"{what}.audio"][0]


def video_over_audio(arrays: Arrays) -> None:
    arrays["offset.video"][0] = arrays["offset.audio"][0]


INDEXES: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "negative offset": (put("offset.audio", 1, -64), "begins before the first member|does not lie"),
    "offset within the first header": (put("offset.audio", 0, 64), "begins before the first member"),
    "offset past the end": (put("offset.video", 1, 2**40), "reaches past the end of its shard"),
    "offset near 2^63": (put("offset.video", 1, 2**63 - 64), "reaches past the end of its shard"),
    "end past the end": (put("offset.video", 1, 20_480 - 16), "reaches past the end"),
    "offset between two values": (add("offset.audio", 0, 1), "does not begin where the data"),
    "offset of the next step": (add("offset.audio", 0, 10), "does not begin where the data"),
    "the same array twice": (the_same_array_twice, "steps of audio|overlaps what lies before"),
    "arrays of two modalities in one place": (video_over_audio, "overlaps what is before it"),
    "array over a header": (grow, "overlaps what is before it|steps"),
    "missing, but with steps": (put("offset.audio", 0, -1), "without audio has steps of it"),
    "negative steps": (put("steps.audio", 0, -3), "has -3 steps of audio"),
    "steps without end": (put("steps.audio", 0, 2**31 - 1), "steps of audio, .* by the manifest"),
    "a step more": (add("steps.audio", 0, 1), "steps of audio, .* by the manifest"),
    "label out of range": (put("label", 0, 3), "a label is 0 or 3, and there are 3 classes"),
    "label negative": (put("label", 0, -1), "a label is -1 or"),
    "key twice": (lambda arrays: put("key", 0, arrays["key"][1])(arrays), "two utterances have the same key"),
    "json past the end": (put("json.offset", 0, 2**30), "reaches past the end"),
    "json of negative size": (put("json.size", 0, -1), "a JSON member has a negative size"),
    "json not at a block": (add("json.offset", 1, 64), "does not begin where a member of a tar does"),
    "json over an array": (put("json.size", 0, 5_000), "overlaps what is before it"),
    "other form": (
        lambda arrays: arrays.update({"form.audio": np.array("float32 [steps, 5]")}),
        "audio is float32",
    ),
    "form of numbers": (lambda arrays: arrays.update({"form.audio": np.arange(3)}), "'form' is not"),
    "classes of numbers": (lambda arrays: arrays.update({"classes": np.arange(3)}), "'classes' does not"),
    "fewer classes": (lambda arrays: arrays.update({"classes": np.array(CLASSES[:2])}), "2 classes, 3 by"),
    "offsets as floats": (cast("offset.audio", np.float64), "'offset.audio' is float64"),
    "offsets of other bytes": (cast("offset.audio", ">i8"), "'offset.audio' is >i8"),
    "labels as text": (cast("label", "U8"), "'label' is <U8"),
    "steps that are wider": (cast("steps.video", np.int64), "'steps.video' is int64"),
    "a CRC less": (lambda a: a.update({"crc.audio": a["crc.audio"][1:]}), "'crc.audio' is uint32"),
    "a label less": (lambda a: a.update({"label": a["label"][1:]}), "'label' is int32"),
    "offsets in columns": (
        lambda a: a.update({"offset.audio": a["offset.audio"][:, None]}),
        "'offset.audio'",
    ),
    "a column of other kind": (cast("column.speaker", "S8"), r"'column.speaker' is \|S8"),
    "no keys": (drop("key"), "array 'key' is missing"),
    "no labels": (drop("label"), "array 'label' is missing"),
    "no offsets": (drop("offset.audio"), "array 'offset.audio' is missing"),
    "no modality": (lambda a: (a.pop("offset.audio"), a.pop("steps.audio")), "0 steps of audio"),
    "no column": (drop("column.fold"), "array 'column.fold' is missing"),
    "objects": (
        lambda a: a.update({"key": np.array([print] * len(a["key"]), object)}),
        "holds pickled objects, which are never read",
    ),
}


@pytest.mark.parametrize("name", INDEXES)
def test_forged_indexes_are_refused(dataset: Path, name: str) -> None:
    change, told = INDEXES[name]
    forge(dataset, INDEX, change)
    url = str(dataset)
    with pytest.raises(ValueError, match=f"{INDEX}: .*({told})"):
        first_batch(url)
    assert INDEX in refusal(lambda: info(url))
    assert INDEX in refusal(lambda: list(preview(url)))
    fault, *_ = verify(url, progress=False).faults
    assert (fault.file, fault.key) == (INDEX, None)
    assert "\n" not in fault.cause


def npy(header: bytes) -> bytes:
    """A `.npy` file of this header and no data."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def header(shape: str, dtype: str = "'<i8'") -> bytes:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()


@pytest.mark.parametrize(
    "member",
    [
        npy(header("(4000000000000,)")),  # 29 TiB
        npy(header(f"({2**62}, {2**62})")),
        npy(header("(-1, -4)")),
        npy(header("(4,)", "'<U0'")),
        npy(header("(4,)", "'|O'")),
        npy(header("(4,)", "[('a', '<i8', (1000000,))]")),
        npy(b"[" * 9_000),
        npy(b"'" * 20_000),
        npy(b"\xff" * 100),
        b"not an array",
        b"",
    ],
)
def test_arrays_that_are_none_are_refused_before_memory_is_taken(dataset: Path, member: bytes) -> None:
    replace_member(dataset, "label.npy", member)
    assert f"{INDEX}: not the index of a shard (" in refusal(lambda: first_batch(str(dataset)))


def replace_member(dataset: Path, name: str, content: bytes, how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(dataset / INDEX) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    members[name] = content
    with zipfile.ZipFile(dataset / INDEX, "w", how) as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    name_again(dataset, INDEX)


def test_an_index_that_inflates_is_refused(dataset: Path) -> None:
    bomb = io.BytesIO()
    np.save(bomb, np.zeros(1_000_000, np.int64))
    replace_member(dataset, "column.bomb.npy", bomb.getvalue(), zipfile.ZIP_DEFLATED)
    assert "its arrays claim 8" in refusal(lambda: first_batch(str(dataset)))


def test_members_that_share_their_bytes_are_refused(dataset: Path) -> None:
    """A directory of many entries for one member: as many copies of it in memory."""
    with zipfile.ZipFile(dataset / INDEX, "a") as archive:
        archive.writestr("big.npy", bytes(100_000))
        big = archive.getinfo("big.npy")
        for i in range(50):
            copy = zipfile.ZipInfo(f"copy-{i}.npy")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, name, getattr(big, name))
            archive.filelist.append(copy)
    name_again(dataset, INDEX)
    assert "its arrays claim" in refusal(lambda: first_batch(str(dataset)))


@pytest.mark.parametrize("what", [("offset.audio", "steps.audio", "crc.audio"), ("label",), ("crc.video",)])
def test_an_index_of_right_form_that_tells_otherwise_is_found_by_verify(
    dataset: Path, what: tuple[str, ...]
) -> None:
    """Two utterances with each other's arrays or labels: only the shard itself knows better."""

    def exchange(arrays: Arrays) -> None:
        for name in what:
            arrays[name][[0, 1]] = arrays[name][[1, 0]]

    assert verify(str(dataset), progress=False).faults == []
    forge(dataset, INDEX, exchange)
    faults = verify(str(dataset), progress=False).faults
    assert {fault.key for fault in faults} == {"train-0", "train-1"}
    assert {fault.file for fault in faults} == {"train-000000.tar"}


def test_a_key_in_two_shards_is_found_by_verify(dataset: Path) -> None:
    forge(dataset, "test-000000.index.npz", put("key", 0, "train-3"))
    causes = [fault.cause for fault in verify(str(dataset), progress=False).faults]
    assert any("this key is also in train-00000" in cause for cause in causes)
