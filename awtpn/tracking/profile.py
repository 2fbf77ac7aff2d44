"""Traces of some optimizer steps by torch.profiler: one file for each rank, for Perfetto or TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from awtpn.run.atomic_write import atomic_path
from shards.progress import write_line

FOLDER = "profile"
# TensorBoard's plugin (torch-tb-profiler) looks for files with this ending, and for spans of this name.
ENDING = ".pt.trace.json"
SPAN = "ProfilerStep#"


def check_window(window: Sequence[int] | None, total_steps: int) -> None:
    """Refuse a `train.profile` that the run does not reach.

    Raises:
        ValueError: it ends after the last step.
    """
    if window and window[1] > total_steps:
        raise ValueError(
            f"train.profile {list(window)} ends after the last step, {total_steps}: choose earlier steps"
        )


class StepProfiler:
    """Records the steps of a window; the other steps cost nothing.

    Args:
        window: first and last step, counted from 1; None records nothing.
        run_dir: the run folder.
        rank: of this process. Each rank records itself, so that traces show which ranks wait for which.
    """

    def __init__(self, window: Sequence[int] | None = None, run_dir: Path = Path(), rank: int = 0) -> None:
        self.window, self.run_dir, self.rank = window, run_dir, rank
        self._profiler: Any = None
        self._steps: list[int] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around everything that belongs to a step, from waiting for its batch on."""
        if self.window is None or not self.window[0] <= number <= self.window[1]:
            yield
            return
        if self._profiler is None:
            self._profiler = _start()
        self._steps.append(number)
        with torch.profiler.record_function(f"{SPAN}{number}"):
            yield
        if number == self.window[1]:
            self.close()

    def close(self) -> None:
        """Write the trace, if one is being recorded; a run that ends within its window has a shorter one.

        Without space on the disk it prints a warning: a trace is not worth a run.
        """
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        profiler.stop()
        steps, self._steps = self._steps, []
        name = f"rank-{self.rank}.steps-{steps[0]}-{steps[-1]}{ENDING}"
        file = self.run_dir / FOLDER / name
        try:
            with atomic_path(file) as temporary:
                profiler.export_chrome_trace(str(temporary))
                if not temporary.exists():  # Kineto does not raise
                    raise OSError("the profiler wrote no file")
        except (OSError, ValueError, RuntimeError) as error:
            write_line(f"warning: the trace {file} could not be written: {error}")


def _start() -> Any:
    from torch._C._profiler import _ExperimentalConfig

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    # On CPUs, threads of ours share a micro-batch; the profiler would record the main thread alone.
    profiler = torch.profiler.profile(
        activities=activities, experimental_config=_ExperimentalConfig(profile_all_threads=True)
    )
    profiler.start()
    return profiler
