"""The lines that a training prints: one for each epoch, and in a log, which has no bar, some between them.

    step 1,200/5,000 (epoch 3): loss 7.1255 (align 4.173 intra 0.170 inter 0.999 contrast 1.173 ce 2.079
        mse 0.109), lr 0.000976, 375 utterances/s, 0:12:10 left
    epoch 3/10: train loss 7.0206 (align 4.154 intra 0.127 inter 0.998 contrast 1.042 ce 2.041 mse 0.108),
        val cross-entropy 2.0015, w-F1 0.6608, accuracy (w-ACC) 0.6650 *, 12.3 s

Losses are means over the steps since the last line of steps, or of the epoch, each with the weight of its
utterances, without steps whose loss was not finite. The terms in brackets are not weighted; the loss is
their weighted sum. The validation's cross-entropy is the term `ce` without class weights, focal factor and
label smoothing; other terms are not computed there, since negatives are drawn within a training batch. A
star marks the best model so far; its metric, if `train.best_by` names another one, is the last. What is
shown of a validation depends on the task: see VALIDATION.

A small corpus makes a run of hundreds of epochs. Then only some of them have a line (`epochs_per_line`), and
every epoch that validates; TensorBoard and metrics.jsonl hold all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from awtpn.learning.settings import TERMS
from awtpn.metrics.summary import shown, task_type_of
from shards.progress import INTERVAL_S, duration, speed
from shards.safe_io.printable import plural

# What the line of an epoch shows of a validation, by task type.
VALIDATION = {
    "classification": ("cross-entropy", "w-F1", "w-ACC"),
    "regression": ("MAE", "Corr", "CCC"),
    "multilabel": ("cross-entropy", "F1", "WA"),
}


# Lines of epochs in a run of many epochs, if none of the others validates: from so many up to twice as many.
LINES = 20


def epochs_per_line(epochs: int) -> int:
    """Of so many epochs one is printed, in a run of `epochs`; by default these are the ones that validate."""
    return max(1, epochs // LINES)


class LossMeans:
    """Means of the loss and its terms over some steps, each with the weight of its utterances."""

    def __init__(self) -> None:
        self.steps = self.utterances = self.counted = 0
        self.sums: dict[str, float] = {}

    def add(self, line: Mapping[str, Any], utterances: int) -> None:
        """Add a step's line of metrics.jsonl; one whose loss is not finite counts as a step, and no more."""
        self.steps += 1
        self.utterances += utterances
        figures = {
            name: line[name] for name in ("loss", *TERMS) if name in line
        }  # a baseline has fewer terms
        if all(value is not None for value in figures.values()):
            self.counted += utterances
            for name, value in figures.items():
                self.sums[name] = self.sums.get(name, 0.0) + utterances * value

    def means(self) -> dict[str, float]:
        """By name; empty if no step was finite."""
        return {name: total / self.counted for name, total in self.sums.items()} if self.counted else {}

    def __str__(self) -> str:
        if not (means := self.means()):
            return "loss not finite"
        terms = " ".join(f"{name} {value:.3f}" for name, value in means.items() if name != "loss")
        return f"loss {means['loss']:.4f} ({terms})"


class StepLines:
    """Makes the lines between epochs: the first one when steps are first written, then one every 30 s.

    Args:
        total_steps: of the whole run.
    """

    def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_steps, self.clock, self.due = total_steps, clock, clock()
        self.last: Mapping[str, Any] = {}
        self.means, self.seconds = LossMeans(), 0.0  # of the steps since the last line
        self.first: tuple[int, float] | None = None  # the step of the first line, and when that was

    def add(self, line: Mapping[str, Any], utterances: int) -> None:
        """Add a step's line of metrics.jsonl; its losses are means over so many utterances."""
        self.last = line
        self.means.add(line, utterances)

    def next(self, seconds: float) -> str | None:
        """The line to print now, if one is due; the steps added since the last call took so many seconds."""
        self.seconds += seconds
        now, step = self.clock(), self.last["step"]
        if now < self.due:
            return None
        if self.first is None:
            self.first, per_step = (step, now), self.seconds / self.means.steps
        else:  # with validations and checkpoints, but without the first steps, which are slow
            per_step = (now - self.first[1]) / (step - self.first[0])
        rate = self.means.utterances / max(self.seconds, 1e-9)
        text = (
            f"step {step:,}/{self.total_steps:,} (epoch {self.last['epoch'] + 1}): {self.means}, "
            f"lr {self.last['lr']:.3g}, {speed(rate, 'utterance')}, "
            f"{duration(per_step * (self.total_steps - step))} left"
        )
        self.due, self.means, self.seconds = now + INTERVAL_S, LossMeans(), 0.0
        return text


def epoch_line(
    epoch: int,
    epochs: int,
    train: LossMeans,
    partial: bool,
    validation: Mapping[str, Any] | None,
    best: bool,
    seconds: float,
    best_by: str = "",
) -> str:
    """What is printed at the end of an epoch.

    Args:
        epoch: counts from 0.
        train: its steps in this start of the run.
        partial: other steps of the epoch were done in an earlier start.
        validation: metrics of this epoch; None if there were none.
        best: the model is the best so far on the validation data.
        seconds: that the epoch and its validation took.
        best_by: the metric that the best model is chosen by.
    """
    parts = []
    if train.steps:
        parts.append(f"train {train}" + (f" over its last {plural(train.steps, 'step')}" if partial else ""))
    if validation is not None:
        names = VALIDATION[task_type_of(validation)]
        further = [best_by] if best_by and best_by not in names else []
        words = [f"{shown(name)} {_number(validation[name])}" for name in (*names, *further)]
        parts += [f"val {words[0]}", *words[1:]]
        parts[-1] += " *" if best else ""
    parts.append(f"{seconds:.1f} s" if seconds < 60 else duration(seconds))
    return f"epoch {epoch + 1}/{epochs}: {', '.join(parts)}"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
