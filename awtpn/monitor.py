"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard, a progress bar, status.json."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Status = Literal["running", "preempted", "done", "failed"]

# Where each figure of a metrics line stands in TensorBoard.
GROUPS = {
    "loss": "loss/total",
    "align": "loss/align",
    "intra": "loss/intra",
    "inter": "loss/inter",
    "contrast": "loss/contrast",
    "ce": "loss/ce",
    "mse": "loss/mse",
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "utterances_per_s": "data/utterances_per_s",
    "data_wait": "data/wait_s",
}


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_status(run_dir: Path, status: Status, **details: Any) -> None:
    """status.json: what a batch script reads, since launchers turn every exit code into 1."""
    record = {"status": status, **details, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_atomically(run_dir / "status.json", json.dumps(record, indent=1) + "\n")


class Monitor:
    """The main rank's writer; on other ranks every method does nothing, so callers need not ask.

    Args:
        run_dir: the run folder.
        is_main: this is global rank 0.
        resumed_step: steps already done; later lines and points of an interrupted run are cut.
        total_steps: of the whole run, for the bar and its ETA.
    """

    def __init__(self, run_dir: Path, is_main: bool, resumed_step: int, total_steps: int) -> None:
        self.is_main, self.run_dir = is_main, run_dir
        if not is_main:
            return
        path = run_dir / "metrics.jsonl"
        cut_back(path, resumed_step)
        self.lines = path.open("a")
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_step + 1, flush_secs=10)
        self.bar = tqdm(
            total=total_steps, initial=resumed_step, desc="train", unit="step", dynamic_ncols=True
        )

    def log_step(self, line: Mapping[str, Any]) -> None:
        """One optimizer step's line; steps count from 1."""
        if not self.is_main:
            return
        with self._telling_of_full_disks():
            self.lines.write(json.dumps(line) + "\n")
            for name, tag in GROUPS.items():
                if line[name] is not None:
                    self.board.add_scalar(tag, line[name], line["step"])
        self.bar.update(1)

    def flush(self, **shown: str) -> None:
        """Put what was logged on disk, and `shown` beside the progress bar."""
        if not self.is_main:
            return
        with self._telling_of_full_disks():
            self.lines.flush()
        self.bar.set_postfix(shown)

    def log_validation(self, step: int, epoch: int, figures: Mapping[str, Any], best: bool) -> None:
        if not self.is_main:
            return
        with self._telling_of_full_disks():
            for name in ("w-ACC", "w-F1", "UA", "macro-F1"):
                self.board.add_scalar(f"val/{name}", figures[name], step)
            self.board.flush()
        star = " *" if best else ""
        self.say(f"epoch {epoch + 1}: val w-F1 {figures['w-F1']:.4f}  w-ACC {figures['w-ACC']:.4f}{star}")

    def say(self, text: str) -> None:
        """Print on the main rank without tearing the progress bar."""
        if self.is_main:
            tqdm.write(text)

    def close(self) -> None:
        if self.is_main:
            self.bar.close()
            # What could not be written has been told of; here it would hide the error that ended the run.
            for file in (self.lines, self.board):
                with contextlib.suppress(OSError):
                    file.close()

    @contextlib.contextmanager
    def _telling_of_full_disks(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RuntimeError(f"metrics in {self.run_dir} could not be written: {error}") from None


def cut_back(path: Path, step: int) -> None:
    """Drop the lines after `step`, and a torn last line, from a metrics file."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            break
    write_atomically(path, "".join(kept))
