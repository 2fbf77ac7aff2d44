"""Training, from the command line to the results: setup -> fit -> validate -> save -> test.

Reads top to bottom. Every rank runs every line; what only the main rank does (writing files, printing)
hides in `Monitor` and `checkpoint`. Per step there is one small reduction over ranks (`reduce_batch_counts`)
and no other wait for the device; figures stay on it until `log_every` steps have gathered.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config, Launch
from awtpn.config.settings import TrainConfig
from awtpn.distributed import doctor, replicas
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.cpu_threads import (
    ONE_PIECE,
    PieceThreads,
    add_gradients,
    choose_threads,
    draw_dropout,
    hold_memory,
    learning,
    make_piece_threads,
    usable_cores,
)
from awtpn.distributed.engine_state import is_deepspeed, unwrap, unwrap_optimizer
from awtpn.distributed.engines.deepspeed import patch_zero0
from awtpn.distributed.stopping import StopFlag, stop_on_signals
from awtpn.distributed.watchdog import Watchdog
from awtpn.distributed.world import World, init_engine, shutdown
from awtpn.learning import prototypes
from awtpn.learning.losses import total_loss
from awtpn.learning.optimizer import (
    learning_rate,
    make_optimizer,
    schedule_change,
    set_grad_norm,
    set_learning_rate,
)
from awtpn.learning.settings import TERMS
from awtpn.model import files
from awtpn.model.device import to_device_async
from awtpn.model.finite_outputs import NotFiniteError
from awtpn.model.network import AWTPN, ModelOutput
from awtpn.run import checkpoint, position
from awtpn.run.data import (
    balanced_weights,
    check_classes,
    check_feature_space,
    evaluation_stream,
    open_training_stream,
    remarks_on_splits,
    training_data,
    validation_data,
)
from awtpn.run.folder import exclusive_run, prepare_run_dir, resolve_resume, rewind_run_folder, run_on_rank0
from awtpn.run.position import Position
from awtpn.run.predictions import predictions_file
from awtpn.run.provenance import describe
from awtpn.run.results import write_results
from awtpn.tracking.monitor import Monitor, Status, log_results, print_results, write_status
from awtpn.tracking.snapshot import SnapshotCollector
from awtpn.tracking.tensorboard import wants_pictures
from awtpn.tracking.throughput import batch_cost, memory, throughput
from awtpn.training.damaged_data import account_for_damaged
from awtpn.training.evaluate import evaluate, reliability_auroc
from awtpn.training.global_batch import GlobalBatchInfo, micro_batch_losses, reduce_batch_counts
from awtpn.training.held_out import check_held_out
from awtpn.training.skipped_steps import (
    check_any_step_counted,
    check_finite_start,
    check_statistics,
    describe_steps,
)
from shards import FeatureBatch, FeatureStream
from shards.safe_io.printable import printable


@dataclass
class Run:
    """All that a running training holds."""

    config: Config
    accelerator: Accelerator
    world: World
    layout: Layout
    dir: Path
    train: FeatureStream
    val: FeatureStream | None
    test: FeatureStream | None
    model: nn.Module
    optimizer: torch.optim.Optimizer
    position: Position
    total_steps: int
    class_weights: NDArray[np.float64] | None
    card: dict[str, Any]
    stop: StopFlag
    watchdog: Watchdog
    threads: PieceThreads = ONE_PIECE
    """Those that share a micro-batch, where the engine is none and the device a CPU."""
    val_changed: bool = False
    """`position`'s best checkpoint was chosen on other validation data than `val`."""
    pending: list[dict[str, Any]] = field(default_factory=list)
    """Steps not yet written; their figures may still be on the device."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Name and cause of the utterances found damaged since this start."""
    since: float = 0.0
    """When the oldest pending step began."""
    counted: float = field(default_factory=time.perf_counter)
    """Up to when `position` counts the run's time."""

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"


class Stopped(Exception):
    """A signal told some rank to stop; raised on every rank at the same place."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Train as the command line says; returns what `results.json` holds (empty if stopped early)."""
    return run_training(*parse_command_line(argv))


def run_training(config: Config, launch: Launch) -> dict[str, Any]:
    """Train with this configuration; returns what `results.json` holds (empty if stopped early)."""
    with stop_on_signals() as stop:
        doctor.check_network()
        accelerator, world, layout = init_engine(config, launch)
        if world.device.type == "cpu" and world.engine in ("none", "ddp"):
            hold_memory()  # ZeRO is there to save memory instead
        run_dir = prepare_run_dir(config, world)
        with exclusive_run(run_dir, world):
            return train(setup(config, accelerator, world, layout, run_dir, stop))


def train(run: Run) -> dict[str, Any]:
    """Fit and test, while status.json says how it stands."""
    about = describe(run.world, run.position.threads) if run.world.is_main else {}

    def say(status: Status, **details: Any) -> None:
        if run.world.is_main:
            write_status(run.dir, status, **about, **details)

    say("running")
    try:
        fit(run)
        check_any_step_counted(run.position)
        results = test(run)
    except Stopped:
        say("preempted", **describe_steps(run.position), damaged=len(run.position.damaged))
        if run.world.is_main:
            print(f"stopped by a signal after step {run.position.step}; the run can be resumed")
        return {}
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):  # a full disk must not hide what happened
            # After a second Ctrl-C a rank may also learn by an error that another one has gone.
            if run.stop.at_once or isinstance(error, KeyboardInterrupt):
                say("preempted", step=saved_step(run))
            else:
                say("failed", error=f"{type(error).__name__}: {error}", **describe_steps(run.position))
        raise
    finally:
        run.watchdog.close()
    say("done", **describe_steps(run.position), damaged=len(run.position.damaged), **count_time(run))
    shutdown()
    return results


def saved_step(run: Run) -> int:
    """The step that the run would be resumed at."""
    latest = checkpoint.find_latest(run.checkpoints)
    return position.load_position(latest).step if latest else 0


# --- setup ---------------------------------------------------------------------------------------


def setup(
    config: Config,
    accelerator: Accelerator,
    world: World,
    layout: Layout,
    run_dir: Path,
    stop: StopFlag,
) -> Run:
    """Open the data, make or restore the model, and hand it to the engine."""
    data = config.data
    resumed, position = run_on_rank0(world, lambda: resolve_resume(config, run_dir))

    train = open_training_stream(config, world, position)
    check_classes(train)
    val, test = (evaluation_stream(data, role, config.model.modalities, world) for role in ("val", "test"))
    trained_on = training_data(config, train)
    if position.data and position.data != trained_on:
        raise ValueError(
            f"{resumed} was trained on other utterances than data.train and data.select.train name now: "
            "choose another run.dir, or start from its weights with --run.init_from"
        )

    validated_on = world.broadcast_object(validation_data(config, val))
    # Old checkpoints record none: nothing is known to have changed.
    val_changed = bool(position.validation_data) and position.validation_data != validated_on
    if val_changed and val is not None:
        position.validated = 0  # what was validated last, and possibly the run's end, counts no more

    # Every rank builds the same weights from the same seed; rank 0's are broadcast all the same below.
    torch.manual_seed(config.run.seed)
    dims = {name: modality.dim for name, modality in train.modalities.items()}
    model = AWTPN(config.model, dims, train.classes, config.prototypes.update == "gradient").to(world.device)
    model.provenance = train.manifest.provenance
    for other in (val, test):
        if other is not None:
            check_feature_space(model, other)
    for warning in run_on_rank0(world, lambda: check_held_out(train, val, test)):
        if world.is_main:
            print(warning)
    if resumed:
        checkpoint.load_weights(resumed, model)
    else:
        initialize(model, config, train, world)
    if world.size > 1:
        replicas.broadcast_from_rank0(replicas.replicated_tensors(model))
    check_finite_start(model, resumed)

    optimizer = make_optimizer(model, config.optim)
    if config.train.compile:
        model.compile(dynamic=True)
    # Not the data (its order is the plan's) nor the schedule (a function of the step).
    # The model is on its device already. Accelerate would first look for DTensors in it, even in one process,
    # and importing them takes a third of a second. (DeepSpeed refuses the option.)
    placement = [False, True] if world.engine == "none" else None
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer, device_placement=placement)
    if world.engine == "zero0":
        patch_zero0(wrapped, wrapped_optimizer, config.train.precision)
    if resumed:
        checkpoint.load_optimizer(resumed, wrapped, wrapped_optimizer)

    threads, pieces = set_threads(config, world, layout, position)
    balanced = config.loss.class_weights == "balanced"
    class_weights = run_on_rank0(world, lambda: balanced_weights(train)) if balanced else None
    # Only now: a start that is refused must not spoil the records of the run that the folder may hold.
    total = total_steps(config.train, position, train.steps_per_epoch)
    run_on_rank0(
        world,
        lambda: rewind_run_folder(
            config, run_dir, resumed, position, done=position.step >= total and not val_changed
        ),
    )
    return Run(
        config=config,
        accelerator=accelerator,
        world=world,
        layout=layout,
        dir=run_dir,
        train=train,
        val=val,
        test=test,
        model=wrapped,
        optimizer=wrapped_optimizer,
        position=replace(
            position,
            seed=config.run.seed,
            global_batch_size=layout.global_batch,
            streams=train.streams,
            data=trained_on,
            threads=threads,
            validation_data=validated_on,
        ),
        total_steps=total,
        class_weights=class_weights,
        card=model.card() | {"dataset": train.name},
        stop=stop,
        watchdog=watch(config, world, run_dir),
        threads=pieces,
        val_changed=val_changed,
    )


def set_threads(config: Config, world: World, layout: Layout, position: Position) -> tuple[int, PieceThreads]:
    """Threads of each rank's CPU work, and those that share a micro-batch (on CPUs, without an engine)."""
    asked, recorded = config.train.threads, position.threads
    if asked:
        torch.set_num_threads(asked)
    if world.device.type != "cpu":
        return 0, ONE_PIECE  # what a GPU adds up does not depend on them
    if world.engine == "none" and not config.train.compile:
        threads = choose_threads(asked, min(recorded, usable_cores()), world.size, os.environ)
        pieces = make_piece_threads(threads, layout.micro_batch, config.model, config.loss)
    else:
        threads, pieces = torch.get_num_threads(), ONE_PIECE
    if recorded and threads != recorded and world.is_main:
        print(f"going on with {threads} threads instead of {recorded}: equal to rounding, not bit for bit")
    return threads, pieces


def total_steps(options: TrainConfig, position: Position, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run: of its epochs so far, of whatever batch, and of those to come."""
    by_epochs = position.step - position.epoch_step + (options.epochs - position.epoch) * steps_per_epoch
    return min(by_epochs, options.max_steps or by_epochs)


def watch(config: Config, world: World, run_dir: Path) -> Watchdog:
    """A watchdog that leaves this rank's stacks in the run folder."""

    def on_hang() -> None:
        if world.is_main:
            waited = f"no progress for {config.train.timeout:.0f} s"
            write_status(run_dir, "failed", error=f"{waited}; the ranks' stacks are in stacks/")

    return Watchdog(config.train.timeout, run_dir / "stacks" / f"rank-{world.rank}.txt", on_hang)


def initialize(model: AWTPN, config: Config, train: FeatureStream, world: World) -> None:
    """Feature statistics, then weights from another model or prototypes from data, where asked."""
    if config.data.standardize:
        for name, sums in train.statistics().items():
            count, total, squares = (
                world.sum(np.atleast_1d(np.asarray(x, dtype=np.float64)))
                for x in (sums.count, sums.sum, sums.sum_of_squares)
            )
            mean = total / np.maximum(count, 1)
            std = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
            check_statistics(f"{train.url}, split {train.split}: {name}", mean, std)
            model.set_statistics(name, torch.from_numpy(mean).float(), torch.from_numpy(std).float())
    if config.run.init_from:
        checkpoint.init_from(files.find_model(Path(config.run.init_from)), model)
    if config.prototypes.init == "data":
        # The first global batches of the plan: the same utterances for every layout.
        steps = min(
            train.steps_per_epoch, math.ceil(prototypes.INIT_UTTERANCES / config.train.global_batch_size)
        )
        batches = (batch for batch, _ in zip(train.epoch(0), range(steps), strict=False))
        prototypes.initialize_from_data(
            model,
            batches,
            steps,
            config.train.global_batch_size,
            world.device,
            config.run.seed,
            world.all_gather_object,
        )


# --- fit -----------------------------------------------------------------------------------------


def fit(run: Run) -> None:
    """Train to the end.

    Raises:
        Stopped: by a signal; what was done is in a checkpoint.
    """
    position, options = run.position, run.config.train
    check_stop(run)
    monitor = Monitor(run.dir, run.world.is_main, position.step, run.total_steps)
    try:
        announce(run, monitor)
        table = replicas.gather_prototypes(unwrap(run.model)).numpy()
        monitor.describe(position.step, run.config, run.train, run.world, position.threads, table)
        if run.val_changed:
            rejudge_best(run, monitor)
        run.since = time.perf_counter()
        while position.step < run.total_steps or position.validated < position.step:
            try:
                whole = train_epoch(run, monitor)
                ends = position.step >= run.total_steps
                validate = ends or (position.epoch + 1) % options.validate_every == 0
                best = validate and validate_epoch(run, monitor)
            # Within an epoch, or a validation, with which the run then goes on.
            except (Stopped, NotFiniteError):
                flush(run, monitor)
                save(run)
                raise
            if whole:
                position.epoch, position.epoch_step = position.epoch + 1, 0
            save(run, best=best)
            check_stop(run)
            run.since = time.perf_counter()
    finally:
        monitor.close()


def check_stop(run: Run) -> None:
    """Between two pieces of work: tell the watchdog, and stop on all ranks where some rank was told to."""
    run.watchdog.beat()
    if run.world.sum(np.array([run.stop.is_set()], dtype=np.int64))[0]:
        raise Stopped


def announce(run: Run, monitor: Monitor) -> None:
    """One paragraph on what is about to happen."""
    train, world, layout = run.train, run.world, run.layout
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in unwrap(run.model).parameters())
    start_at = f", resumed at step {run.position.step}" if run.position.step else ""
    monitor.say(
        f"{train.num_utterances} utterances, {len(train.classes)} classes; {parameters:,} parameters, "
        f"{run.config.train.precision}, engine {world.engine} on {world.device}\n"
        f"{world.size} ranks x micro-batch {layout.micro_batch} x accumulation {layout.accumulation} "
        f"= {layout.global_batch} utterances a step; {run.total_steps} steps{start_at}\n"
        f"run folder {run.dir}; watch it with: tensorboard --logdir {quote(str(run.dir.parent))}"
    )
    for line in remarks_on_splits(train, (run.val, run.test)):
        monitor.say(line)
    if told := schedule_change(run.config.optim, monitor.last_lr, run.position.step, run.total_steps):
        monitor.say(told)
    if run.val is None and run.test is None:
        fix = "give data.val or data.test, or data.select, or use launch/cross_validate.py --by COLUMN"
        monitor.say(f"warning: nothing to validate or test on, so there will be no results: {fix}")


def train_epoch(run: Run, monitor: Monitor) -> bool:
    """Train on the rest of the epoch at `run.position`; False if the run ends within it (max_steps)."""
    position, options = run.position, run.config.train
    run.model.train()
    batches = iter(run.train.epoch(position.epoch, position.epoch_step, device=run.world.device))
    for _ in range(position.epoch_step, run.train.steps_per_epoch):
        if position.step >= run.total_steps:
            break
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
            raise Stopped
        ends = position.epoch_step == run.train.steps_per_epoch  # then the epoch's own checkpoint follows
        if options.checkpoint_every and position.step % options.checkpoint_every == 0 and not ends:
            flush(run, monitor)
            save(run)
    flush(run, monitor)
    return position.epoch_step == run.train.steps_per_epoch


def train_step(run: Run, batch: FeatureBatch, data_wait: float) -> GlobalBatchInfo:
    """One optimizer step: agree, accumulate micro-batches, update; its figures join `run.pending`."""
    config, world, position = run.config, run.world, run.position
    info = reduce_batch_counts(
        batch,
        config.loss,
        world,
        classes=len(run.train.classes),
        class_weights=run.class_weights,
        modalities=config.model.modalities,
        global_batch=run.layout.global_batch,
        accumulation=run.layout.accumulation,
        seed=config.run.seed,
        step=position.step,
        stop=run.stop.is_set(),
    )
    lr = learning_rate(config.optim, position.step, run.total_steps)
    set_learning_rate(run.optimizer, lr)
    terms, grad_norm, broken = forward_backward(run, batch, info)
    run.pending.append(
        {
            "step": position.step + 1,
            "epoch": position.epoch,
            "terms": terms,
            "broken": broken,
            "keys": batch.key,
            "lr": lr,
            "grad_norm": grad_norm,
            "fingerprint": f"{info.fingerprint:016x}",
            "utterances": info.utterances,
            "data_wait": data_wait,
            "damaged": batch.damaged,
            "work": batch_cost(batch, unwrap(run.model)),
        }
    )
    return info


def forward_backward(run: Run, batch: FeatureBatch, info: GlobalBatchInfo) -> tuple[Tensor, Any, Tensor]:
    """Gradients of the global batch's loss, and the update, which a gradient that is not finite prevents.

    Returns:
        This rank's terms [6], the gradient's norm, and which of its utterances have logits that are not
        finite [B]; on the device.
    """
    config, accelerator, world = run.config, run.accelerator, run.world
    deepspeed = is_deepspeed(run.model)
    # Shares add up to the loss, but DDP and DeepSpeed average over ranks, DeepSpeed over micro-batches too.
    scale = world.size * (run.layout.accumulation if deepspeed else 1)
    weights = None if run.class_weights is None else to_device_async(run.class_weights, world.device)
    ema = config.prototypes.update == "ema"
    table = unwrap(run.model).tpn.prototypes
    sums = torch.zeros(len(table), table.shape[1] + 1, device=world.device) if ema else None

    def forward(micro: FeatureBatch, first: int, dropout: Any = None) -> tuple[ModelOutput, Tensor, Tensor]:
        output = run.model(micro.features, dropout)
        shares = micro_batch_losses(output, micro, first, info, config.loss, weights, run.layout.global_batch)
        return output, shares, total_loss(shares, config.loss) * scale

    terms = torch.zeros(len(TERMS), device=world.device)
    broken = []
    micros = batch.split(run.layout.accumulation)
    first = 0
    for i, micro in enumerate(micros):
        last = i == len(micros) - 1
        accelerator.sync_gradients = last
        seed_randomness(config.run.seed, run.position.step, i, world.rank)
        pieces = run.threads.cut(micro)
        if len(pieces) > 1:
            found = backward_in_pieces(run, pieces, first, forward)
        else:
            # DeepSpeed is told by sync_gradients alone; its no_sync refuses ZeRO.
            with contextlib.nullcontext() if last or deepspeed else accelerator.no_sync(run.model):
                output, shares, loss = forward(micro, first)
                accelerator.backward(loss)
            found = [(output, shares)]
        for piece, (output, shares) in zip(pieces, found, strict=True):
            terms += shares.detach().float()
            broken.append(~output.logits.detach().isfinite().all(-1))
            if sums is not None:
                sums += prototypes.class_sums(output, piece.label, table, config.model.prototypes_per_class)
        first += len(micro)

    # Infinity clips nothing and still yields the norm.
    largest = config.optim.grad_clip or math.inf
    if deepspeed:  # which has clipped and stepped already
        grad_norm = accelerator.clip_grad_norm_(run.model.parameters(), largest)
    else:
        # As Accelerate's own function, which would import DTensors first (a third of a second).
        accelerator.unscale_gradients()
        grad_norm = nn.utils.clip_grad_norm_(run.model.parameters(), largest)
        set_grad_norm(unwrap_optimizer(run.optimizer), grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if sums is not None:
        if world.size > 1:
            torch.distributed.all_reduce(sums)
        # A step that is left out moves nothing: without counts, prototypes stay.
        finite = sums.isfinite().all() & torch.as_tensor(0.0 if grad_norm is None else grad_norm).isfinite()
        sums = torch.where(finite, sums, 0.0)
        prototypes.move_to_class_means(table, sums, config.prototypes.ema_decay)
    return terms, grad_norm, torch.cat(broken)


def backward_in_pieces(
    run: Run,
    pieces: list[FeatureBatch],
    first: int,
    forward: Callable[..., tuple[ModelOutput, Tensor, Tensor]],
) -> list[tuple[ModelOutput, Tensor]]:
    """Forward and backward of a micro-batch whose pieces each have a thread; gradients join the parameters'.

    Args:
        first: where the micro-batch begins in the rank's batch.
        forward: of a piece, where it begins and its dropout: the output, the terms and the loss.

    Returns:
        Each piece's output and terms, in their order.
    """
    model = unwrap(run.model)
    parameters = learning(model)

    def work(piece: FeatureBatch, begin: int, dropout: Any) -> tuple[ModelOutput, Tensor, tuple[Tensor, ...]]:
        output, shares, loss = forward(piece, begin, dropout)
        # Not backward(), by which threads would add to one gradient in the order in which they come.
        return output, shares, torch.autograd.grad(loss, parameters)

    dtype = torch.bfloat16 if run.config.train.precision == "bf16" else torch.float32
    dropout = draw_dropout(pieces, model.config, dtype)
    begins = [first + sum(map(len, pieces[:i])) for i in range(len(pieces))]
    found = run.threads.map(work, pieces, begins, dropout)
    add_gradients(parameters, [gradients for _, _, gradients in found])
    return [(output, shares) for output, shares, _ in found]


def seed_randomness(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Dropout depends on where in the run it happens, and on nothing that came before: resuming is exact."""
    words = np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def flush(run: Run, monitor: Monitor) -> None:
    """Fetch the pending steps' figures from the device, sum them over ranks and write them."""
    if not run.pending:
        return
    steps, run.pending = run.pending, []
    terms = torch.stack([s["terms"] for s in steps]).double().cpu().numpy()
    waits = np.array([s["data_wait"] for s in steps]) / run.world.size
    damaged = [len(s["damaged"]) for s in steps]
    reduced = run.world.sum(np.column_stack([terms, waits, damaged, np.stack([s["work"] for s in steps])]))
    seconds, run.since = time.perf_counter() - run.since, time.perf_counter()
    utterances, (wait, lost, *work) = sum(s["utterances"] for s in steps), reduced[:, len(TERMS) :].sum(0)
    rate = utterances / max(seconds, 1e-9)
    weights = np.array(run.config.loss.weights())
    for s, row in zip(steps, reduced, strict=True):
        loss = float(row[: len(TERMS)] @ weights)
        grad_norm = math.nan if s["grad_norm"] is None else float(s["grad_norm"])
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        figures = {"loss": loss, **dict(zip(TERMS, map(float, row), strict=False)), "grad_norm": grad_norm}
        monitor.log_step(
            {"step": s["step"], "epoch": s["epoch"], "lr": s["lr"], "fingerprint": s["fingerprint"]}
            # JSON has no NaN.
            | {name: value if math.isfinite(value) else None for name, value in figures.items()}
            | {"skipped": not finite, "damaged": int(row[len(TERMS) + 1])}
            | {"utterances_per_s": rate, "data_wait": row[len(TERMS)]}
        )
        if not finite:
            run.position.left_out += 1
            account_for_skipped(run, monitor, s, loss)
    if lost:  # on some rank; the same sum on all
        found = run.world.all_gather_object(
            {name: cause for s in steps for name, cause in s["damaged"].items()}
        )
        everywhere = {name: cause for of_rank in found for name, cause in of_rank.items()}
        budget, url = run.config.data.damaged_budget, run.train.url
        for line in account_for_damaged(everywhere, run.damaged, run.position, budget, url):
            monitor.say(line)
    monitor.log_pace(s["step"], throughput(seconds, utterances, wait, work) | memory(run.world.device))
    monitor.flush(loss=f"{loss:.4f}", utt_s=f"{rate:.0f}")


def account_for_skipped(run: Run, monitor: Monitor, step: dict[str, Any], loss: float) -> None:
    """Account for a step that changed nothing: name its utterances, and stop once the budget is spent.

    Every rank comes here for the same steps, since loss and norm are reduced. Under fp16 a finite loss with
    an infinite gradient is the loss scale finding its range, and costs nothing.
    """
    if run.config.train.precision == "fp16" and math.isfinite(loss):
        return
    own = [key for key, broken in zip(step["keys"], step["broken"].tolist(), strict=True) if broken]
    named = [
        f"{printable(key)} (rank {rank})"
        for rank, keys in enumerate(run.world.all_gather_object(own))
        for key in keys
    ]
    what = ", ".join(named[:8]) + (" ..." if len(named) > 8 else "") if named else "no utterance alone"
    run.position.skipped += 1
    monitor.say(f"step {step['step']} left out: loss {loss} or its gradient is not finite, broken by: {what}")
    if run.position.skipped > run.config.train.skip_budget:
        raise ValueError(
            f"{run.position.skipped} steps were not finite, more than train.skip_budget "
            f"{run.config.train.skip_budget}; the last, step {step['step']}, was broken by: {what}. Check "
            "these utterances' features, or lower optim.lr"
        )


def check_replicas(run: Run, monitor: Monitor) -> None:
    """Compare the prototype table and all replicated weights over ranks; stop, or heal where asked."""
    tensors = replicas.replicated_tensors(unwrap(run.model))
    found = replicas.find_divergent_replicas(tensors, run.world.cpu_group)
    if not found:
        return
    named = [f"{name} on rank {rank}" for rank, name in found]
    what = ", ".join(named[:5]) + (" ..." if len(named) > 5 else "")
    if run.config.prototypes.on_drift == "error":
        raise RuntimeError(f"after step {run.position.step} ranks hold different weights: {what}")
    if any(rank == 0 for rank, _ in found):
        raise RuntimeError(f"after step {run.position.step} rank 0 itself differs from the others: {what}")
    replicas.resync_from_rank0(tensors, sorted({name for _, name in found}), run.optimizer)
    monitor.say(f"healed from rank 0 after step {run.position.step}: {what}")


def validate_epoch(run: Run, monitor: Monitor) -> bool:
    """Validate; True if this is the best model so far (without validation data the latest is)."""
    position = run.position
    if run.val is None:
        position.validated = position.best_step = position.step
        return True
    wanted = monitor.wants_pictures(run.config.train.pictures, last=position.step >= run.total_steps)
    collector = SnapshotCollector(run.model, run.val, run.world, run.world.broadcast_object(wanted))
    figures = evaluate(
        run.model, run.val, run.world, partial(check_stop, run), look=collector.add, threads=run.threads
    )
    position.validated = position.step
    found = figures["w-F1"], -figures["cross-entropy"]
    best = found > (position.best_f1, -position.best_entropy)  # of equals the surer one
    if best:
        position.best_f1, position.best_entropy = figures["w-F1"], figures["cross-entropy"]
        position.best_step = position.step
    monitor.log_validation(position.step, position.epoch, figures, best, collector.gather())
    return best


def rejudge_best(run: Run, monitor: Monitor) -> None:
    """Give the best checkpoint its figures on the validation data of now; older ones cannot be compared.

    Raises:
        Stopped: by a signal; no checkpoint has changed, so the next start comes here again.
    """
    position = run.position
    if not position.best_step:
        return
    changed = f"another set of validation data than before step {position.step}"
    if run.val is None:
        position.best_f1, position.best_entropy = -1.0, 0.0
        monitor.say(
            f"{changed}, namely none: from the next epoch's end on, the latest checkpoint is the best"
        )
        return
    model, _ = best_model(run)
    figures = evaluate(model, run.val, run.world, partial(check_stop, run), threads=run.threads)
    position.best_f1, position.best_entropy = figures["w-F1"], figures["cross-entropy"]
    monitor.say(
        f"{changed}: best is chosen anew, beginning with the best checkpoint so far, of step "
        f"{position.best_step}: val w-F1 {figures['w-F1']:.4f}"
    )


def save(run: Run, best: bool = False) -> None:
    """Save a checkpoint on all ranks, and mark it as the best where it is.

    Raises:
        RuntimeError: it could not be written (a full disk), on every rank; earlier checkpoints are untouched.
    """
    root, error = run.checkpoints, None
    run.watchdog.beat()
    count_time(run)
    try:
        checkpoint.save(root, run.model, run.optimizer, run.position, run.card, run.world.is_main, best)
        if run.world.is_main:
            checkpoint.prune(root, run.config.train.keep_last)
    except (OSError, SafetensorError) as failure:  # the main rank alone writes; the others must know
        error = str(failure)
    if error := run.world.broadcast_object(error):
        latest = checkpoint.find_latest(root)
        kept = f"{latest} is whole" if latest else "there is no earlier one"
        raise RuntimeError(
            f"the checkpoint of step {run.position.step} could not be written: {error}; {kept}"
        )


def count_time(run: Run) -> dict[str, float]:
    """Add the time since it was last counted to `run.position`; returns what the run took so far."""
    position, now = run.position, time.perf_counter()
    position.seconds += now - run.counted
    position.rank_seconds += run.world.size * (now - run.counted)
    run.counted = now
    return {"seconds": position.seconds, "rank_seconds": position.rank_seconds}


# --- test ----------------------------------------------------------------------------------------


def best_model(run: Run) -> tuple[AWTPN, dict[str, Any] | None]:
    """The best checkpoint's model, whole on every rank, and its `checkpoint.identity`; every rank calls.

    Raises:
        ValueError: there is none, or it is not as it was saved.
    """
    model = AWTPN.from_card(run.card).to(run.world.device).eval()

    def load() -> dict[str, Any] | None:
        folder = files.find_model(files.model_folder(run.dir) or run.checkpoints)
        checkpoint.load_weights(folder, model)
        return files.identity(folder)

    # The main rank alone knows for sure what `best` names: other hosts may still see an older link.
    identity = run_on_rank0(run.world, load)
    if run.world.size > 1:
        replicas.broadcast_from_rank0(replicas.replicated_tensors(model))
    return model, identity


def test(run: Run) -> dict[str, Any]:
    """Evaluate the best checkpoint on validation and test data; write and print the results.

    Raises:
        Stopped: by a signal; nothing of the results is written.
    """
    model, measured = best_model(run)
    results: dict[str, Any] = {
        "best_step": run.position.best_step or run.position.step,
        "checkpoint": measured,
        **describe_steps(run.position),
    }
    snapshots = {}
    wanted = run.world.broadcast_object(
        wants_pictures(run.config.train.pictures, run.position.seconds, last=True)
    )
    for role, stream in (("val", run.val), ("test", run.test)):
        if stream is None:
            continue
        check_stop(run)
        file = predictions_file(run.dir, role)
        collector = SnapshotCollector(model, stream, run.world, wanted)
        results[role] = evaluate(
            model, stream, run.world, partial(check_stop, run), file, collector.add, run.threads
        )
        snapshots[role] = collector.gather()
        results[role]["reliability_auroc"] = reliability_auroc(model, stream, run.world)
    if run.world.is_main:
        write_results(run.dir, results)
        log_results(run.dir, results, snapshots)
        print_results(run.dir, results, run.card["dataset"])
    return results
