"""Names from data are shown, never obeyed: by the terminal, by a log, by who reads either."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awtpn.cli import main
from awtpn.experiments import runner
from awtpn.metrics.classification import summarize
from awtpn.metrics.tables import format_table
from awtpn.run.position import Position
from awtpn.training.damaged_data import account_for_damaged
from shards import Sample, pack
from shards.safe_io.markdown import table
from shards.safe_io.printable import get_logger, join_lines, printable, printable_lines, table_lines
from shards.safe_io.versions import installed_version
from shards.sources import base
from shards.sources.base import log_unused
from shards.sources.reading import table_rows
from shards.tools.verify import Fault, Verified, format_verified

ESC, OVERRIDE = "\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}"
HOSTILE = f"happy{ESC}\nforged line{OVERRIDE}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fröhlich 😀 50\N{NO-BREAK SPACE}%", "fröhlich 😀 50\N{NO-BREAK SPACE}%"),
        ("a\x1b[31m", r"a\x1b[31m"),
        ("a\x9b31m", r"a\x9b31m"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b\N{LINE SEPARATOR}", r"a\u202eb\u2028"),
        ("caf\udce9", r"caf\udce9"),
        (r"C:\data", r"C:\data"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_of_our_own_stay_lines() -> None:
    assert printable_lines("a\n\tb\x1b") == "a\n\tb\\x1b"
    assert join_lines(["a\nb", "c"]) == "a\\nb\nc"


def test_a_log_message_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    logger = get_logger("shards.tried")
    assert get_logger("shards.tried") is logger
    assert len(logger.filters) == 1
    with caplog.at_level(logging.WARNING):
        logger.warning("the first is %s of %d", HOSTILE, 3)
    assert caplog.messages == ["the first is happy\\x1b[2J\\nforged line\\u202e of 3"]


def test_what_a_source_does_not_use_is_logged_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        log_unused([HOSTILE], "train.pt", "keys are")
    [message] = caplog.messages
    assert_harmless(message, lines=1)


@pytest.mark.parametrize("module", [runner, table_rows, base])
def test_who_logs_names_of_data_escapes_them(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    module.logger.warning("%s", HOSTILE)
    assert_harmless(caplog.text, lines=1)


def assert_harmless(text: str, lines: int | None = None) -> None:
    assert "\x1b" not in text
    assert OVERRIDE not in text
    assert r"happy\x1b[2J\nforged line\u202e" in text
    assert lines is None or len(text.splitlines()) == lines


def test_tables_and_findings_show_names() -> None:
    assert_harmless(format_table(summarize(np.eye(2, dtype=np.int64), [HOSTILE, "sad"])))
    found = Verified("data", 2, 10, 1, [Fault("shard.tar", HOSTILE, "audio is damaged")])
    assert_harmless(format_verified(found), lines=2)
    [line] = account_for_damaged({HOSTILE: "a.tar"}, {}, Position(), 1, "data")
    assert_harmless(line, lines=1)
    with pytest.raises(ValueError, match=r"more than data\.damaged_budget") as refused:
        account_for_damaged({HOSTILE: "a.tar"}, {}, Position(), 0, "data")
    assert_harmless(str(refused.value))


def test_commands_to_run_next_are_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "my table.csv"
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((3, 2), np.float32))
    table.write_text("key,split,label,audio\na,train,sad,a.npy\nb,train,calm,b.npy\n")
    main(["pack", str(table), str(tmp_path / "my data"), "--format", "table"])
    assert f"--data.train '{tmp_path / 'my data'}'" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`awtpn shards verify 'my data'`"):
        account_for_damaged({"a": "a.tar"}, {}, Position(), 0, "my data")
    with pytest.raises(SystemExit, match=r"awtpn export RUN '\S+/my data'$"):
        main(["push", str(tmp_path / "my data"), "someone/emotions"])


def test_commands_show_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.ones((3, 2), np.float32)
    samples = [
        Sample(f"u{i}", "train", label, {"audio": values * i}, {"note": HOSTILE})
        for i, label in enumerate([HOSTILE, "sad"])
    ]
    data = str(tmp_path / "data")
    pack(samples, data, classes=[HOSTILE, "sad"], provenance={"encoder": HOSTILE}, progress=False)
    for command in ("info", "preview"):
        main(["shards", command, data])
        assert_harmless(capsys.readouterr().out)
    with pytest.raises(SystemExit) as refused:
        main(["shards", "info", f"{data}#{ESC}"])
    assert "\x1b" not in str(refused.value)


def test_a_table_for_a_terminal_aligns_its_columns() -> None:
    rows = [["class", "F1", "note"], ["sad", "7.00", ""], [HOSTILE, "100.00", 3]]
    lines = table_lines(rows, "lrl")
    start = len(printable(HOSTILE)) + 2
    assert [line[:start].rstrip() for line in lines] == ["class", "sad", printable(HOSTILE)]
    assert [line[start:] for line in lines] == ["    F1  note", "  7.00", "100.00  3"]
    assert table_lines([]) == []


def test_a_table_in_markdown_says_how_its_columns_are_aligned() -> None:
    assert table(["a|b", "c", "d"], [["x", 1, 2]], "lr").splitlines() == [
        r"| a\|b | c | d |",
        "| --- | ---: | ---: |",
        "| x | 1 | 2 |",
    ]


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-package-anywhere") is None
