"""Members of tars of others: whose they are, which tell labels, and which are no files."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from shards import FeatureStream
from shards.tools.info import preview
from shards.tools.verify import verify

Files = list[tuple[str, bytes]]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def npz(**values: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


# --- Labels --------------------------------------------------------------------------------------


def test_transcripts_are_no_labels(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In whatever encoding; unless they are said to be."""
    folder = plain(tmp_path / "d", partial(relabelled, "txt", lambda i: f"utterance {i}"))
    with pytest.raises(ValueError, match=r"u0: no label \(None\); .*--label_member cls, or txt where those"):
        index(folder, cache)
    folder = plain(tmp_path / "e", partial(with_member, "u0.txt", "café".encode("latin1")))
    main(["shards", "index", str(folder), "--cache_dir", str(cache)])
    assert "left out: 2 members .txt" in capsys.readouterr().out
    assert_streams(folder, cache)
    with pytest.raises(ValueError, match=r"part-0.tar: u0.txt: a label that is not in UTF-8 .* at byte 3"):
        index(folder, cache, label_member="txt")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"u0.cls": b"calm"}, r"u0: two labels, 'happy' and in its .cls member 'calm'; remove one"),
        ({"u0.cls": b"0", "u2.cls": b"0"}, None),
        ({"u0.cls": b"0", "u1.cls": b"0"}, r"u1: two labels, 'calm' and .* 0, and .*u0 'happy' beside the"),
        ({"u0.speaker.cls": b"s1", "u0.cls": b"happy"}, None),
        (
            {"u0.a.cls": b"0", "u0.b.cls": b"1"},
            r"u0: two labels, .a.cls '0' and .b.cls '1', beside the label 'happy'; tell which",
        ),
        ({"u0.npz": npz(label=np.array("calm"))}, r"u0: its JSON member says label 'happy', its .npz member"),
        ({"u0.npz": npz(label=np.array("happy"))}, None),
        ({"u1.cls": "café".encode("latin1")}, r"u1.cls: a label that is not in UTF-8"),
    ],
)
def test_two_labels_are_refused_where_they_differ(
    tmp_path: Path, cache: Path, more: dict[str, bytes], message: str | None
) -> None:
    def change(files: Files) -> Files:
        return [*more.items(), *files] if files[0][0] == "u0.audio.npy" else files

    folder = plain(tmp_path / "d", change)
    if message is not None:
        with pytest.raises(ValueError, match=f"part-0.tar: {message}"):
            index(folder, cache)
        return
    index(folder, cache)
    assert_streams(folder, cache)


def test_of_two_members_that_may_be_labels_one_is_to_be_named(tmp_path: Path, cache: Path) -> None:
    def change(files: Files) -> Files:
        speakers = relabelled("speaker.cls", str, files)
        return relabelled("emotion.cls", lambda i: LABELS[i % 2], files) + speakers[2::3]

    folder = plain(tmp_path / "d", change)
    with pytest.raises(ValueError, match=r"u0: two labels, .emotion.cls 'happy' and .speaker.cls '0'; tell"):
        index(folder, cache)
    assert index(folder, cache, label_member="emotion.cls").ignored == {".speaker.cls": 10}
    assert_streams(folder, cache)


def test_labels_that_are_no_text_are_refused(tmp_path: Path, cache: Path) -> None:
    write_tar(tmp_path / "d" / "a.tar", [*members_of(0)[:2], ("u0.json", b'{"label": "\\udce9"}')])
    with pytest.raises(ValueError, match=r"a.tar: u0: label '\\udce9' is not in UTF-8"):
        index(tmp_path / "d", cache)


def test_labels_that_are_numbers_are_in_their_order(tmp_path: Path, cache: Path) -> None:
    for i, label in enumerate(["10", "2", "1"]):
        record = f'{{"label": "{label}"}}'.encode()
        write_tar(tmp_path / "d" / f"{i}.tar", [*members_of(i)[:2], (f"u{i}.json", record)])
    assert index(tmp_path / "d", cache).manifest.classes == ["1", "2", "10"]


# --- Names ---------------------------------------------------------------------------------------


def test_what_operating_systems_leave_is_passed_over(tmp_path: Path, cache: Path) -> None:
    apple_double = b"\0\5\26\7\0\2\0\0Mac OS X        " + bytes(120)

    def change(files: Files) -> Files:
        beside = [(f"./._{name}", apple_double) for name, _ in files]
        left = [(name, b"?") for name in ("./.DS_Store", "Thumbs.db", "__MACOSX/._u0.json", ".u0.json")]
        return [*beside, *left, *((f"./{name}", content) for name, content in files), ("README", b"read")]

    assert index(plain(tmp_path / "d", change), cache).ignored == {"hidden": 2, ".": 2}
    assert_streams(tmp_path / "d", cache)


def dotted(files: Files) -> Files:
    """u7 becomes dia3.utt7."""
    return [(f"dia{int(name[1]) // 2}.utt{name[1:]}", content) for name, content in files]


@pytest.mark.parametrize(
    "labels", [list, partial(relabelled, "cls", lambda i: LABELS[i % 2])], ids=["json", "cls"]
)
@pytest.mark.parametrize("decoded", [False, True])
def test_keys_with_dots(
    tmp_path: Path, cache: Path, labels: Any, decoded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Their arrays and labels belong together, however webdataset would cut the names."""

    def change(files: Files) -> Files:
        return dotted([*labels(files), (f"{files[0][0][:2]}.png", b"?")])

    made = index(plain(tmp_path / "d", change), cache, out=str(tmp_path / "out") if decoded else None)
    assert made.ignored == {".png": 2}
    assert "keys hold dots, such as dia0.utt0: webdataset itself ends a key at the first" in caplog.text
    assert_streams(made.url, cache, lambda i: f"dia{i // 2}{'_' if decoded else '.'}utt{i}")


@pytest.mark.parametrize(
    "names",
    [
        ["d.u0.audio.npy", "d.u1.audio.npy", "d.u1.json"],
        ["d.u0.audio.npy", "d.audio.npy", "d.u0.cls"],
        ["d.audio.npy", "d.audio.json"],
    ],
)
def test_names_that_can_be_read_in_two_ways_are_refused(
    tmp_path: Path, cache: Path, names: list[str]
) -> None:
    content = {"npy": npy(arrays(0)["audio"]), "json": b'{"label": "happy"}', "cls": b"happy"}
    write_tar(tmp_path / "d" / "a.tar", [(name, content[name.rpartition(".")[2]]) for name in names])
    with pytest.raises(ValueError, match=r"a.tar: d\.\S+: its key ends at its first dot \('d'\), labels are"):
        index(tmp_path / "d", cache)


def test_modalities_with_dots(tmp_path: Path, cache: Path) -> None:
    """As webdataset has it, where the label is the key's own."""
    files = [(name.replace("audio", "left.audio"), content) for name, content in members_of(0)]
    write_tar(tmp_path / "d" / "a.tar", [*files, ("u0.right.audio.npy", files[0][1]), ("u0.x.json", b"?")])
    made = index(tmp_path / "d", cache)
    assert list(made.manifest.modalities) == ["left_audio", "right_audio", "video"]
    assert made.ignored == {".x.json": 1}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_and_folders_of_every_sort(tmp_path: Path, cache: Path, form: int) -> None:
    """Keys are names, and nothing joins them with a path."""
    folders = ["é" * 120 + "/" + "b" * 120, "../..", "/etc", "C:\\x"]
    (tmp_path / "d").mkdir()
    with tarfile.open(tmp_path / "d" / "a.tar", "w", format=form) as tar:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, at in enumerate(folders):
            for name, content in members_of(i, f"{at}/u{i}"):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    assert index(tmp_path / "d", cache).decoded is None
    assert_streams(tmp_path / "d", cache, lambda i: f"{folders[i]}/u{i}", n=4)
    index(tmp_path / "d", cache, out=str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "out"]


# --- Members that are no plain files -------------------------------------------------------------


def write_special(path: Path, name: str, kind: bytes, target: str = "") -> None:
    """A tar of u0 and of u1, of which the member `name` is of another kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    special = tarfile.TarInfo(name)
    special.type, special.linkname = kind, target
    with tarfile.open(path, "w") as tar:
        for file, content in members_of(0) + members_of(1):
            if file != name:
                header = tarfile.TarInfo(file)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
        tar.addfile(special)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("target", ["u0.video.npy", "./u0.video.npy"])
def test_a_hard_link_is_read_as_its_target(tmp_path: Path, cache: Path, compress: bool, target: str) -> None:
    write_special(path := tmp_path / "d" / "a.tar", "u1.video.npy", tarfile.LNKTYPE, target)
    if compress:
        path.write_bytes(gzip.compress(path.read_bytes()))
    made = index(tmp_path / "d", cache)
    assert (made.decoded is None) == (not compress)
    first, second = preview(str(tmp_path / "d"), cache_dir=cache)
    np.testing.assert_array_equal(first.features["video"], arrays(0)["video"])
    np.testing.assert_array_equal(second.features["video"], arrays(0)["video"])
    np.testing.assert_array_equal(second.features["audio"], arrays(1)["audio"])
    assert verify(str(tmp_path / "d"), progress=False, cache_dir=cache).faults == []
    [batch] = FeatureStream(str(tmp_path / "d"), global_batch_size=2, cache_dir=cache).epoch(0)
    assert batch.features["video"].values.shape == (2 * len(arrays(0)["video"]), DIMS["video"])


def test_many_hard_links_to_one_array_are_read(tmp_path: Path, cache: Path) -> None:
    """Their steps are more than the bytes of the tar could hold apart."""
    values = np.ones((2_000, 6), "<f2")
    (tmp_path / "d").mkdir()
    with tarfile.open(tmp_path / "d" / "a.tar", "w") as tar:
        for i in range(5):
            array, record = npy(values), json.dumps({"label": LABELS[i % 2]}).encode()
            header = tarfile.TarInfo(f"u{i}.audio.npy")
            if i:
                header.type, header.linkname, array = tarfile.LNKTYPE, "u0.audio.npy", b""
            for member, content in ((header, array), (tarfile.TarInfo(f"u{i}.json"), record)):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    assert index(tmp_path / "d", cache).decoded is None
    [batch] = FeatureStream(str(tmp_path / "d"), global_batch_size=5, cache_dir=cache).epoch(0)
    assert batch.features["audio"].values.shape == (10_000, 6)
    assert verify(str(tmp_path / "d"), progress=False, cache_dir=cache).faults == []


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (tarfile.SYMTYPE, "u0.video.npy", r"a symbolic link to u0.video.npy; .*tar --dereference"),
        (tarfile.SYMTYPE, "/etc/passwd", r"a symbolic link to /etc/passwd"),
        (tarfile.LNKTYPE, "gone.npy", r"a hard link to gone.npy, which is not in the tar before it"),
        (tarfile.LNKTYPE, "u1.video.npy", r"a hard link to u1.video.npy, which is not in the tar"),
        (tarfile.LNKTYPE, "/etc/passwd", r"a hard link to /etc/passwd, which is not in the tar"),
        (tarfile.CHRTYPE, "", r"is a device, not a file"),
        (tarfile.FIFOTYPE, "", r"is a pipe, not a file"),
        (b"M", "", r"is a member of the type b'M', not a file"),
    ],
)
def test_what_is_no_file_is_refused_by_name(
    tmp_path: Path, cache: Path, kind: bytes, target: str, message: str
) -> None:
    write_special(tmp_path / "d" / "a.tar", "u1.video.npy", kind, target)
    with pytest.raises(ValueError, match=f"a.tar: u1.video.npy: {message}"):
        index(tmp_path / "d", cache)


@pytest.mark.skipif(not shutil.which("tar"), reason="needs the command tar")
@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_sparse_file_is_refused_by_name(tmp_path: Path, cache: Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "u0.audio.npy").touch()
    os.truncate(tmp_path / "u0.audio.npy", 1 << 20)
    command = ["tar", "-cSf", "d/a.tar", f"--format={form}", "u0.audio.npy"]
    if subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode:
        pytest.skip("this tar writes no sparse files")
    with pytest.raises(ValueError, match=r"a.tar: u0.audio.npy: a sparse file; write the tar without"):
        index(tmp_path / "d", cache)


# --- What a reader would refuse ------------------------------------------------------------------


def test_an_array_of_less_than_nothing_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    forged = io.BytesIO()
    np.lib.format.write_array_header_1_0(forged, {"descr": "<f2", "fortran_order": False, "shape": (-2, -3)})
    record = ("u0.json", json.dumps({"label": "calm"}).encode())
    write_tar(tmp_path / "d" / "a.tar", [("u0.audio.npy", forged.getvalue() + bytes(12)), record])
    with pytest.raises(ValueError, match=r"a\.tar: u0\.audio\.npy: float16 of shape \(-2, -3\)"):
        index(tmp_path / "d", cache)


@pytest.mark.parametrize(
    ("tar", "modality", "message"),
    [
        ("x" * 191 + ".tar", "audio", r"/x+\.tar: its index's name would be too long; rename it, shorter"),
        (
            "a.tar",
            "m" * 101,
            r"a\.tar: u0\.m+\.npy: 'm+' is not a valid name of a modality: at most 100 letters",
        ),
    ],
)
def test_names_that_no_reader_takes_leave_the_folder_as_it_was(
    tmp_path: Path, cache: Path, tar: str, modality: str, message: str
) -> None:
    files = [(name.replace("audio", modality), content) for name, content in members_of(0)]
    write_tar(tmp_path / "d" / tar, files)
    with pytest.raises(ValueError, match=message):
        index(tmp_path / "d", cache)
    assert [path.name for path in (tmp_path / "d").iterdir()] == [tar]


def test_the_longest_names_are_read(tmp_path: Path, cache: Path) -> None:
    longest = "m" * 100
    files = [(name.replace("audio", longest), content) for name, content in members_of(0) + members_of(1)]
    write_tar(tmp_path / "d" / ("x" * 190 + ".tar"), files)
    index(tmp_path / "d", cache)
    [batch] = FeatureStream(str(tmp_path / "d"), global_batch_size=2, cache_dir=cache).epoch(0)
    assert set(batch.features) == {longest, "video"}


def test_a_manifest_that_no_reader_takes_is_not_written(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(tmp_path / "d")
    # Nothing is known that gets so far.
    monkeypatch.setattr("shards.format.manifest.MOST_UTTERANCES", 9)
    with pytest.raises(ValueError, match=r"manifest\.json: splits\.all: 10 utterances are more"):
        index(tmp_path / "d", cache)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["part-0.tar", "part-1.tar"]


def test_a_damaged_index_of_such_tars_is_to_be_made_again(tmp_path: Path, cache: Path) -> None:
    index(plain(tmp_path / "d"), cache)
    path = tmp_path / "d" / "part-0.index.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"part-0\.index\.npz: .*`awtpn shards index` makes it again"):
        next(preview(str(tmp_path / "d"), cache_dir=cache))
