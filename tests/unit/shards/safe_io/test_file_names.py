"""Names of files that are no text, in another Unicode form than a table's, or an operating system's own."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_support import GARBAGE, bad, good, put, put_bytes

from awtpn.cli import main
from shards import pack
from shards.format.labels import given_classes
from shards.format.schema import MANIFEST, Sample
from shards.safe_io.file_names import as_text, existing, is_clutter
from shards.sources import recordings, table
from shards.tools.info import info

LATIN = os.fsdecode(b"tr\xe4urig")
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "fröhlich") for form in ("NFC", "NFD"))
assert COMPOSED != DECOMPOSED


def only_bytes_can(folder: Path) -> None:
    """Skip where the file system takes no name that is not text, or makes both forms one."""
    (probe := folder / "probe").mkdir()
    try:
        (probe / LATIN).touch()
        (probe / COMPOSED).touch()
    except OSError:
        pytest.skip("this file system takes text only")
    if (probe / DECOMPOSED).exists():
        pytest.skip("this file system knows one Unicode form")


def test_a_class_folder_that_is_no_text_is_refused_when_it_is_read(tmp_path: Path) -> None:
    """With the fix, and before anything is made."""
    only_bytes_can(tmp_path)
    put("tone.wav", tmp_path / "rec" / "happy" / "a.wav")
    put("tone.wav", tmp_path / "rec" / LATIN / "b.wav")
    with pytest.raises(SystemExit) as stopped:
        main(["extract", str(tmp_path / "rec"), str(tmp_path / "out"), "--video", "none"])
    assert str(stopped.value) == (
        f"error: {tmp_path}/rec/tr\\xe4urig: the name of a class folder is not in UTF-8; rename it, for "
        f"instance with: convmv -f latin1 -t utf8 -r --notest {tmp_path}/rec"
    )
    assert not (tmp_path / "out").exists()
    for group in ("label", "speaker"):
        pattern = rf"(?P<{group}>tr[^/]*)/(?P<{'label' if group == 'speaker' else 'x'}>b)"
        with pytest.raises(ValueError, match=rf"b.wav: its {group} tr\\xe4urig is not in UTF-8"):
            recordings.read(tmp_path / "rec", pattern=pattern)
    # What the class does not hang on may be called anything.
    assert good(recordings.read(tmp_path / "rec", pattern=r"(?P<label>\w)\.wav")).keys() == {
        "happy_a",
        "tr_urig_b",
    }


def test_classes_are_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class 'tr\\\\xe4urig': its name is not in UTF-8; rename it"):
        given_classes(["happy", LATIN])
    with pytest.raises(ValueError, match="is not in UTF-8"):
        pack([], str(tmp_path / "d"), classes=["\ud83d"], progress=False)


def test_what_is_told_of_a_file_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A source and a broken stream whose names are not."""
    only_bytes_can(tmp_path)
    root = tmp_path / os.fsdecode(b"r\xe9c")
    put("tone.wav", root / "happy" / "a.wav")
    put_bytes(broken := root / "happy" / os.fsdecode(b"br\xf6ken.mp4"), GARBAGE)
    clips = tmp_path / "clips.jsonl"
    row = {"key": "a", "split": "all", "label": "happy", "audio": f"{root}/happy/a.wav"}
    clips.write_text(json.dumps({**row, "video": str(broken)}))
    for source, out in ((clips, "d"), (root, "e")):
        main(["extract", str(source), str(tmp_path / out), "--format", "recordings", "--dtype", "float32"])
        found = info(str(tmp_path / out)).manifest
        assert sum(split.utterances for split in found.splits.values()) == 1
        text = (tmp_path / out / MANIFEST).read_text()
        json.dumps(json.loads(text), ensure_ascii=False).encode()
        main(["shards", "info", str(tmp_path / out)])
    assert "r\\xe9c" in capsys.readouterr().out


def test_strings_that_are_no_text() -> None:
    value = {"a": ["x", LATIN, 1, None], LATIN: ("\ud83d", "😀", "ok")}
    assert as_text(value) == {"a": ["x", r"tr\xe4urig", 1, None], r"tr\xe4urig": [r"\ud83d", "😀", "ok"]}


# --- Unicode forms -------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "there"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_tables_find_files_in_another_unicode_form(tmp_path: Path, written: str, there: str) -> None:
    only_bytes_can(tmp_path)
    put("tone.wav", tmp_path / there / f"{there}.wav")
    np.save(tmp_path / there / f"{there}.npy", np.ones((2, 3), np.float32))
    clips, features = tmp_path / "clips.csv", tmp_path / "features.csv"
    clips.write_text(f"key,split,label,path\na,all,x,{written}/{written}.wav\nb,all,x,{written}/other.wav\n")
    features.write_text(f"key,split,label,audio\na,all,x,{written}/{written}.npy\n")
    source = recordings.read(clips)
    assert good(source)["a"].audio == tmp_path / there / f"{there}.wav"
    assert bad(source)["b"].startswith("no such file ")
    [sample] = table.read(features).samples
    assert isinstance(sample, Sample)
    assert sample.features["audio"] is not None


def test_of_two_files_that_differ_in_form_the_one_named_is_taken(tmp_path: Path) -> None:
    only_bytes_can(tmp_path)
    both = [tmp_path / f"{form}.wav" for form in (COMPOSED, DECOMPOSED)]
    for path in both:
        path.touch()
    assert [existing(path) for path in both] == both
    # Neither is: which is meant cannot be told.
    mixed = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    for last in mixed:
        (tmp_path / f"{mixed[0]}-{last}").touch()
    named = tmp_path / f"{mixed[1]}-{mixed[0]}"
    assert existing(named) == named
    # A file that comes later is found.
    late = tmp_path / f"late-{COMPOSED}"
    assert existing(late) == late
    (tmp_path / f"late-{DECOMPOSED}").touch()
    os.utime(tmp_path, (0, 0))
    assert existing(late).name == f"late-{DECOMPOSED}"


def test_a_class_is_one_whatever_its_unicode_form(tmp_path: Path) -> None:
    only_bytes_can(tmp_path)
    for split, label in (("train", COMPOSED), ("test", DECOMPOSED)):
        put("tone.wav", tmp_path / "rec" / split / label / "a.wav")
    assert recordings.read(tmp_path / "rec").classes == [COMPOSED]
    options: list[dict[str, Any]] = [{"labels": [DECOMPOSED]}, {"label_map": {DECOMPOSED: DECOMPOSED}}]
    for given in options:
        source = recordings.read(tmp_path / "rec", **given)
        assert source.classes == [COMPOSED]
        assert {clip.label for clip in good(source).values()} == {COMPOSED}


# --- Clutter -------------------------------------------------------------------------------------


def test_folders_pass_over_what_operating_systems_leave(tmp_path: Path) -> None:
    put("tone.wav", tmp_path / "happy" / "a.wav")
    names = [
        "._a.wav",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "__MACOSX/b.wav",
        ".directory",
        ".hidden/c.wav",
    ]
    for name in names:
        put_bytes(tmp_path / "happy" / name, b"?")
    source = recordings.read(tmp_path)
    assert good(source).keys() == {"happy_a"}
    assert source.remarks == []
    assert source.provenance["left_out"] == {}


@pytest.mark.parametrize("name", ["._u0.npy", "a/._b/c.wav", "__MACOSX/x", "a/Thumbs.db", ".DS_Store"])
def test_clutter(name: str) -> None:
    assert is_clutter(name)


@pytest.mark.parametrize("name", ["u0.npy", "a._b", "_x", "thumbs.db.npy", "icon.wav", ""])
def test_no_clutter(name: str) -> None:
    assert not is_clutter(name)
