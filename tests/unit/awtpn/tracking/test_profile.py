"""Traces of a window of steps: of these alone, whole, and never at the cost of a run."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from awtpn.config.settings import TrainConfig
from awtpn.tracking.profile import StepProfiler, check_window

ONES = torch.ones(8, 8)


def train(profiler: StepProfiler, steps: range) -> None:
    for step in steps:
        with profiler.step(step):
            ONES @ ONES


def names(file: Path) -> list[str]:
    return [str(event.get("name")) for event in json.loads(file.read_text())["traceEvents"]]


def test_the_steps_of_the_window_are_recorded(tmp_path: Path) -> None:
    profiler = StepProfiler([2, 3], tmp_path, rank=5)
    train(profiler, range(1, 6))
    profiler.close()
    [file] = (tmp_path / "profile").iterdir()
    assert file.name == "rank-5.steps-2-3.pt.trace.json"
    found = names(file)
    assert [name for name in found if name.startswith("ProfilerStep")] == ["ProfilerStep#2", "ProfilerStep#3"]
    assert found.count("aten::mm") == 2


def test_threads_of_a_step_are_recorded(tmp_path: Path) -> None:
    profiler = StepProfiler([1, 1], tmp_path)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(int).result()  # it runs before the window begins
        with profiler.step(1):
            threads.submit(torch.mm, ONES, ONES).result()
    [file] = (tmp_path / "profile").iterdir()
    assert "aten::mm" in names(file)


def test_a_run_that_ends_within_the_window_has_a_shorter_trace(tmp_path: Path) -> None:
    profiler = StepProfiler([2, 9], tmp_path)
    train(profiler, range(1, 4))
    profiler.close()
    profiler.close()
    assert [file.name for file in (tmp_path / "profile").iterdir()] == ["rank-0.steps-2-3.pt.trace.json"]


def test_no_window_writes_nothing(tmp_path: Path) -> None:
    for profiler in (StepProfiler(None, tmp_path), StepProfiler([5, 6], tmp_path)):
        train(profiler, range(1, 4))
        profiler.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_costs_the_trace_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile").write_text("in the way")
    profiler = StepProfiler([1, 1], tmp_path)
    train(profiler, range(1, 3))
    assert "warning: the trace" in capsys.readouterr().err


@pytest.mark.parametrize("window", [[], [3], [1, 2, 3], [0, 2], [4, 3], [-2, -1]])
def test_what_is_no_window_is_refused(window: list[int]) -> None:
    with pytest.raises(ValueError, match=r"train\.profile takes a first and a last step, .* not \["):
        TrainConfig(profile=window).validate()


def test_a_window_has_a_size_and_ends_with_the_run() -> None:
    TrainConfig(profile=[1, 100]).validate()
    with pytest.raises(ValueError, match=r"train\.profile must name at most 100 steps, not 101"):
        TrainConfig(profile=[1, 101]).validate()
    check_window(None, 5)
    check_window([5, 5], 5)
    with pytest.raises(ValueError, match=r"train\.profile \[5, 6\] ends after the last step, 5"):
        check_window([5, 6], 5)
