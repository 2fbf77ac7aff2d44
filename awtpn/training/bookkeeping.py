"""What a run prints and writes about its steps, and what it checks between them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from shlex import quote
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from awtpn.distributed.engines import unwrap
from awtpn.distributed.replicas import find_divergent_replicas, resync_from_rank0
from awtpn.learning.optimizer import schedule_change
from awtpn.learning.part_norms import norms_by_tag
from awtpn.run.data import remarks_on_splits
from awtpn.run.demos import hidden_by_demo
from awtpn.tracking.log_lines import epochs_per_line
from awtpn.tracking.monitor import Monitor
from awtpn.tracking.throughput import WORK, memory, throughput
from awtpn.training.damaged_data import account_for_damaged
from awtpn.training.run_state import Run
from shards.safe_io.printable import plural, printable

SHOWN = 8  # names listed in a message


def announce(run: Run, monitor: Monitor) -> None:
    """Print what is trained, on what and where, and warnings on settings that may be mistakes."""
    train, world, layout = run.train, run.world, run.layout
    what = unwrap(run.model).task.described()
    if (network := run.config.model.name) != "awtpn":
        what += f"; {network}, trained by cross-entropy alone"
    start_at = f", resumed at step {run.position.step}" if run.position.step else ""
    if run.position.step >= run.total_steps and run.position.validated >= run.position.step:
        start_at += ": all are done"
    share = "micro-batch" if layout.even else "micro-batch of at most"
    equals = "=" if layout.even else "for"
    monitor.print(
        f"{train.num_utterances} utterances, {what}; {run.parameters:,} parameters, "
        f"{run.config.train.precision}, engine {world.engine} on {world.device}\n"
        f"{plural(world.size, 'rank')} x {share} {layout.micro_batch} x "
        f"accumulation {layout.accumulation} {equals} {layout.global_batch} utterances a step; "
        f"{plural(run.total_steps, 'step')}{start_at}\n"
        f"run folder {run.dir}; watch it with: tensorboard --logdir {quote(str(run.dir.parent))}"
    )
    if run.remote is not None:
        monitor.print(
            f"checkpoints and records go to {run.remote.url}, records every {run.config.run.upload_every:g} s"
        )
    epochs = epochs_of(run)
    if (one_in := epochs_per_line(epochs)) > 1:
        monitor.print(f"{epochs} epochs: one in {one_in} has a line here, and those that validate")
    if note := hidden_by_demo(run.config.data.train):
        monitor.print(note)
    for line in remarks_on_splits(train, (run.val, run.test)):
        monitor.print(line)
    if unused := [m for m in train.manifest.modalities if m not in run.config.model.modalities]:
        every = ",".join([*run.config.model.modalities, *unused])
        monitor.print(
            f"the data also has {', '.join(unused)}, which this run does not use; with --model.modalities "
            f"{every} it would"
        )
    if warning := schedule_change(run.config.optim, monitor.last_lr, run.position.step, run.total_steps):
        monitor.print(warning)
    if run.val is None and run.test is None:
        fix = "give data.val or data.test, or data.select, or use awtpn cross-validate --by COLUMN"
        monitor.print(f"warning: nothing to validate or test on, so there will be no results: {fix}")


def flush(run: Run, monitor: Monitor) -> None:
    """Fetch the pending steps' figures from the device, sum them over ranks and write them.

    Raises:
        ValueError: more steps were not finite, or more utterances damaged, than their budgets allow.
    """
    if not run.pending:
        return
    steps, run.pending = run.pending, []
    terms = torch.stack([s["terms"] for s in steps]).double().cpu().numpy()
    waits = np.array([s["data_wait"] for s in steps]) / run.world.size
    damaged = [len(s["damaged"]) for s in steps]
    work = np.stack([s["work"] for s in steps])
    # One collective for all pending steps. A row per step: its loss terms, data_wait, the number of its
    # damaged utterances, its work, and the squares of the model's parts, if a step measured any.
    reduced = run.world.sum(np.column_stack([terms, waits, damaged, work, squares_of(run, steps)]))
    seconds, run.since = time.perf_counter() - run.since, time.perf_counter()
    utterances = sum(s["utterances"] for s in steps)
    rate = utterances / max(seconds, 1e-9)
    count = len(run.terms)
    reduced, squares = np.split(reduced, [count + 2 + len(WORK)], axis=1)
    weights = np.array(run.config.loss.weights(run.terms))
    for s, row, of_parts in zip(steps, reduced, squares, strict=True):
        shares, (wait, lost) = row[:count], row[count : count + 2]
        loss = float(shares @ weights)
        grad_norm = math.nan if s["grad_norm"] is None else float(s["grad_norm"])
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        figures = {
            "loss": loss,
            **dict(zip(run.terms, map(float, shares), strict=True)),
            "grad_norm": grad_norm,
        }
        monitor.log_step(
            {"step": s["step"], "epoch": s["epoch"], "lr": s["lr"], "fingerprint": s["fingerprint"]}
            # JSON has no NaN.
            | {name: value if math.isfinite(value) else None for name, value in figures.items()}
            | {"skipped": not finite, "damaged": int(lost)}
            | {"utterances_per_s": rate, "data_wait": wait},
            s["utterances"],
        )
        if run.norms is not None and s["squares"] is not None:
            monitor.log_scalars(s["step"], norms_by_tag(run.norms.parts, of_parts.tolist(), grad_norm))
        if not finite:
            run.position.left_out += 1
            account_for_skipped(run, monitor, s, loss)
    if (empty := sum(s["empty"] for s in steps)) and not run.told_empty:
        run.told_empty = True
        monitor.print(
            f"warning: {empty} of the {utterances} utterances up to step {s['step']} have nothing of "
            f"{', '.join(run.config.model.modalities)}, so all of them look the same to the model: use more "
            "of the data's modalities (model.modalities), or leave such utterances out (data.select)"
        )
    wait, lost, *total_work = reduced[:, count:].sum(0)
    if lost:  # by some rank; the sum is the same on all, so all make this collective call
        everyone = run.world.all_gather_object(
            {name: cause for s in steps for name, cause in s["damaged"].items()}
        )
        found = {name: cause for of_rank in everyone for name, cause in of_rank.items()}
        budget, url = run.config.data.damaged_budget, run.train.url
        for line in account_for_damaged(found, run.damaged, run.position, budget, url):
            monitor.print(line)
    figures = throughput(seconds, utterances, wait, total_work) | memory(run.world.device)
    monitor.log_scalars(s["step"], figures)
    monitor.flush(seconds)


def squares_of(run: Run, steps: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """This rank's share of each step's squares of `PartNorms`, [steps, 2 * parts], or [steps, 0].

    The number of a step alone decides whether it was measured, so all ranks give the same shape.
    """
    if run.norms is None or all(s["squares"] is None for s in steps):
        return np.zeros((len(steps), 0))
    none = torch.zeros(2, len(run.norms.parts), dtype=torch.float64, device=run.world.device)
    measured = torch.stack([none if s["squares"] is None else s["squares"] for s in steps])
    shares = measured.flatten(1).cpu().numpy()
    return shares if run.engine.partitions_weights else shares / run.world.size


def log_epoch(
    run: Run, monitor: Monitor, validation: dict[str, Any] | None, best: bool, seconds: float
) -> None:
    """Write and print the losses of the epoch at `run.position`, its metrics, if any, and its time."""
    monitor.log_epoch(run.position, epochs_of(run), validation, best, seconds)


def epochs_of(run: Run) -> int:
    """Epochs of the whole run; at least the one at `run.position`."""
    position = run.position
    begin = position.step - position.epoch_step  # earlier epochs may have had other numbers of steps
    left = math.ceil((run.total_steps - begin) / run.train.steps_per_epoch)
    return position.epoch + max(left, 1)


def account_for_skipped(run: Run, monitor: Monitor, step: dict[str, Any], loss: float) -> None:
    """Count a step whose update was skipped, and name its utterances whose logits are not finite.

    Every rank calls for the same steps, since loss and norm are reduced. Under fp16 a finite loss with an
    infinite gradient is part of the search for a loss scale, and is not counted.

    Raises:
        ValueError: there were more such steps than `train.skip_budget`.
    """
    if run.config.train.precision == "fp16" and math.isfinite(loss):
        return
    own = [key for key, bad in zip(step["keys"], step["nonfinite"].tolist(), strict=True) if bad]
    named = [
        f"{printable(key)} (rank {rank})"
        for rank, keys in enumerate(run.world.all_gather_object(own))
        for key in keys
    ]
    what = _listed(named, SHOWN) if named else "no utterance alone"
    run.position.skipped += 1
    monitor.print(
        f"step {step['step']} skipped: loss {loss} or its gradient is not finite, because of: {what}"
    )
    if run.position.skipped > run.config.train.skip_budget:
        raise ValueError(
            f"{run.position.skipped} steps were not finite, more than train.skip_budget "
            f"{run.config.train.skip_budget}; the last, step {step['step']}, because of: {what}. Check "
            "these utterances' features, or lower optim.lr"
        )


def check_replicas(run: Run, monitor: Monitor) -> None:
    """Compare all replicated weights over ranks; where they differ stop, or copy rank 0's if asked to.

    Raises:
        RuntimeError: names the tensors and the ranks that differ; on every rank.
    """
    tensors = run.engine.replicated_tensors(unwrap(run.model))
    divergent = find_divergent_replicas(tensors, run.world.cpu_group)
    if not divergent:
        return
    what = _listed([f"{name} on rank {rank}" for rank, name in divergent], 5)
    if run.config.prototypes.on_drift == "error":
        raise RuntimeError(f"after step {run.position.step} ranks hold different weights: {what}")
    if any(rank == 0 for rank, _ in divergent):
        raise RuntimeError(f"after step {run.position.step} rank 0 itself differs from the others: {what}")
    resync_from_rank0(tensors, sorted({name for _, name in divergent}), run.optimizer)
    monitor.print(f"weights copied from rank 0 after step {run.position.step}: {what}")


def _listed(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
