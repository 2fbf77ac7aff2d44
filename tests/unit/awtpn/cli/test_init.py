"""`awtpn init` copies the configurations and scripts, and overwrites nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import REPO

from awtpn.cli import main
from awtpn.config.project_files import shared_files


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_it_copies_both_folders_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["init"])
    count = len(shared_files())
    said = f"wrote {count} files to configs and launch\nnext: awtpn train\n"
    assert capsys.readouterr().out == said
    before = files_in(tmp_path)
    assert before == {name: file.read_bytes() for name, file in shared_files().items()}
    (tmp_path / "configs" / "demo.yaml").unlink()
    (tmp_path / "configs" / "mine.yaml").write_text("mine")
    main(["init", "."])
    assert capsys.readouterr().out.startswith("wrote 1 file to ")
    assert files_in(tmp_path) == before | {"configs/mine.yaml": b"mine"}
    main(["init"])
    assert capsys.readouterr().out.startswith("configs and launch are complete already\n")


def test_a_new_folder_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path / "a b" / "c")])
    assert capsys.readouterr().out.endswith(f"next: cd '{tmp_path}/a b/c' && awtpn train\n")
    assert (tmp_path / "a b" / "c" / "launch" / "train.py").is_file()


def test_the_checkout_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", str(REPO)])
    assert "are complete already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ("configs/meld.yaml", "configs/meld.yaml:"),
        ("launch/README.md", "launch/README.md:"),
        ("launch", "launch/Dockerfile, launch/Dockerfile.dockerignore, launch/README.md and "),
        ("configs/demo.yaml/folder", "configs/demo.yaml:"),
    ],
)
def test_what_is_in_the_way_is_named_and_nothing_written(
    other: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["init"])
    assert str(stop.value).startswith(
        f"error: nothing is copied, since other files are in the place of {named}"
    )
    assert files_in(tmp_path) == {other: b"mine"}


def test_a_file_is_no_folder_to_copy_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="in the place of"):
        main(["init", str(tmp_path / "file")])
