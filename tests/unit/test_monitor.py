"""What a run leaves behind: one line per step, cut back on resume, written by the main rank alone."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awtpn.monitor import GROUPS, Monitor, cut_back, write_atomically, write_status

FIGURES = {"w-ACC": 0.1, "w-F1": 0.2, "UA": 0.3, "macro-F1": 0.4}


def line(step: int) -> dict[str, float]:
    return {"step": step, "epoch": 0} | dict.fromkeys(GROUPS, step / 10)


def test_a_torn_line_and_later_steps_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    cut_back(path, 3)
    assert not path.exists(), "a fresh run has nothing to cut"
    whole = [json.dumps(line(step)) for step in range(1, 7)]
    path.write_text("\n".join(whole) + '\n{"step": 7, "lo')
    cut_back(path, 100)
    assert path.read_text().splitlines() == whole
    cut_back(path, 4)
    assert path.read_text().splitlines() == whole[:4]
    cut_back(path, 0)
    assert path.read_text() == ""


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, is_main=False, resumed_step=0, total_steps=5)
    monitor.log_step(line(1))
    monitor.flush(loss="1")
    monitor.log_validation(1, 0, FIGURES, best=True)
    monitor.say("nothing")
    monitor.close()
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_leaves_each_step_once(tmp_path: Path) -> None:
    first = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=6)
    for step in range(1, 6):
        first.log_step(line(step))
    first.log_validation(5, 0, FIGURES, best=True)
    first.close()
    # The checkpoint was of step 3; steps 4 and 5 are done again.
    second = Monitor(tmp_path, is_main=True, resumed_step=3, total_steps=6)
    for step in range(4, 7):
        second.log_step(line(step) | {"loss": 100.0 + step})
    second.close()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    assert [x["loss"] for x in lines] == [0.1, 0.2, 0.3, 104, 105, 106]

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(GROUPS.values()) <= set(board.Tags()["scalars"])
    assert [(e.step, round(e.value, 4)) for e in board.Scalars("loss/total")] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 104),
        (5, 105),
        (6, 106),
    ]


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    write_atomically(tmp_path / "file", "new")
    write_status(tmp_path, "running", ranks=2)
    write_status(tmp_path, "failed", error="why")
    record = json.loads((tmp_path / "status.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] == "why"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "status.json"], "no temporary files"
