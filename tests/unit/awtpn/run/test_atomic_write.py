"""Files that a user names to be written: whole, in a folder that is made, or refused in a line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from awtpn.run.atomic_write import open_atomic, write_atomically, write_json
from awtpn.training.evaluate import evaluate_command


def write_by_lines(path: Path) -> None:
    with open_atomic(path) as file:
        file.write("{}\n")


WRITERS: list[Callable[[Path], None]] = [
    lambda path: write_atomically(path, "{}"),
    lambda path: write_json(path, {}),
    write_by_lines,
]


@pytest.mark.parametrize("write", WRITERS)
def test_the_folder_is_made(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "new/folder/x.json")
    assert (tmp_path / "new/folder/x.json").read_text().strip() == "{}"
    assert os.listdir(tmp_path / "new/folder") == ["x.json"]


@pytest.mark.parametrize("write", WRITERS)
def test_what_cannot_be_a_file_is_named(write: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{tmp_path} is a folder: name a file to write$"):
        write(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=f"^{tmp_path}/file/x.json cannot be written: .*/file is or "):
        write(tmp_path / "file/x.json")
    with pytest.raises(OSError, match="File name too long") as caught:
        write(tmp_path / ("x" * 255))  # of which the temporary alone is too long
    assert caught.value.filename == f"{tmp_path}/{'x' * 255}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")

    def fail() -> None:
        with open_atomic(tmp_path / "x") as file:
            file.write("new")
            raise FileNotFoundError("of the writer's own")

    with pytest.raises(FileNotFoundError, match="of the writer's own"):
        fail()
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("name", ["out", "predictions"])
def test_evaluating_refuses_before_it_loads_anything(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint": "nowhere", "data": None, "split": None, "out": None}
    options |= {"predictions": None, name: tmp_path}
    with pytest.raises(ValueError, match="is a folder: name a file to write"):
        evaluate_command(argparse.Namespace(**options))
