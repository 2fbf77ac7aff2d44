"""Training, from the command line to the results: setup -> fit -> validate -> save -> test.

Reads top to bottom. Every rank runs every line; `Monitor` and `checkpoint` write files and print on the main
rank (rank 0) only. Per step there is one small reduction over ranks (`reduce_batch_counts`), and the host
never waits for the device: losses and norms stay there, and are fetched every `log_every` steps.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from shlex import quote
from typing import Any, NoReturn

import numpy as np

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config, Launch
from awtpn.distributed import doctor
from awtpn.distributed.cpu_threads import retain_freed_memory
from awtpn.distributed.elastic import nodes_may_change
from awtpn.distributed.engines import ENGINES, unwrap
from awtpn.distributed.replicas import broadcast_from_rank0
from awtpn.distributed.stopping import stop_on_signals
from awtpn.distributed.world import init_engine, shutdown
from awtpn.learning.prototypes import find_prototypes
from awtpn.metrics.summary import shown
from awtpn.model import files
from awtpn.model.base import EmotionModel
from awtpn.model.finite_outputs import NotFiniteError
from awtpn.model.models import model_of_card
from awtpn.run import checkpoint
from awtpn.run.demos import demo_name
from awtpn.run.folder import exclusive_run, keep_settings_of_run, prepare_run_dir, run_on_rank0
from awtpn.run.predictions import predictions_file
from awtpn.run.provenance import describe
from awtpn.run.remote.records import PART_BYTES
from awtpn.run.remote.sending import UploadFailed
from awtpn.run.remote.session import remote_run
from awtpn.run.results import write_results
from awtpn.tracking.monitor import Monitor, Status, log_results, print_results, write_status
from awtpn.tracking.snapshot import SnapshotCollector
from awtpn.tracking.tensorboard import wants_figures
from awtpn.tracking.trackers import open_trackers
from awtpn.training.best_checkpoint import forget_best, is_best, record_best
from awtpn.training.bookkeeping import announce, check_replicas, flush, log_epoch
from awtpn.training.demo_tour import show_tour
from awtpn.training.evaluate import evaluate, reliability_auroc
from awtpn.training.run_state import Run
from awtpn.training.saving import (
    CheckpointNotWritten,
    count_time,
    finish_checkpoint,
    save,
    saved_step,
    wait_for_uploads,
)
from awtpn.training.setup import setup
from awtpn.training.skipped_steps import check_any_step_counted, describe_steps
from awtpn.training.step import train_step
from shards.safe_io.printable import plural


class Stopped(Exception):
    """Some rank got a signal to stop; every rank raises this at the same place."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Train as the command line says; see `run_training`."""
    return run_training(*parse_command_line(argv))


def run_training(config: Config, launch: Launch) -> dict[str, Any]:
    """Train with this configuration.

    Returns:
        The content of `results.json`; empty if a signal stopped the run.

    Raises:
        SystemExit: a signal to another node stopped the run, and torchrun goes on with the nodes left.
    """
    with stop_on_signals() as stop:
        doctor.check_network()
        accelerator, world, layout = init_engine(config, launch)
        if world.device.type == "cpu" and ENGINES[world.engine].keeps_freed_memory:
            retain_freed_memory()
        run_dir = prepare_run_dir(config, world)
        with exclusive_run(run_dir, world), remote_run(config, run_dir, world) as remote:
            keep_settings_of_run(config, run_dir, world)
            run = setup(config, accelerator, world, layout, run_dir, stop)
            run.remote = remote
            try:
                results = train(run)
                again = results is None and is_started_again(run)
            finally:
                run.trackers.close()
    if again:
        raise SystemExit(
            "another node was stopped: torchrun starts this rank again with the nodes that are left"
        )
    return results or {}


def is_started_again(run: Run) -> bool:
    """Whether this rank, which has stopped by a signal of another node's, should go on with the nodes left.

    Where nodes may come and go, torchrun itself ends ranks by SIGTERM: those of a node that a scheduler takes
    away, or all, to start them with a new node. To the torchrun of another node, a rank that ends without an
    error has finished the training, so that it would end the job. Every rank calls.
    """
    by_user = run.world.max(int(run.stop.by_user))
    return nodes_may_change(os.environ) and not run.stop.is_set() and not by_user


def train(run: Run) -> dict[str, Any] | None:
    """Fit and test; status.json tells the state of the run. None if a signal stopped it."""
    about = describe(run.world, run.position.threads) if run.world.is_main else {}

    def set_status(status: Status, **details: Any) -> None:
        if run.world.is_main:
            write_status(run.dir, status, **about, **details)

    set_status("running")
    try:
        run_on_rank0(run.world, partial(start_tracking, run))
        fit(run)
        check_any_step_counted(run.position)
        results = test(run)
        wait_for_uploads(run)
    except Stopped:
        set_status("preempted", **describe_steps(run.position), damaged=len(run.position.damaged))
        wait_for_uploads(run)
        if run.world.is_main:
            folder = run.dir if run.remote is None else run.remote.url
            fix = f"the same command with --run.dir {quote(str(folder))} resumes the run"
            print(f"stopped by a signal after step {run.position.step}; {fix}")
        return None
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):  # a full disk must not hide `error`
            # After a second Ctrl-C, a collective fails on ranks that wait for one that has ended.
            if run.stop.at_once or isinstance(error, KeyboardInterrupt):
                set_status("preempted", step=saved_step(run))
            else:
                set_status("failed", error=f"{type(error).__name__}: {error}", **describe_steps(run.position))
        raise
    finally:
        if not run.stop.at_once:
            run.writer.wait()
        run.watchdog.close()
    set_status("done", **describe_steps(run.position), damaged=len(run.position.damaged), **count_time(run))
    shutdown()
    if run.world.is_main and (demo := demo_name(run.config.data.train)):
        show_tour(run.dir, demo, run.test)
    return results


def start_tracking(run: Run) -> None:
    """Open the run at the services of `track.to`, or continue it there; on the main rank."""
    run.trackers = open_trackers(run.config, run.dir, resumes=run.position.step > 0)


# --- fit -----------------------------------------------------------------------------------------


def fit(run: Run) -> None:
    """Train to the last step, with validations and checkpoints.

    Raises:
        Stopped: by a signal; a checkpoint holds all steps done.
    """
    position, options = run.position, run.config.train
    check_stop(run)
    largest = None if run.remote is None else PART_BYTES
    monitor = Monitor(run.dir, run.world.is_main, position.step, run.total_steps, run.trackers.log, largest)
    try:
        announce(run, monitor)
        prototypes = find_prototypes(unwrap(run.model))
        table = None if prototypes is None else run.engine.gather_parameter(prototypes).numpy()
        monitor.log_settings(position.step, run.config, run.train, run.world, position.threads, table)
        if run.changed:
            reevaluate_best(run, monitor)
        if run.continues and run.val is not None:
            value = evaluate(run.model, run.val, run.world, partial(check_stop, run))[run.best_by]
            told = "undefined" if value is None else f"{value:.4f}"
            monitor.print(f"before the first step, as the model that it continues: val {run.best_by} {told}")
        run.since = time.perf_counter()
        # A run that was stopped in its last validation has all its steps, and still needs that validation.
        while position.step < run.total_steps or position.validated < position.step:
            began, figures, best = time.perf_counter(), None, False
            try:
                finished = train_epoch(run, monitor)
                last = position.step >= run.total_steps
                validates = last or (position.epoch + 1) % run.validate_every == 0
                if validates:
                    figures, best = validate_epoch(run, monitor)
            # Within an epoch or a validation: a resumed run continues that epoch, or repeats the validation.
            except (Stopped, UploadFailed, NotFiniteError):
                flush(run, monitor)
                save(run, monitor)
                raise
            log_epoch(run, monitor, figures, best, time.perf_counter() - began)
            if position.stopped_early and not last:  # else it had stopped in an earlier start
                run.total_steps = position.step
                monitor.print(
                    f"stopped early at step {position.step}: no better val {shown(run.best_by)} for "
                    f"{plural(position.stopped_early, 'validation')}"
                )
            if finished:
                position.epoch, position.epoch_step = position.epoch + 1, 0
            due = options.checkpoint_every and position.step % options.checkpoint_every == 0
            if validates or due or options.validate_every is not None:
                save(run, monitor, best=best)
                check_stop(run)  # after another epoch, the next step tells of a signal, and then saves
            run.since = time.perf_counter()
        finish_checkpoint(run)
    except (Stopped, UploadFailed, NotFiniteError):  # of all ranks together
        finish_checkpoint(run)
        raise
    finally:
        run.profiler.close()
        monitor.close()


def check_stop(run: Run) -> None:
    """Reset the watchdog; raise Stopped on every rank if any rank got a stop signal.

    Raises:
        Stopped, UploadFailed: as `raise_stopped`.
    """
    run.watchdog.beat()
    if run.world.sum(np.array([run.stops], dtype=np.int64))[0]:
        raise_stopped(run)


def raise_stopped(run: Run) -> NoReturn:
    """Stop on every rank, when all know that one of them asks for it (`Run.stops`).

    Raises:
        Stopped: by a signal.
        CheckpointNotWritten: a checkpoint could not be written.
        UploadFailed: it could not be sent to the URL of the run folder.
    """
    # Only the main rank knows of failures.
    of_upload = None if run.remote is None else run.remote.failure
    not_written, not_sent = run.world.broadcast_object((run.writer.failure, of_upload))
    if not_written:
        raise CheckpointNotWritten(not_written)
    if not_sent and run.remote is not None:  # it is None on all ranks or on none
        raise UploadFailed(run.remote.explain(not_sent))
    raise Stopped


def train_epoch(run: Run, monitor: Monitor) -> bool:
    """Train on the rest of the epoch at `run.position`.

    Returns:
        Whether the epoch was finished; not if the run ends within it (`train.max_steps`).

    Raises:
        Stopped, UploadFailed: as `raise_stopped`.
    """
    position, options = run.position, run.config.train
    run.model.train()
    batches = iter(run.train.epoch(position.epoch, position.epoch_step, device=run.world.device))
    for _ in range(position.epoch_step, run.train.steps_per_epoch):
        if position.step >= run.total_steps:
            break
        with run.profiler.step(position.step + 1):
            asked = time.perf_counter()
            batch = next(batches)
            info = train_step(run, batch, data_wait=time.perf_counter() - asked)
        run.watchdog.beat()
        position.step += 1
        position.epoch_step += 1
        if position.step % options.log_every == 0:
            flush(run, monitor)
        check = run.config.prototypes.check_every
        if check and run.world.size > 1 and position.step % check == 0:
            check_replicas(run, monitor)
        if info.stop:
            raise_stopped(run)
        epoch_ends = position.epoch_step == run.train.steps_per_epoch  # `fit` saves then
        if options.checkpoint_every and position.step % options.checkpoint_every == 0 and not epoch_ends:
            flush(run, monitor)
            save(run, monitor)
    flush(run, monitor)
    return position.epoch_step == run.train.steps_per_epoch


def validate_epoch(run: Run, monitor: Monitor) -> tuple[dict[str, Any] | None, bool]:
    """Evaluate on the validation data.

    Returns:
        The metrics, and whether this model is the best so far. Without validation data there are no metrics,
        and the latest always is the best.
    """
    position = run.position
    if run.val is None:
        position.validated = position.best_step = position.step
        return None, True
    wanted = monitor.wants_figures(run.config.train.pictures, last=position.step >= run.total_steps)
    with averaged_weights(run):
        collector = SnapshotCollector(run.model, run.val, run.world, run.world.broadcast_object(wanted))
        figures = evaluate(
            run.model,
            run.val,
            run.world,
            partial(check_stop, run),
            on_output=collector.add,
            threads=run.piece_threads,
        )
        snapshot = collector.gather()
    position.validated = position.step
    best = is_best(figures, position, run.best_by)
    if best:
        record_best(figures, position, run.best_by)
        position.best_step = position.step
    count_without_best(run, best)
    monitor.log_validation(position.step, figures, snapshot)
    return figures, best


@contextlib.contextmanager
def averaged_weights(run: Run) -> Iterator[None]:
    """Within the block, the model has the averages of its weights, if `train.ema_decay` keeps any."""
    if not run.config.train.ema_decay:
        yield
        return
    run.engine.swap_averages(run.model, run.optimizer)
    try:
        yield
    except (Stopped, UploadFailed, NotFiniteError):  # of all ranks together; `fit` then saves
        run.engine.swap_averages(run.model, run.optimizer)
        raise
    # Not in a `finally`: after an error of one rank alone, it would wait for the others in a collective.
    run.engine.swap_averages(run.model, run.optimizer)


def count_without_best(run: Run, best: bool) -> None:
    """Count validations without a new best checkpoint; `train.patience` of them end a run before its end."""
    position, patience = run.position, run.config.train.patience
    position.without_best = 0 if best else position.without_best + 1
    if patience is not None and position.without_best >= patience and position.step < run.total_steps:
        position.stopped_early = position.without_best


def reevaluate_best(run: Run, monitor: Monitor) -> None:
    """Evaluate the best checkpoint again, by what is another one since it was chosen (`run.changed`).

    Raises:
        Stopped: by a signal; no checkpoint has changed, so the next start does this again.
    """
    position = run.position
    if not position.best_step:
        return
    position.without_best = 0  # it was counted by other figures
    have = "has" if len(run.changed) == 1 else "have"
    changed = f"{' and '.join(run.changed)} {have} changed since step {position.step}"
    if run.val is None:
        forget_best(position)
        monitor.print(
            f"{changed}, there is none now: from the end of the next epoch, the latest checkpoint is the best"
        )
        return
    model, _ = best_model(run)
    figures = evaluate(model, run.val, run.world, partial(check_stop, run), threads=run.piece_threads)
    record_best(figures, position, run.best_by)
    value = figures[run.best_by]
    monitor.print(
        f"{changed}: later models are compared with the best checkpoint so far, of step "
        f"{position.best_step}: val {run.best_by} {'undefined' if value is None else f'{value:.4f}'}"
    )


# --- test ----------------------------------------------------------------------------------------


def best_model(run: Run) -> tuple[EmotionModel, dict[str, Any] | None]:
    """The best checkpoint's model, whole on every rank, and its `files.identity`; every rank calls.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    model = model_of_card(run.card).to(run.world.device).eval()

    def load() -> dict[str, Any] | None:
        folder = files.find_model(files.model_folder(run.dir) or run.checkpoints)
        checkpoint.load_weights(folder, model)
        return files.identity(folder)

    # Rank 0 reads it and broadcasts: other hosts may still see an older link `best` on a shared file system.
    identity = run_on_rank0(run.world, load)
    if run.world.size > 1:
        broadcast_from_rank0(run.engine.replicated_tensors(model))
    return model, identity


def test(run: Run) -> dict[str, Any]:
    """Evaluate the best checkpoint on validation and test data; write and print the results.

    Raises:
        Stopped: by a signal; no results are written then.
    """
    model, identity = best_model(run)
    results: dict[str, Any] = {
        "best_step": run.position.best_step or run.position.step,
        "checkpoint": identity,
        **describe_steps(run.position),
    }
    snapshots = {}
    wanted = run.world.broadcast_object(
        wants_figures(run.config.train.pictures, run.position.seconds, last=True)
    )
    for role, stream in (("val", run.val), ("test", run.test)):
        if stream is None:
            continue
        check_stop(run)
        file = predictions_file(run.dir, role)
        collector = SnapshotCollector(model, stream, run.world, wanted)
        results[role] = evaluate(
            model, stream, run.world, partial(check_stop, run), file, collector.add, run.piece_threads
        )
        snapshots[role] = collector.gather()
        results[role]["reliability_auroc"] = reliability_auroc(model, stream, run.world)
    if run.world.is_main:
        write_results(run.dir, results)
        log_results(run.dir, results, snapshots, run.trackers.log)
        best_by, network = "" if run.val is None else run.best_by, run.config.model.name
        print_results(run.dir, results, run.card["dataset"], best_by, network)
    return results
