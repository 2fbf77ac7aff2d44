"""Extraction under real launchers and real kills: the same shards, to the byte."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import re
import signal
import sys
import time
import wave
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
from cli_support import awtpn
from media_support import chirp, numbered, record
from support import LIMIT, free_port, kill_tree, launched, run

from shards import FeatureStream

ALONE = [sys.executable, "-m", "awtpn.cli"]
TWO = ["accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "awtpn.cli"]
RATE = 16_000
CLIPS, PER_SHARD = 150, 2


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of many clips, stretches of the same few recordings of noise."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((rng.normal(0, 3000, 4 * RATE)).astype("<i2").tobytes())
    with (folder / "clips.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "split", "label", "path", "begin", "end"])
        for i in range(CLIPS):
            begin = 0.02 * i
            split, label = ("test" if i % 5 == 0 else "train"), ["calm", "happy"][i % 2]
            writer.writerow(
                [f"clip{i}", split, label, f"{'ab'[i % 3 == 0]}.wav", begin, begin + 0.5 + i % 4 / 8]
            )
    return folder / "clips.csv"


def words(table: Path, out: Path) -> list[str]:
    return ["extract", str(table), str(out), "--video", "none", "--clips_per_shard", str(PER_SHARD)]


@pytest.fixture(scope="module")
def alone(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one undisturbed process writes."""
    out = tmp_path_factory.mktemp("alone") / "d"
    code, log = run([*ALONE, *words(table, out)], out.with_name("log"))
    assert code == 0, log
    assert f"train: {CLIPS * 4 // 5} utterances in {CLIPS * 4 // 5 // PER_SHARD} shards" in log
    return hashes(out)


def hashes(folder: Path) -> dict[str, str]:
    """Hash of every file but the manifest, whose date differs; no working folder may be left."""
    assert (folder / "manifest.json").is_file()
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }


def test_two_processes_write_what_one_does(table: Path, alone: dict[str, str], tmp_path: Path) -> None:
    code, log = run([*TWO, *words(table, tmp_path / "d")], tmp_path / "log")
    assert code == 0, log
    assert log.count("extracted; train with") == 1, "only the main rank reports"
    assert f"/{CLIPS // 2 + 1} " in log, "its bar counts the clips of its own 38 shards"
    assert hashes(tmp_path / "d") == alone


def test_recordings_of_two_processes_that_are_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sound and pictures as they are, one JPEG per picture; one process goes on, and changes no byte."""
    film = record(tmp_path / "film.mkv", [numbered(i) for i in range(100)], sound=chirp(10))
    rows = [
        f"clip{i},{'test' if i % 5 == 0 else 'train'},calm,{film},{i / 15},{i / 15 + 0.5}" for i in range(80)
    ]
    table, out = tmp_path / "films.csv", tmp_path / "d"
    table.write_text("\n".join(["key,split,label,path,begin,end", *rows]) + "\n")
    form = ["--audio", "waveform", "--video", "frames", "--video_side", "24", "--video_jpeg", "90"]
    own = ["--clips_per_shard", "2", *form]
    with launched([*TWO, "extract", str(table), str(out), *own], tmp_path / "first") as process:
        wait_for_records(3, out, process, tmp_path / "first")
        kill_tree(process)
    kept = len(list(out.glob("*.part.json")))
    assert not (out / "manifest.json").exists()
    awtpn("extract", table, out, *own)
    assert f"continues; {kept} of 40 shards are there" in caplog.text
    awtpn("extract", table, tmp_path / "alone", *own)
    assert hashes(out) == hashes(tmp_path / "alone")
    assert len(hashes(out)) == 2 * 40
    batches = FeatureStream(str(out), global_batch_size=4, check_crc=True).epoch(0)
    assert sum(int((batch.samples["audio"] == 8000).sum()) for batch in batches) == 64


def wait_for_records(count: int, out: Path, process: Popen[bytes], log: Path, pattern: str = "*") -> None:
    """Return once a process has made so many shards of a pattern."""
    deadline = time.monotonic() + LIMIT
    while len(list(out.glob(f"{pattern}.part.json"))) < count:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)


def test_a_killed_extraction_goes_on(table: Path, alone: dict[str, str], tmp_path: Path) -> None:
    """Killed in the middle of a shard, begun again: only what was missing is made."""
    out = tmp_path / "d"
    with launched([*ALONE, *words(table, out)], tmp_path / "first") as process:
        wait_for_records(5, out, process, tmp_path / "first")
        kill_tree(process)
    assert not (out / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.part.json")}
    whole = {path.name: path.with_name(path.name.replace(".part.json", ".tar")) for path in kept}
    before = {name: path.stat().st_mtime_ns for name, path in whole.items()}
    code, log = run([*ALONE, *words(table, out)], tmp_path / "second")
    assert code == 0, log
    assert f"continues; {len(kept)} of {CLIPS // PER_SHARD} shards are there" in log
    assert {name: path.stat().st_mtime_ns for name, path in whole.items()} == before, "not made again"
    assert hashes(out) == alone


def test_a_rank_that_is_gone_is_named(table: Path, alone: dict[str, str], tmp_path: Path) -> None:
    """Ranks that no launcher watches over, one of which hangs and one is dead: the main one does not wait."""
    out, logs = tmp_path / "d", [tmp_path / f"rank{rank}" for rank in range(3)]
    command = [*ALONE, *words(table, out), "--patience", "0.1"]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "3"}
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(launched(command, log, **meet, RANK=str(rank), LOCAL_RANK=str(rank)))
            for rank, log in enumerate(logs)
        ]
        wait_for_records(1, out, ranks[1], logs[1], "train-00000[147]")
        ranks[1].send_signal(signal.SIGSTOP)
        ranks[2].send_signal(signal.SIGKILL)
        assert ranks[0].wait(LIMIT) == 1
    log = logs[0].read_text()
    assert re.search(r"^error: .*d: rank [12] has made no progress for 0\.1 min; \S+-0000", log, re.MULTILINE)
    assert "Traceback" not in log
    there = len(list(out.glob("*.part.json")))
    code, log = run([*ALONE, *words(table, out)], tmp_path / "second")
    assert code == 0, log
    assert f"continues; {there} of {CLIPS // PER_SHARD} shards are there" in log
    assert hashes(out) == alone


def test_a_launch_that_another_one_follows_stops(table: Path, alone: dict[str, str], tmp_path: Path) -> None:
    """The first was only asleep; once it wakes up it leaves the other's dataset alone."""
    out = tmp_path / "d"
    with launched([*ALONE, *words(table, out)], tmp_path / "first") as process:
        wait_for_records(5, out, process, tmp_path / "first")
        process.send_signal(signal.SIGSTOP)
        code, log = run([*ALONE, *words(table, out)], tmp_path / "second")
        assert code == 0, log
        process.send_signal(signal.SIGCONT)
        assert process.wait(LIMIT) == 1
    log = (tmp_path / "first").read_text()
    told = tuple(f"another {work} has begun here; this one stops" for work in ("packing", "extraction"))
    assert log.rstrip().endswith(told), log
    assert hashes(out) == alone


def test_processes_that_accelerate_would_not_start_are_refused(table: Path, tmp_path: Path) -> None:
    """Without --cpu, on a machine without GPUs, it starts one process and says nothing."""
    words_of_two = [word for word in TWO if word != "--cpu"]
    code, log = run([*words_of_two, *words(table, tmp_path / "d")], tmp_path / "log")
    assert code != 0
    assert "says 2 ranks, but the launcher's environment says 1" in log
    assert not (tmp_path / "d").exists()
