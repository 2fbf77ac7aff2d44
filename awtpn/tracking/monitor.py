"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard, a progress bar, status.json."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from awtpn.config.schema import Config
from awtpn.distributed.world import World
from awtpn.metrics.classification import SUMMARY, format_table
from awtpn.run.atomic_write import write_atomically, write_json
from awtpn.run.provenance import describe
from awtpn.run.results import RESULTS_EVENTS
from awtpn.tracking.snapshot import Snapshot
from awtpn.tracking.tensorboard import FOLDER, STEP_TAGS, Board, Pictures
from shards import FeatureStream
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import printable_lines
from shards.storage.credentials import redact

Status = Literal["running", "preempted", "done", "failed"]


def write_status(run_dir: Path, status: Status, **details: Any) -> None:
    """status.json: what a batch script reads, since launchers turn every exit code into 1."""
    if "error" in details:  # perhaps of a library
        details["error"] = redact(details["error"])
    record = {"status": status, **details, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(run_dir / "status.json", record)


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
        self.last_lr: float | None = None
        """Learning rate of the step that the run goes on from; None where it is not known."""
        if not is_main:
            return
        path = run_dir / "metrics.jsonl"
        self.last_lr = truncate_metrics(path, resumed_step)
        self.lines = path.open("a")
        self.board = Board(run_dir, resumed_step)
        self.bar = tqdm(
            total=total_steps, initial=resumed_step, desc="train", unit="step", dynamic_ncols=True
        )

    def describe(
        self,
        step: int,
        config: Config,
        train: FeatureStream,
        world: World,
        threads: int,
        prototypes: NDArray[np.float32],
    ) -> None:
        """Tell TensorBoard what runs, from `step` on: settings, data, environment, prototypes [C*K, D]."""
        if self.is_main:
            with telling_of_full_disks(self.run_dir):
                self.board.settings(step, config, train, describe(world, threads), prototypes)

    def log_step(self, line: Mapping[str, Any]) -> None:
        """One optimizer step's line; steps count from 1."""
        if not self.is_main:
            return
        with telling_of_full_disks(self.run_dir):
            self.lines.write(json_text(line) + "\n")
            self.board.scalars(line["step"], {tag: line[name] for name, tag in STEP_TAGS.items()})
        self.bar.update(1)

    def log_pace(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of several steps together, by TensorBoard tag; see `tracking.throughput.throughput`."""
        if self.is_main:
            with telling_of_full_disks(self.run_dir):
                self.board.scalars(step, figures)

    def wants_pictures(self, pictures: Pictures, last: bool) -> bool:
        """Draw the coming validation? See `tracking.tensorboard.wants_pictures`; False on other ranks."""
        return self.is_main and self.board.wants_pictures(pictures, last)

    def flush(self, **shown: str) -> None:
        """Put what was logged on disk, and `shown` beside the progress bar."""
        if not self.is_main:
            return
        with telling_of_full_disks(self.run_dir):
            self.lines.flush()
        self.bar.set_postfix(shown)

    def log_validation(
        self, step: int, epoch: int, figures: Mapping[str, Any], best: bool, snapshot: Snapshot
    ) -> None:
        if not self.is_main:
            return
        with telling_of_full_disks(self.run_dir):
            self.board.validation(step, figures, snapshot)
        star = " *" if best else ""
        self.say(f"epoch {epoch + 1}: val w-F1 {figures['w-F1']:.4f}  w-ACC {figures['w-ACC']:.4f}{star}")

    def say(self, text: str) -> None:
        """Print on the main rank without tearing the progress bar."""
        if self.is_main:
            tqdm.write(printable_lines(text))

    def close(self) -> None:
        if self.is_main:
            self.bar.close()
            # What could not be written has been told of; here it would hide the error that ended the run.
            for file in (self.lines, self.board):
                with contextlib.suppress(OSError):
                    file.close()


def log_results(run_dir: Path, results: Mapping[str, Any], snapshots: Mapping[str, Snapshot]) -> None:
    """Add what `results.json` holds, and pictures of it, to TensorBoard; on the main rank alone.

    They have an event file of their own, which replaces that of earlier results.
    """
    earlier = list((run_dir / FOLDER).glob(f"*{RESULTS_EVENTS}"))
    with telling_of_full_disks(run_dir), contextlib.closing(Board(run_dir, suffix=RESULTS_EVENTS)) as board:
        board.results(results, snapshots)
        for file in earlier:
            file.unlink()


def print_results(run_dir: Path, results: Mapping[str, Any], dataset: str) -> None:
    """The test split's table (the validation split's where there is none), and where to find the rest."""
    if role := next((r for r in ("test", "val") if r in results), None):
        print(f"\n{role}: {results[role]['utterances']} utterances, best checkpoint")
        print(format_table(results[role], dataset))
        for modality, value in results[role]["reliability_auroc"].items():
            print(f"reliability weights against the truly informative {modality} steps: AUROC {value:.3f}")
    if skipped := results.get("skipped"):
        print(f"\nwarning: {skipped} of {results['step']} steps were left out: they were not finite")
    short = {r: {k: round(results[r][k], 4) for k in SUMMARY} for r in ("val", "test") if r in results}
    print(f"\nresults in {run_dir / 'results.json'}: {json_text(short)}")


@contextlib.contextmanager
def telling_of_full_disks(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"metrics in {run_dir} could not be written: {error}") from None


def truncate_metrics(path: Path, step: int) -> float | None:
    """Drop the lines after `step`, and a torn last line, from a metrics file; returns the step's `lr`."""
    if not path.exists():
        return None
    kept, lr = [], None
    for line in path.read_text().splitlines():
        try:
            figures = parse_json(line, path)
            if figures["step"] <= step:
                kept.append(line + "\n")
            if figures["step"] == step:
                lr = figures.get("lr")
        except (ValueError, KeyError, TypeError):
            break
    write_atomically(path, "".join(kept))
    return lr
