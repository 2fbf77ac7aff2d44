"""Long work draws a bar on a terminal and nowhere else; a log gets a plain line now and then."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from shards_support import corpus, pack, utterance
from support import LIMIT, environment, terminal

from shards.progress import INTERVAL_S, ProgressLines, progress_bar
from shards.tools.index_tars import index_url
from shards.tools.verify import verify

START = 1_000.0


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == "", "standard output is for results"
    assert "\r" not in err
    return err.splitlines()


def test_a_log_gets_a_line_soon_then_every_half_minute_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with ProgressLines("extract", "clip", 4_000, clock=clock) as bar:
        for second in range(1, 101):
            clock.now = START + second
            bar.update(4)
        assert lines(capsys) == [
            "extract: 12/4,000 clips (0 %), 4.0 clips/s, 0:16:37 left",
            "extract: 132/4,000 clips (3 %), 4.0 clips/s, 0:16:07 left",
            "extract: 252/4,000 clips (6 %), 4.0 clips/s, 0:15:37 left",
            "extract: 372/4,000 clips (9 %), 4.0 clips/s, 0:15:07 left",
        ]
    assert lines(capsys) == ["extract: 400/4,000 clips (10 %) in 0:01:40, 4.0 clips/s"]


def test_totals_may_be_unknown_and_units_large_or_slow(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    unknown = ProgressLines("pack", "utterance", None, clock=clock)
    size = ProgressLines("verify", "B", 8_000_000, clock=clock)
    runs = ProgressLines("seeds", "run", 3, first_s=0, clock=clock)
    runs.set_postfix_str("seed-0\r")
    clock.now += 100
    unknown.update(200_000)
    size.update(2_000_000)
    runs.set_postfix_str("seed-1", refresh=False)
    runs.update()
    assert lines(capsys) == [
        "seeds: 0/3 runs (0 %), seed-0\\r",
        "pack: 200,000 utterances, 2,000 utterances/s",
        "verify: 2.00MB of 8.00MB (25 %), 20.0kB/s, 0:05:00 left",
        "seeds: 1/3 runs (33 %), 100.0 s per run, 0:03:20 left, seed-1",
    ]


def test_what_was_done_earlier_is_not_counted_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with ProgressLines("train", "step", 100, initial=50, clock=clock) as bar:
        clock.now += 10
        bar.update(25)
    assert lines(capsys) == [
        "train: 75/100 steps (75 %), 2.5 steps/s, 0:00:10 left",
        "train: 75/100 steps (75 %) in 0:00:10, 2.5 steps/s",
    ]
    with ProgressLines("train", "step", 100, initial=100, clock=clock):
        clock.now += INTERVAL_S
    assert lines(capsys) == [], "there was nothing to do"


def test_threads_share_it(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLines("verify", "shard", 4_000) as bar:
        threads = [threading.Thread(target=lambda: [bar.update() for _ in range(1_000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert lines(capsys)[-1].startswith("verify: 4,000/4,000 shards (100 %) in ")


def test_packing_checking_and_indexing_write_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(corpus(), tmp_path / "d", progress=True, total=47)
    verify(str(tmp_path / "d"))
    for path in [*tmp_path.glob("d/manifest.json"), *tmp_path.glob("d/*.npz")]:
        path.unlink()
    index_url(str(tmp_path / "d"), cache_dir=tmp_path / "cache")
    told = [line for line in lines(capsys) if " in " in line]
    assert re.fullmatch(r"pack: 47/47 utterances \(100 %\) in [\d:]+, [\d,.]+ utterances/s", told[0])
    assert re.fullmatch(r"verify: (\S+B) of \1 \(100 %\) in [\d:]+, \S+B/s", told[1])
    assert re.fullmatch(r"index: (\d+)/\1 tars \(100 %\) in [\d:]+, .+", told[2])
    assert len(told) == 3


def test_an_error_comes_after_the_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [*corpus(5, 0), utterance(5, label="unknown")]
    with pytest.raises(ValueError, match="unknown"):
        pack(samples, tmp_path / "d", progress=True)
    # Written already, though the exception still refers to the frames that it passed.
    assert lines(capsys)[-1].startswith("pack: 5 utterances in ")


def test_a_terminal_gets_a_bar(capfd: pytest.CaptureFixture[str]) -> None:
    with terminal() as shown:
        with progress_bar("pack", "utterance", 3) as bar:
            bar.update(3)
        assert "\rpack: 100%|" in (screen := shown())
        assert "| 3/3 [" in screen
        with progress_bar("pack", "utterance", 3, show=False) as bar:
            bar.update(3)
        assert shown() == ""
    with progress_bar("pack", "utterance", 3, first_s=0, show=False) as bar:
        bar.update(3)
        bar.set_postfix_str("x")
    assert capfd.readouterr() == ("", "")


OTHERS = """
from awtpn.config.entry_point import run_command

def command(words):
    from tqdm.auto import tqdm
    print(sum(tqdm([1, 2])))

run_command(command, [])
"""


def test_bars_of_other_libraries_stay_out_of_logs() -> None:
    told = environment()
    told.pop("TQDM_DISABLE", None)
    done = subprocess.run(
        [sys.executable, "-c", OTHERS], capture_output=True, text=True, timeout=LIMIT, env=told, check=True
    )
    assert (done.stdout, done.stderr) == ("3\n", "")
