"""Tars that others made: indexed in place, decoded where they must be, else refused by name."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from fsspec.implementations.local import LocalFileSystem
from tars_support import (
    DIMS,
    LABELS,
    arrays,
    assert_streams,
    index,
    members_of,
    npy,
    plain,
    relabelled,
    with_member,
    write_tar,
)

from awtpn.cli import main
from shards import FeatureStream, pack
from shards.tools.info import info, preview
from shards.tools.verify import verify


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_tars_written_by_webdataset(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for part in range(2):
        with webdataset.TarWriter(str(folder / f"part-{part}.tar")) as tar:
            for i in range(part * 5, part * 5 + 5):
                files = {f"{name}.npy": values for name, values in arrays(i).items()}
                tar.write(
                    {"__key__": f"u{i}", "json": {"label": LABELS[i % 2], "speaker": f"s{i % 3}"}, **files}
                )
    made = index(folder, cache)
    assert (made.decoded, made.folder, made.manifest.classes) == (None, str(folder), sorted(LABELS))
    assert made.manifest.columns == {"speaker": "str"}
    assert not cache.exists()
    assert_streams(folder, cache)
    assert FeatureStream(str(folder), select={"speaker": "s1"}).num_utterances == 3
    assert verify(str(folder), progress=False).faults == []
    assert info(str(folder)).splits["all"].lengths["audio"].most == 6
    # What others read of the tars is untouched, and indexing again is fine.
    assert index(folder, cache).manifest.splits == made.manifest.splits


def test_statistics_are_those_of_a_packing(tmp_path: Path, cache: Path) -> None:
    from shards import Sample

    made = index(plain(tmp_path / "d"), cache).manifest
    samples = [
        Sample(f"u{i}", "all", LABELS[i % 2], dict(arrays(i)), {"speaker": f"s{i % 3}"}) for i in range(10)
    ]
    packed = pack(samples, str(tmp_path / "p"), classes=sorted(LABELS), progress=False)
    one, other = made.splits["all"], packed.splits["all"]
    assert (one.steps, one.class_counts) == (other.steps, other.class_counts)
    for name in DIMS:
        np.testing.assert_allclose(one.moments[name].std, other.moments[name].std)
        np.testing.assert_allclose(one.moments[name].mean, other.moments[name].mean, atol=1e-12)
    assert (made.modalities, made.columns) == (packed.modalities, packed.columns)


def test_members_out_of_order(tmp_path: Path, cache: Path) -> None:
    made = index(plain(tmp_path / "d", lambda files: files[::3] + files[1::3] + files[2::3]), cache)
    assert made.decoded is None
    assert_streams(tmp_path / "d", cache)


def test_keys_with_directories(tmp_path: Path, cache: Path) -> None:
    """`a/u1` and `b/u1` are two utterances."""
    files = [file for i in range(10) for file in members_of(i, f"./{'ab'[i % 2]}.x/u{i // 2}")]
    write_tar(tmp_path / "d" / "x.tar", files)
    assert index(tmp_path / "d", cache).decoded is None
    assert_streams(tmp_path / "d", cache, lambda i: f"{'ab'[i % 2]}.x/u{i // 2}")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars(tmp_path: Path, cache: Path, compress: Callable[[bytes], bytes]) -> None:
    """Whatever their names say."""
    folder = plain(tmp_path / "d")
    (folder / "part-0.tar").write_bytes(compress((folder / "part-0.tar").read_bytes()))
    (folder / "part-1.tar").rename(folder / "part-1.tgz")
    made = index(folder, cache)
    assert made.decoded is not None
    assert made.decoded.endswith("part-0.tar is compressed")
    assert made.folder.startswith(str(cache))
    assert sorted(path.name for path in folder.iterdir()) == ["part-0.tar", "part-1.tgz"]
    assert_streams(folder, cache)
    assert verify(str(folder), progress=False, cache_dir=cache).faults == []
    assert next(preview(str(folder), cache_dir=cache)).features["audio"].shape == (2, 6)
    assert info(str(folder), cache_dir=cache).indexed_in == made.folder


def test_what_was_indexed_before_is_replaced(tmp_path: Path, cache: Path) -> None:
    folder = plain(tmp_path / "d")
    index(folder, cache)
    for path in folder.glob("*.tar"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"part-\d.tar: \d+ bytes, \d+ by the manifest"):
        assert_streams(folder, cache)
    index(folder, cache)
    assert_streams(folder, cache)


def test_decoded_elsewhere(tmp_path: Path, cache: Path) -> None:
    made = index(plain(tmp_path / "d"), cache, out=str(tmp_path / "out"))
    assert made.url == made.folder == str(tmp_path / "out")
    assert_streams(made.url, cache)
    assert not (tmp_path / "d" / "manifest.json").exists()


def in_npz(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Each utterance as one `.npz` that holds its label, too."""
    found = []
    for name, content in files:
        key, _, extension = name.partition(".")
        if extension == "json":
            i = int(key[1:])
            buffer = io.BytesIO()
            np.savez(buffer, **arrays(i), label=np.array(json.loads(content)["label"]))
            found.append((f"{key}.npz", buffer.getvalue()))
    return found


def by_npz(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Each array as an unnamed one of an `.npz` of its own."""
    found = []
    for name, content in files:
        if name.endswith(".npy"):
            buffer = io.BytesIO()
            np.savez_compressed(buffer, np.load(io.BytesIO(content)))
            name, content = name.replace(".npy", ".NPZ"), buffer.getvalue()
        found.append((name, content))
    return found


def recast(
    form: Callable[[np.ndarray], np.ndarray], files: list[tuple[str, bytes]]
) -> list[tuple[str, bytes]]:
    return [
        (name, npy(form(np.load(io.BytesIO(content)))) if name.endswith(".npy") else content)
        for name, content in files
    ]


def shifted(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Headers of no multiple of 16 bytes, which the format does not allow."""
    found = []
    for name, content in files:
        if name.endswith(".npy"):
            length = int.from_bytes(content[8:10], "little")
            header = content[10 : 9 + length] + b"   \n"
            content = content[:8] + len(header).to_bytes(2, "little") + header + content[10 + length :]
        found.append((name, content))
    return found


@pytest.mark.parametrize(
    ("change", "why", "dtype"),
    [
        (shifted, r"audio is <f2, not aligned", "float16"),
        (in_npz, r"u0: a .npz member", "float16"),
        (by_npz, r"u0: a .npz member", "float16"),
        (partial(recast, np.asfortranarray), r"audio is <f2 in Fortran order", "float16"),
        (partial(recast, lambda a: a.astype(">f4")), r"audio is >f4", "float32"),
        (partial(recast, lambda a: a.astype("f8")), r"audio is <f8", "float32"),
        (
            partial(recast, lambda a: a.astype("f4") if len(a) > 3 else a),
            r"audio is of several dtypes",
            "float32",
        ),
    ],
    ids=["shifted", "npz", "npz-each", "fortran", "big-endian", "float64", "mixed"],
)
def test_what_is_decoded(tmp_path: Path, cache: Path, change: Any, why: str, dtype: str) -> None:
    made = index(plain(tmp_path / "d", change), cache)
    assert made.decoded is not None
    assert why in made.decoded
    assert {m.dtype for m in made.manifest.modalities.values()} == {dtype}
    assert_streams(tmp_path / "d", cache)


def test_dtype_and_labels_may_be_chosen(tmp_path: Path, cache: Path) -> None:
    def change(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [
            (name, content.replace(b'"label"', b'"emotion"')) for name, content in recast(np.float64, files)
        ]

    with pytest.raises(ValueError, match=r"part-0.tar: u0: no label \(None\); name the JSON field"):
        index(plain(tmp_path / "d", change), cache)
    made = index(tmp_path / "d", cache, label="emotion", dtype="float16", classes=["sad", "happy", "calm"])
    assert made.manifest.classes == ["sad", "happy", "calm"]
    assert made.manifest.modalities["audio"].dtype == "float16"
    assert_streams(tmp_path / "d", cache)


@pytest.mark.parametrize(
    ("extension", "label_member"),
    [("cls", None), ("emotion.cls", None), ("txt", "txt"), ("Mood.txt", ".mood.txt")],
)
def test_labels_as_text(tmp_path: Path, cache: Path, extension: str, label_member: str | None) -> None:
    folder = plain(tmp_path / "d", partial(relabelled, extension, lambda i: LABELS[i % 2] + "\n"))
    assert index(folder, cache, label_member=label_member).decoded is None
    assert_streams(folder, cache)


def test_labels_as_numbers(tmp_path: Path, cache: Path) -> None:
    folder = plain(tmp_path / "d", partial(relabelled, "cls", lambda i: str(i % 2)))
    assert index(folder, cache).manifest.classes == ["0", "1"]
    assert index(folder, cache, classes=LABELS).manifest.splits["all"].class_counts == [5, 5]
    assert_streams(folder, cache)
    with pytest.raises(ValueError, match=r"u1: label 1 is not a position in the classes \['happy'\]"):
        index(folder, cache, classes=["happy"])


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0.tar", "train-1.tar", "my_test.tar"], {"train": 2, "test": 1}),
        (["validation.tar", "x-train-000.tar"], {"val": 1, "train": 1}),
        (["train.tar", "other.tar"], {"all": 2}),
    ],
)
def test_splits_by_name(tmp_path: Path, cache: Path, names: list[str], splits: dict[str, int]) -> None:
    for i, name in enumerate(names):
        write_tar(tmp_path / "d" / name, members_of(i))
    manifest = index(tmp_path / "d", cache).manifest
    assert {name: len(split.shards) for name, split in manifest.splits.items()} == splits


class Trap:
    """Unpickled, it would leave a trace."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/unpickled-by-shards",)


def pickled() -> bytes:
    import pickle

    return pickle.dumps(Trap())


def object_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, audio=np.array([Trap()], object))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (partial(with_member, "u0.audio.pkl", pickled()), r"u0.audio.pkl: pickled files are never read"),
        (partial(with_member, "u0.pyd", pickled()), r"u0.pyd: pickled files are never read"),
        (
            partial(with_member, "u0.a.npy", npy(np.array([Trap()], object))),
            r"u0.a.npy: .*pickled|u0.a.npy: holds",
        ),
        (partial(with_member, "u0.a.npz", object_npz()), r"u0.a.npz: not an .npz of plain arrays"),
        (partial(with_member, "u0.b.npy", b"oops"), r"u0.b.npy: not a .npy array"),
        (
            partial(with_member, "u0.b.npy", npy(np.zeros((2, 3)))[:-9]),
            r"u0.b.npy: 39 bytes of data do not make",
        ),
        (
            partial(with_member, "u0.b.npy", npy(np.zeros(3))),
            r"u0: b is float64 of shape \(3,\); features are",
        ),
        (
            partial(with_member, "u0.AUDIO.npy", npy(np.zeros((2, 6)))),
            r"u0.AUDIO.npy: a second array of audio",
        ),
        (partial(with_member, "u0.JSON", b"{}"), r"u0.JSON: a second JSON member"),
        (partial(with_member, "u9x.json", b"[1]"), r"u9x.json: not a JSON object"),
        (
            partial(with_member, "x.audio.npy", npy(np.zeros((2, 6), "<f2"))),
            r"part-1.tar: x: this .* twice, also in part-0.tar",
        ),
        (
            partial(with_member, "u0.json.npy", npy(np.zeros((2, 6)))),
            r"'json' is not a valid name of a modality",
        ),
        (partial(with_member, "u0.b.npy", npy(np.zeros((2, 0)))), r"b is float64 of shape \(2, 0\)"),
        (
            partial(with_member, "u0.9.npy", npy(np.zeros((2, 6), "<f2"))),
            r"'9' is not a valid name of a modality",
        ),
        (partial(recast, lambda a: a * np.float16("nan")), r"part-0.tar: u0: audio is nan at step 0"),
        (partial(recast, lambda a: a[:0]), r"part-0.tar: u0: no steps in any modality"),
        (partial(recast, lambda a: a[:, : len(a)]), r"audio has \[2, 3, 4, 5, 6\] features per step"),
        (lambda files: files[2::3], r"no arrays; features are members"),
        (lambda files: [*files[:3], *files[:3]], r"u\d.audio.npy: is in the tar twice"),
        (partial(with_member, "././u0.json", b"{}"), r"././u0.json: is in the tar twice"),
        (partial(with_member, "u0.caf\udce9.npy", b""), r"u0.caf\\xe9.npy: its name is not in UTF-8"),
    ],
)
def test_refusals_name_tar_and_member(tmp_path: Path, cache: Path, change: Any, message: str) -> None:
    folder = plain(tmp_path / "d", change)
    with pytest.raises(ValueError, match=message) as caught:
        index(folder, cache)
    assert "part-0.tar" in str(caught.value) or "features per step" in str(caught.value)
    assert not Path("/tmp/unpickled-by-shards").exists()
    assert not list(folder.glob("*.npz")) + list(folder.glob("*.json"))


def test_the_same_key_in_two_tars(tmp_path: Path, cache: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / "d" / name, members_of(0))
    with pytest.raises(ValueError, match=r"b.tar: u0: this utterance is in the dataset twice, also in a.tar"):
        index(tmp_path / "d", cache)


@pytest.mark.parametrize("decoded", [False, True])
def test_keys_that_begin_anew_in_each_tar(
    tmp_path: Path, cache: Path, decoded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As webdataset's often do: the tar's name goes before them, and tells them apart."""
    for part in range(2):
        files = [file for i in range(5) for file in members_of(part * 5 + i, f"{i:06d}")]
        write_tar(tmp_path / "d" / f"all-{part}.tar", files)
    made = index(tmp_path / "d", cache, out=str(tmp_path / "out") if decoded else None)
    assert "several tars have the same keys" in caplog.text
    assert_streams(made.url, cache, lambda i: f"all-{i // 5}{'_' if decoded else '/'}{i % 5:06d}")


def test_utterances_without_an_array_are_told(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lonely = partial(with_member, "lonely.json", b'{"label": "happy"}')
    assert index(plain(tmp_path / "d", lonely), cache).without_arrays == ["lonely", "lonely"]
    assert_streams(tmp_path / "d", cache)
    main(["shards", "index", str(tmp_path / "d"), "--cache_dir", str(cache)])
    assert "left out: 2 utterances without an array: lonely, lonely" in capsys.readouterr().out


def test_labels_that_are_equal_as_text_are_one_class(tmp_path: Path, cache: Path) -> None:
    def change(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [(name, b.replace(b'"happy"', b"1").replace(b'"calm"', b'"1"')) for name, b in files]

    manifest = index(plain(tmp_path / "d", change), cache).manifest
    assert (manifest.classes, manifest.splits["all"].class_counts) == (["1"], [10])
    for labels in (["p", "q", "q"], ["p", ""]):
        with pytest.raises(ValueError, match="must be distinct names"):
            index(tmp_path / "d", cache, classes=labels)


def test_the_url_of_a_tar(tmp_path: Path, cache: Path) -> None:
    tar = plain(tmp_path / "d") / "part-0.tar"
    with pytest.raises(ValueError, match=r"part-0.tar: is a tar; give the URL of the folder"):
        index(tar, cache)


@pytest.mark.parametrize("compress", [None, gzip.compress])
def test_truncated_tars(tmp_path: Path, cache: Path, compress: Any) -> None:
    """At every kind of place: within data, within a header, between members."""
    folder = plain(tmp_path / "d")
    path = folder / "part-1.tar"
    with tarfile.open(path) as tar:
        at = tar.getmembers()[7].offset
    whole = compress(path.read_bytes()) if compress else path.read_bytes()
    for cut in (100, len(whole) // 3, len(whole) - 9) if compress else (at, at + 100, at + 512 + 60, 0):
        path.write_bytes(whole[:cut])
        with pytest.raises(
            ValueError, match=r"part-1.tar: .*(damaged|cut short|not a|Compressed file ended|empty)"
        ):
            index(folder, cache)


def test_a_damaged_header(tmp_path: Path, cache: Path) -> None:
    """tarfile would take it for the end, and leave out all that follows."""
    folder = plain(tmp_path / "d")
    path = folder / "part-0.tar"
    with tarfile.open(path) as tar:
        at = tar.getmembers()[7].offset
    content = bytearray(path.read_bytes())
    content[at + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"part-0.tar: a damaged header at byte {at}"):
        index(folder, cache)


def test_other_members_are_left_out(tmp_path: Path, cache: Path) -> None:
    folder = plain(tmp_path / "d", partial(with_member, "u0.wav", b"RIFF"))
    assert index(folder, cache).ignored == {".wav": 2}
    assert_streams(folder, cache)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "no tars there"),
        (lambda folder: write_tar(folder / "my tar.tar", members_of(0)), "my tar.tar: rename it"),
    ],
)
def test_no_tars(tmp_path: Path, cache: Path, make: Any, message: str) -> None:
    make(tmp_path / "d")
    with pytest.raises(ValueError, match=message):
        index(tmp_path / "d", cache)


def test_a_packed_dataset_is_left_alone(tmp_path: Path, cache: Path) -> None:
    from shards import Sample

    pack(
        [Sample("u0", "train", "happy", dict(arrays(0)))], str(tmp_path / "d"), classes=LABELS, progress=False
    )
    with pytest.raises(ValueError, match="is a packed dataset already"):
        index(tmp_path / "d", cache)


class Ranges(SimpleHTTPRequestHandler):
    """Serves a folder; knows single ranges, as object stores and content networks do."""

    def log_message(self, *args: Any) -> None:
        pass

    def send_head(self) -> Any:
        wanted = self.headers.get("Range", "")
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            return super().send_head()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        content = path.read_bytes()
        part = content[int(first) : int(last or len(content)) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.end_headers()
        return io.BytesIO(part)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path / "web")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_read_only_place(tmp_path: Path, web: str, cache: Path, compressed: bool) -> None:
    """Over http nothing can be written: the index goes to the cache, and the same URL streams."""
    folder = plain(tmp_path / "web" / "d")
    if compressed:
        for path in folder.iterdir():
            path.write_bytes(gzip.compress(path.read_bytes()))
    made = index(f"{web}/d", cache)
    assert (made.decoded is not None) == compressed
    assert made.folder.startswith(str(cache))
    assert len(list(folder.iterdir())) == 2
    assert_streams(f"{web}/d", cache)
    assert next(preview(f"{web}/d", 1, cache_dir=cache)).key == "u0"
    assert verify(f"{web}/d", progress=False, cache_dir=cache).faults == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    folder, asked = plain(tmp_path / "d"), []

    def put_file(fs: LocalFileSystem, here: str, there: str, **options: Any) -> None:
        asked.append(there)
        raise OSError(code, os.strerror(code), there)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    assert index(folder, cache).folder.startswith(str(cache))
    assert len(asked) == 1
    assert_streams(folder, cache)


def test_a_packed_dataset_over_http(tmp_path: Path, web: str, cache: Path) -> None:
    from shards import Sample

    samples = [Sample(f"u{i}", "all", LABELS[i % 2], dict(arrays(i))) for i in range(10)]
    pack(samples, str(tmp_path / "web" / "d"), classes=LABELS, progress=False)
    assert_streams(f"{web}/d", cache)
    with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+/nowhere/manifest.json: no such file"):
        FeatureStream(f"{web}/nowhere", cache_dir=cache)


def test_labels_are_compared_with_the_field_that_indexing_was_told(tmp_path: Path, cache: Path) -> None:
    def change(files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [
            (name, content.replace(b'"label"', b'"emotion"').replace(b"speaker", b"label"))
            for name, content in files
        ]

    folder = plain(tmp_path / "d", change)
    index(folder, cache, label="emotion")
    assert verify(str(folder), progress=False).faults == [], "the field label is another thing"
    assert len(list(preview(str(folder), 10))) == 10
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    record["classes"].reverse()
    for entry in record["splits"]["all"]["shards"]:
        with np.load(folder / entry["index"]) as found:
            early = {name: values for name, values in found.items() if name != "classes"}
        np.savez(folder / entry["index"], **early)
        content = (folder / entry["index"]).read_bytes()
        entry["index_bytes"], entry["index_sha256"] = len(content), hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(record))
    told = "its label is 'happy' in the shard, and 'calm' by the manifest"
    first, *_ = verify(str(folder), progress=False).faults
    assert (first.file, first.key) == ("part-0.tar", "u0")
    assert told in first.cause
    with pytest.raises(ValueError, match=told):
        list(preview(str(folder)))
    with pytest.raises(ValueError, match="by the manifest"):
        list(FeatureStream(str(folder), cache_dir=cache).epoch(0))


def compressed(folder: Path) -> Path:
    for path in folder.glob("*.tar"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return folder


def test_a_decoding_stays_until_the_new_one_is_complete(tmp_path: Path, cache: Path) -> None:
    folder = compressed(plain(tmp_path / "d"))
    first = index(folder, cache)
    not_finite = npy(np.full((2, 6), np.nan, "<f2"))
    write_tar(folder / "part-2.tar", [("v0.json", b'{"label": "calm"}'), ("v0.audio.npy", not_finite)])
    with pytest.raises(ValueError, match=r"v0.*nan"):
        index(folder, cache)
    assert_streams(folder, cache)
    (folder / "part-2.tar").unlink()
    again = index(folder, cache)
    assert (again.folder, again.manifest.splits) == (first.folder, first.manifest.splits)
    assert_streams(folder, cache)
    assert [path.name for path in cache.iterdir()] == [Path(first.folder).name], "no other folder is left"


def test_an_index_in_the_cache_stays_until_the_new_one_is_complete(
    tmp_path: Path, cache: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(tmp_path / "web" / "d")
    made = index(f"{web}/d", cache)

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    with monkeypatch.context() as patched:
        patched.setattr("shards.tools.index_in_place.shutil.copy", full)
        with pytest.raises(OSError, match="No space left"):
            index(f"{web}/d", cache)
    assert_streams(f"{web}/d", cache)
    assert index(f"{web}/d", cache).folder == made.folder
    assert_streams(f"{web}/d", cache)
