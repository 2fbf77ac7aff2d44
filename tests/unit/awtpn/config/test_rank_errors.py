"""What several ranks of a host say is printed once, is never lost, and reaches torchrun's summary."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import pytest

from awtpn.config import rank_errors
from awtpn.config.entry_point import run_command
from awtpn.config.errors import OneLineParser
from awtpn.config.rank_errors import exit_with_line
from shards.storage.file_lock import open_locked


@pytest.fixture(autouse=True)
def two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process passes for each of two ranks in turn; returns the file of printed errors."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    began = time.time()
    monkeypatch.setattr(rank_errors, "_began", lambda: began)
    return tmp_path / f"awtpn-errors-{os.getuid()}"


def printed(capsys: pytest.CaptureFixture[str], text: str, status: int = 1) -> str:
    """What a rank prints that ends with `text`."""
    with pytest.raises(SystemExit) as stop:
        exit_with_line(text, status)
    assert stop.value.code == status
    return capsys.readouterr().err


def test_a_line_appears_once_and_another_line_still_appears(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "error: too long") == "error: too long\n"
    assert printed(capsys, "error: too long") == ""
    assert printed(capsys, "error: too short", 2) == "error: too short\n"
    assert printed(capsys, "error: too short", 2) == ""


def test_a_key_that_does_not_exist_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser()
    parser.keys, parser.places = {"train.epochs": int}, {}
    for line in (
        "error: there is no --train.epoch; did you mean --train.epochs? (--help lists all keys)\n",
        "",
    ):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(["--train.epoch=3"])
        assert stop.value.code == 2
        assert capsys.readouterr().err == line


def test_a_later_launch_prints_again(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(capsys, "error: x")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert printed(capsys, "error: x"), "torchrun started the ranks again"
    parent = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert printed(capsys, "error: x"), "another launcher"
    began = time.time() + 0.001
    monkeypatch.setattr(rank_errors, "_began", lambda: began)
    assert printed(capsys, "error: x"), "the same launcher, later"
    monkeypatch.setattr(rank_errors, "KEPT_S", -1.0)
    assert printed(capsys, "error: y")
    assert len(two_ranks.read_text().splitlines()) == 1, "the file does not grow"


def test_ranks_with_a_log_file_each_print_to_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [os.stat(os.open(tmp_path / name, os.O_CREAT)) for name in ("0.log", "1.log")]
    monkeypatch.setattr(os, "fstat", lambda fd, fstat=os.fstat: logs[0] if fd == 2 else fstat(fd))
    assert printed(capsys, "error: x")
    assert not printed(capsys, "error: x")
    monkeypatch.setattr(os, "fstat", lambda fd, fstat=os.fstat: logs[1] if fd == 2 else fstat(fd))
    assert printed(capsys, "error: x")


def test_no_line_is_lost(
    two_ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two_ranks.write_bytes(b"\xff\xfe one two\nthree\n")
    assert printed(capsys, "error: x"), "a damaged file"
    assert not printed(capsys, "error: x")
    monkeypatch.setattr(rank_errors, "PATIENCE_S", 0.0)
    with open_locked(two_ranks):
        assert printed(capsys, "error: x"), "the rank that prints does not end"
    two_ranks.rename(tmp_path / "elsewhere")
    two_ranks.symlink_to(tmp_path / "elsewhere")
    assert printed(capsys, "error: x"), "a link that anyone may have put there"
    two_ranks.unlink()
    assert printed(capsys, "error: x")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert printed(capsys, "error: x"), "no temporary folder"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    two_ranks.rename(tmp_path / f"awtpn-errors-{os.getuid()}")
    assert printed(capsys, "error: x"), "a file of another user"


@pytest.mark.parametrize("ranks", ["1", "", "many", None])
def test_one_rank_prints_as_always(
    ranks: str | None, two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ranks is None:
        monkeypatch.delenv("WORLD_SIZE")
    else:
        monkeypatch.setenv("WORLD_SIZE", ranks)
    for _ in range(2):
        with pytest.raises(SystemExit, match="error: x"):
            exit_with_line("error: x")
        with pytest.raises(ZeroDivisionError):
            run_command(lambda words: 1 / 0, [])
    assert not two_ranks.exists()


def test_a_traceback_appears_once(capfd: pytest.CaptureFixture[str]) -> None:
    for lines in (1, 0):
        with pytest.raises(SystemExit) as stop:
            run_command(lambda words: 1 / 0, [])
        assert stop.value.code == 1
        assert capfd.readouterr().err.count("ZeroDivisionError: division by zero\n") == lines


def test_a_lost_connection_is_told_only_where_no_rank_has_told_its_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> None:
        raise RuntimeError(f"[pair.cc:534] Connection closed by peer [127.0.0.1]:{words[0]}")

    def told(port: int) -> bool:
        with pytest.raises(SystemExit):
            run_command(fail, [str(port)])
        return "Connection closed" in capfd.readouterr().err

    assert told(1), "no other rank of this host has told anything"
    parent = os.getppid()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    assert printed(capfd, "error: a shard is damaged")
    assert not told(2)
    assert not told(3)


def test_torchruns_summary_has_the_line_of_the_rank_that_failed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    files = [tmp_path / f"{rank}.json" for rank in range(2)]
    for file in reversed(files):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        printed(capsys, "error: too long\n- by far", 2)
    assert sorted(json.loads(files[0].read_text())["message"]) == ["extraInfo", "message"]
    failures = {rank: ProcessFailure(rank, 100 + rank, 2, str(file)) for rank, file in enumerate(files)}
    summary = ChildFailedError("train.py", failures).format_msg()
    others, cause = summary.split("Root Cause")
    assert "traceback : the same error\n" in others
    assert "traceback : error: too long\n  - by far\n" in cause
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "missing" / "error.json"))
    assert printed(capsys, "error: y"), "the line does not depend on the summary"
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[0]))
    with pytest.raises(SystemExit, match="error: alone"):
        exit_with_line("error: alone")
    assert "error: alone" in files[0].read_text()
