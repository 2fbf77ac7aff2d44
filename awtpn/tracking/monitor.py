"""What a run records and prints while it trains: metrics.jsonl, TensorBoard, progress, status.json."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from awtpn.config.schema import Config
from awtpn.distributed.world import World
from awtpn.metrics.summary import headlines_of, shown
from awtpn.metrics.tables import format_table
from awtpn.run.atomic_write import write_atomically, write_json
from awtpn.run.position import Position
from awtpn.run.provenance import describe
from awtpn.run.results import RESULTS_EVENTS
from awtpn.tracking.log_lines import LossMeans, StepLines, epoch_line, epochs_per_line
from awtpn.tracking.snapshot import Snapshot
from awtpn.tracking.tensorboard import (
    FOLDER,
    STEP_TAGS,
    FigureMode,
    ScalarSink,
    TensorBoardWriter,
    ignore_scalars,
)
from shards import FeatureStream
from shards.progress import on_terminal, progress_bar, write_line
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import printable_lines
from shards.storage.credentials import redact

Status = Literal["running", "preempted", "done", "failed"]


def write_status(run_dir: Path, status: Status, **details: Any) -> None:
    """Write status.json, which batch scripts read, since launchers turn every exit code into 1."""
    if "error" in details:  # a library's message may hold credentials
        details["error"] = redact(details["error"])
    record = {"status": status, **details, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_json(run_dir / "status.json", record)


class Monitor:
    """Writes a run's records on the main rank; on other ranks every method does nothing.

    Args:
        run_dir: the run folder.
        is_main: this is global rank 0.
        resumed_step: steps already done; lines and points of later steps, of an interrupted run, are dropped.
        total_steps: of the whole run, to show progress and the time left.
        also: gets all scalars that TensorBoard gets.
        largest_events: in bytes; TensorBoard's writer begins a new event file when one is larger.
    """

    def __init__(
        self,
        run_dir: Path,
        is_main: bool,
        resumed_step: int,
        total_steps: int,
        also: ScalarSink = ignore_scalars,
        largest_events: int | None = None,
    ) -> None:
        self.is_main, self.run_dir = is_main, run_dir
        self.last_lr: float | None = None
        """Learning rate of the step that the run resumes from; None if unknown."""
        if not is_main:
            return
        path = run_dir / "metrics.jsonl"
        self.last_lr = truncate_metrics(path, resumed_step)
        self.lines = path.open("a")
        self.tensorboard = TensorBoardWriter(run_dir, resumed_step, also=also, largest=largest_events)
        self.on_terminal = on_terminal()
        self.bar = progress_bar("train", "step", total_steps, initial=resumed_step, show=self.on_terminal)
        self.step_lines = StepLines(total_steps)
        self.epoch = LossMeans()
        """Of the steps since the last epoch's line."""

    def log_settings(
        self,
        step: int,
        config: Config,
        train: FeatureStream,
        world: World,
        threads: int,
        prototypes: NDArray[np.float32] | None,
    ) -> None:
        """Write settings, data, environment and any prototypes [C*K, D] to TensorBoard, from `step` on."""
        if self.is_main:
            with naming_write_errors(self.run_dir):
                environment = describe(world, threads)
                self.tensorboard.log_settings(step, config, train, environment, prototypes)

    def log_step(self, line: Mapping[str, Any], utterances: int) -> None:
        """Write one optimizer step's values; steps count from 1. Its losses are means over `utterances`."""
        if not self.is_main:
            return
        self.step_lines.add(line, utterances)
        self.epoch.add(line, utterances)
        with naming_write_errors(self.run_dir):
            self.lines.write(json_text(line) + "\n")
            self.tensorboard.log_scalars(
                line["step"], {tag: line[name] for name, tag in STEP_TAGS.items() if name in line}
            )
        self.bar.update(1)

    def log_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write further scalars by tag, of a step or of those up to it."""
        if self.is_main:
            with naming_write_errors(self.run_dir):
                self.tensorboard.log_scalars(step, scalars)

    def wants_figures(self, mode: FigureMode, last: bool) -> bool:
        """Whether to draw the next validation (see `tensorboard.wants_figures`); False on other ranks."""
        return self.is_main and self.tensorboard.wants_figures(mode, last)

    def flush(self, seconds: float) -> None:
        """Write the steps logged since the last call, which took so many seconds, to disk; show progress."""
        if not self.is_main:
            return
        with naming_write_errors(self.run_dir):
            self.lines.flush()
            self.tensorboard.begin_new_file_if_large()
        if self.on_terminal:
            last = self.step_lines.last
            loss = math.nan if last["loss"] is None else last["loss"]
            # Shown with the next update.
            self.bar.set_postfix_str(f"loss={loss:.4f}, utt_s={last['utterances_per_s']:.0f}", refresh=False)
        elif text := self.step_lines.next(seconds):
            write_line(text)

    def log_validation(self, step: int, metrics: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Write a validation to TensorBoard."""
        if self.is_main:
            with naming_write_errors(self.run_dir):
                self.tensorboard.log_validation(step, metrics, snapshot)

    def log_epoch(
        self,
        position: Position,
        epochs: int,
        validation: Mapping[str, Any] | None,
        best: bool,
        seconds: float,
    ) -> None:
        """Write an epoch's mean losses to TensorBoard, and print its line, if it has one.

        The last epoch and those that validate have a line, and of the others one of `epochs_per_line`.
        """
        if not self.is_main:
            return
        means, self.epoch = self.epoch, LossMeans()
        with naming_write_errors(self.run_dir):
            scalars = {f"epoch/{name}": value for name, value in means.means().items()}
            self.tensorboard.log_scalars(position.step, scalars)
        number = position.epoch + 1
        if validation is None and number < epochs and number % epochs_per_line(epochs):
            return
        partial = means.steps < position.epoch_step
        self.print(
            epoch_line(
                position.epoch, epochs, means, partial, validation, best, seconds, best_by=position.best_by
            )
        )

    def print(self, text: str) -> None:
        """Print on the main rank without breaking the progress bar."""
        if self.is_main:
            tqdm.write(printable_lines(text))
            sys.stdout.flush()  # a log is read while the run goes on

    def close(self) -> None:
        if self.is_main:
            self.bar.close()
            # An earlier write has raised already; a second error would hide the one that ended the run.
            for file in (self.lines, self.tensorboard):
                with contextlib.suppress(OSError):
                    file.close()


def log_results(
    run_dir: Path,
    results: Mapping[str, Any],
    snapshots: Mapping[str, Snapshot],
    also: ScalarSink = ignore_scalars,
) -> None:
    """Write `results.json`'s metrics and their figures to TensorBoard; called on the main rank only.

    They have an event file of their own, which replaces that of earlier results.
    """
    earlier = list((run_dir / FOLDER).glob(f"*{RESULTS_EVENTS}"))
    with naming_write_errors(run_dir):
        with contextlib.closing(TensorBoardWriter(run_dir, suffix=RESULTS_EVENTS, also=also)) as writer:
            writer.log_results(results, snapshots)
        for file in earlier:
            file.unlink()


def print_results(
    run_dir: Path, results: Mapping[str, Any], dataset: str, best_by: str = "", network: str = "awtpn"
) -> None:
    """Print the test split's table (or the validation split's), and where the other results are.

    Args:
        results: as in `results.json`.
        dataset: its name.
        best_by: the metric that the best checkpoint was chosen by; "" without validation while training.
        network: `model.name`. Weights of a baseline are those of its attention, and the paper has no figures
            of it.
    """
    weights = "reliability weights" if network == "awtpn" else "attention weights"
    if role := next((r for r in ("test", "val") if r in results), None):
        chosen = f"best checkpoint by the validation's {shown(best_by)}" if best_by else "last checkpoint"
        print(f"\n{role}: {results[role]['utterances']} utterances, {chosen}")
        print(format_table(results[role], dataset if network == "awtpn" else ""))
        for modality, value in results[role]["reliability_auroc"].items():
            print(f"{weights} against the truly informative {modality} steps: AUROC {value:.3f}")
    if skipped := results.get("skipped"):
        print(f"\nwarning: {skipped} of {results['step']} steps were left out: they were not finite")
    short = {
        role: {
            name: None if (value := results[role][name]) is None else round(value, 4)
            for name in headlines_of(results[role])
        }
        for role in ("val", "test")
        if role in results
    }
    told = json_text(short) if short else "no metrics, since there was nothing to validate or test on"
    print(f"\nresults in {run_dir / 'results.json'}: {told}")


@contextlib.contextmanager
def naming_write_errors(run_dir: Path) -> Iterator[None]:
    """Turn an OSError, such as of a full disk, into one that names the run folder."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(f"metrics in {run_dir} could not be written: {error}") from None


def truncate_metrics(path: Path, step: int) -> float | None:
    """Drop lines after `step`, and an incomplete last line, from a metrics file; return the step's `lr`."""
    if not path.exists():
        return None
    kept, lr = [], None
    for line in path.read_text().splitlines():
        try:
            record = parse_json(line, path)
            if record["step"] <= step:
                kept.append(line + "\n")
            if record["step"] == step:
                lr = record.get("lr")
        except (ValueError, KeyError, TypeError):
            break
    write_atomically(path, "".join(kept))
    return lr
