"""From a configuration to a `Run` that is ready to train: data, model, weights, engine, threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from awtpn.config.schema import Config
from awtpn.config.settings import TrainConfig
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.cpu_threads import (
    ONE_PIECE,
    PieceThreads,
    choose_threads,
    make_piece_threads,
)
from awtpn.distributed.engines import ENGINES, Engine, unwrap
from awtpn.distributed.engines.base import unwrap_optimizer
from awtpn.distributed.replicas import broadcast_from_rank0
from awtpn.distributed.stopping import StopFlag
from awtpn.distributed.watchdog import Watchdog
from awtpn.distributed.world import World
from awtpn.learning import prototypes
from awtpn.learning.augmentation import check_augment
from awtpn.learning.data_scales import (
    encode_batches,
    mean_and_std,
    set_scales_from_data,
    set_statistics_of_encoders,
)
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.part_norms import PartNorms, part_of
from awtpn.metrics.summary import check_best_by
from awtpn.model import files
from awtpn.model.base import EmotionModel
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.opening import open_encoder
from awtpn.model.models import build_model
from awtpn.model.network import AWTPN
from awtpn.model.task import Task
from awtpn.run import checkpoint
from awtpn.run.data import (
    balanced_weights,
    check_feature_space,
    check_targets,
    evaluation_stream,
    known_values,
    open_training_stream,
    rare_labels,
    task_of_data,
    training_data,
    validation_data,
)
from awtpn.run.demos import located_encoder
from awtpn.run.folder import agree_on_resume, rewind_run_folder, run_on_rank0
from awtpn.run.init_from import init_from
from awtpn.run.position import Position
from awtpn.run.remote.commands import run_folder_on_ranks
from awtpn.tracking.monitor import write_status
from awtpn.tracking.profile import StepProfiler, check_window
from awtpn.tracking.services import check_installed
from awtpn.training.held_out import check_held_out
from awtpn.training.run_state import Run
from awtpn.training.skipped_steps import check_finite_start, check_statistics
from shards import FeatureBatch, FeatureStream
from shards.cores import usable_cores
from shards.safe_io.printable import printable

VALIDATIONS = 20  # of a run, where `train.validate_every` is null

# Passes over the training utterances, where `train.epochs` is not given and they make enough steps.
EPOCHS = 10

# With encoders, utterances in plan order from which a start takes feature statistics, prototypes and scales.
ENCODED_UTTERANCES = 256


def setup(
    config: Config,
    accelerator: Accelerator,
    world: World,
    layout: Layout,
    run_dir: Path,
    stop: StopFlag,
) -> Run:
    """Open the data, make or restore the model, and wrap it by the engine.

    Raises:
        ValueError: data, model and checkpoint do not belong together; names the fix. The run folder is
            unchanged then.
    """
    engine = ENGINES[world.engine]
    run_on_rank0(world, lambda: check_installed(config.track.services))
    resumed, position = agree_on_resume(config, run_dir, world)

    train = open_training_stream(config, world, position)
    task = run_on_rank0(world, lambda: learnable_task(config, train))
    best_by = check_best_by(config.train.best_by, task.type, task.ranges)
    modalities = list(config.model.modalities)
    val, test = (
        evaluation_stream(config.data, role, modalities, world, task, config.encoder)
        for role in ("val", "test")
    )
    trained_on = training_data(config.data.select, train)
    if position.data and position.data != trained_on:
        raise ValueError(
            f"{resumed} was trained on other utterances than data.train and data.select.train name now, or "
            "on another data.target: choose another run.dir, or start from its weights with --run.init_from"
        )
    check_patience(config.train, position, val)
    validated_on = world.broadcast_object(validation_data(config.data.select, val))
    # Old checkpoints record no validation data: nothing is known to have changed.
    then_and_now = {
        "the validation data": (position.validation_data, validated_on),
        "train.best_by": (position.best_by, best_by),
    }
    changed = [what for what, (then, now) in then_and_now.items() if then not in ("", now)]
    if changed and val is not None:
        position.validated = 0  # validate again, even where the run had ended

    model = make_model(config, train, task, world)
    for other in (val, test):
        if other is not None:
            check_feature_space(model, other)
    for warning in run_on_rank0(world, lambda: check_held_out(train, val, test)):
        if world.is_main:
            print(warning)
    if resumed:
        checkpoint.check_base_models(resumed, model)
        checkpoint.load_weights(resumed, model, to_train=True)
        continues = False
    else:
        continues = initialize(model, config, train, world)
    if world.size > 1:
        broadcast_from_rank0(engine.replicated_tensors(model))
    check_finite_start(model, resumed)

    # Counted before an engine may partition the model.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    optimizer = make_optimizer(model, config.optim, config.train.ema_decay)
    if config.train.compile:
        model.compile(dynamic=True)
    wrapped, wrapped_optimizer = engine.wrap(accelerator, model, optimizer, config.train.precision)
    if resumed:
        checkpoint.load_optimizer(resumed, wrapped, wrapped_optimizer, engine=engine)
    norms = measure_norms(engine, wrapped, wrapped_optimizer) if config.track.norms_every else None

    threads, pieces = set_threads(config, world, layout, position)
    balanced = config.loss.class_weights == "balanced"
    class_weights = run_on_rank0(world, lambda: balanced_weights(train)) if balanced else None
    # Only now: a start that is refused must not change the records of a run in this folder.
    total = total_steps(config.train, position, train.steps_per_epoch)
    check_window(config.train.profile, total)
    done = position.step >= total and not changed
    run_on_rank0(world, lambda: rewind_run_folder(config, run_dir, resumed, position, done=done))
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
        validate_every=epochs_between_validations(config.train, position, total, train.steps_per_epoch),
        class_weights=class_weights,
        card=model.card() | {"dataset": train.name},
        stop=stop,
        watchdog=start_watchdog(config.train.timeout, world, run_dir),
        piece_threads=pieces,
        parameters=parameters,
        best_by=best_by,
        changed=changed,
        continues=continues,
        norms=norms,
        profiler=StepProfiler(config.train.profile, run_dir, world.rank),
    )


def measure_norms(engine: Engine, model: nn.Module, optimizer: torch.optim.Optimizer) -> PartNorms:
    """What measures the norms of the model's parts; the engine has wrapped model and optimizer."""
    inner = unwrap(model)
    part = partial(part_of, modalities=list(inner.feature_dims), heads=inner.heads)
    trained = [name for name, parameter in inner.named_parameters() if parameter.requires_grad]
    return PartNorms(
        unwrap_optimizer(optimizer),
        engine.weight_slices(model, optimizer),
        part,
        sorted({part(name) for name in trained}),
    )


def learnable_task(config: Config, train: FeatureStream) -> Task:
    """The task of this run; one process finds it for all ranks, since it may read all indexes.

    Raises:
        ValueError: there is nothing to learn, or a setting does not belong to the task.
    """
    values = known_values(train)
    check_targets(train, values)
    task = task_of_data(config.task, train, values)
    config.check_task(task.type)
    unweighted = task.type == "multilabel" and config.loss.class_weights == "none"
    if unweighted and (rare := rare_labels(train, values)):
        told = f"few utterances have {', '.join(rare)}"
        print(printable(f"{told}: with --loss.class_weights balanced the model finds more of them"))
    return task


def make_model(config: Config, train: FeatureStream, task: Task, world: World) -> EmotionModel:
    """The model with its random weights."""
    # The same seed gives every rank the same weights; rank 0's are broadcast before training all the same.
    torch.manual_seed(config.run.seed)
    encoders = open_encoders(config, train)
    dims = {name: modality.dim for name, modality in train.modalities.items()}
    dims |= {name: encoder.dim for name, encoder in encoders.items()}
    learnable = config.prototypes.update == "gradient"
    model = build_model(config.model, dims, train.classes, learnable, task, encoders).to(world.device)
    model.provenance = train.manifest.provenance
    return model


def open_encoders(config: Config, train: FeatureStream) -> dict[str, Encoder]:
    """The encoders of the modalities of `encoder` that the run uses; {} where the data has features."""
    found = {}
    for name, settings in config.encoder.items():
        recording = train.modalities[name].recording
        assert recording is not None  # `open_stream` has refused features
        found[name] = open_encoder(name, located_encoder(settings, name, config.data.cache_dir), recording)
    check_augment(config.augment, {name: encoder.recording for name, encoder in found.items()})
    return found


def initialize(model: EmotionModel, config: Config, train: FeatureStream, world: World) -> bool:
    """Set feature statistics, weights of another model and prototypes from data, each where asked.

    Returns:
        Whether the model answers as the one of `run.init_from`: it continues that one's training with the
        encoders of its features.
    """
    if config.data.standardize:
        set_statistics(model, train, world)
    continued: list[str] = []
    if config.run.init_from:
        options = config.run.storage_options
        source = run_folder_on_ranks(config.run.init_from, "best", options, world)
        copied = init_from(files.find_model(source), model)
        continued = copied.statistics
        if world.is_main:
            print(printable(copied.line))
        if copied.everything:
            return True
    steps = steps_of_start(config, train)
    encoded: list[FeatureBatch] = []
    if len(model.encoders):
        # Once for all that follows: encoders take most of the time of a start.
        model.eval()
        encoded = list(encode_batches(model, first_batches(train, steps), world.device))
        model.train()
        if config.data.standardize:
            fresh = [m for m in model.encoders if m not in continued]
            set_statistics_of_encoders(model, fresh, encoded, world.sum)
    if not isinstance(model, AWTPN):
        return False
    # A rank's share may have no utterances, and then none are encoded.
    batches = (lambda: encoded) if len(model.encoders) else partial(first_batches, train, steps)
    if config.prototypes.init == "data":
        prototypes.initialize_from_data(
            model,
            batches(),
            steps,
            config.train.global_batch_size,
            world.device,
            config.run.seed,
            world.all_gather_object,
        )
    if model.statistics or model.spread:
        set_scales_from_data(model, batches(), world.device, world.sum)
    return False


def steps_of_start(config: Config, train: FeatureStream) -> int:
    """How many global batches of the plan a start reads, for what a model takes from its data."""
    utterances = ENCODED_UTTERANCES if config.encoder else prototypes.INIT_UTTERANCES
    return min(train.steps_per_epoch, math.ceil(utterances / config.train.global_batch_size))


def first_batches(train: FeatureStream, steps: int) -> Iterator[FeatureBatch]:
    """This rank's share of the first global batches of the plan."""
    return (batch for batch, _ in zip(train.epoch(0), range(steps), strict=False))


def set_statistics(model: EmotionModel, train: FeatureStream, world: World) -> None:
    """Give the model each feature's mean and standard deviation over the training utterances of all ranks."""
    for name, sums in train.statistics().items():
        count, total, squares = (
            world.sum(np.atleast_1d(np.asarray(x, dtype=np.float64)))
            for x in (sums.count, sums.sum, sums.sum_of_squares)
        )
        mean, std = mean_and_std(count, total, squares)
        check_statistics(f"{train.url}, split {train.split}: {name}", mean, std)
        model.set_statistics(name, torch.from_numpy(mean).float(), torch.from_numpy(std).float())


def set_threads(config: Config, world: World, layout: Layout, position: Position) -> tuple[int, PieceThreads]:
    """Set the threads of this rank's CPU work.

    Returns:
        Their number (0 on a GPU), and the threads that share a micro-batch: ONE_PIECE if the engine or
        torch.compile does not allow that.
    """
    asked, recorded = config.train.threads, position.threads
    if asked:
        torch.set_num_threads(asked)
    if world.device.type != "cpu":
        return 0, ONE_PIECE  # the number of CPU threads changes no sum on a GPU
    splits = ENGINES[world.engine].splits_micro_batches and config.model.name == "awtpn"
    splits = splits and not config.encoder
    if splits and not config.train.compile:
        threads = choose_threads(asked, min(recorded, usable_cores()), world.size, os.environ)
        pieces = make_piece_threads(threads, layout, config.model, config.loss)
    else:
        threads, pieces = torch.get_num_threads(), ONE_PIECE
    if recorded and threads != recorded and world.is_main:
        print(f"resumed with {threads} threads instead of {recorded}: equal to rounding, not bit for bit")
    return threads, pieces


def total_steps(options: TrainConfig, position: Position, steps_per_epoch: int) -> int:
    """Optimizer steps of the whole run: those of its finished epochs, and those of the epochs left.

    Finished epochs may have had another global batch size, and so another number of steps. A run that
    `train.patience` ended has no steps left.
    """
    if position.stopped_early:
        return position.step
    begin = position.step - position.epoch_step
    enough = position.epoch + math.ceil((options.min_steps - begin) / steps_per_epoch)
    epochs = max(EPOCHS, enough) if options.epochs is None else options.epochs
    by_epochs = begin + (epochs - position.epoch) * steps_per_epoch
    return min(by_epochs, options.max_steps or by_epochs)


def epochs_between_validations(
    options: TrainConfig, position: Position, total_steps: int, steps_per_epoch: int
) -> int:
    """`train.validate_every`; where it is null, such that a run has 20 to 39 validations, or one an epoch."""
    if options.validate_every is not None:
        return options.validate_every
    left = total_steps - (position.step - position.epoch_step)
    return max(1, (position.epoch + math.ceil(left / steps_per_epoch)) // VALIDATIONS)


def check_patience(options: TrainConfig, position: Position, val: FeatureStream | None) -> None:
    """Check that `train.patience` has validations to count, and let more of it continue an ended run.

    Raises:
        ValueError: there is no validation data.
    """
    if options.patience is not None and val is None:
        raise ValueError(
            "train.patience counts validations, and there is no validation data: give data.val or "
            "data.select.val, or leave train.patience out"
        )
    if options.patience is None or options.patience > position.stopped_early:
        position.stopped_early = 0


def start_watchdog(timeout: float, world: World, run_dir: Path) -> Watchdog:
    """A watchdog that writes this rank's stacks to the run folder after `timeout` seconds of no progress."""

    def on_hang() -> None:
        if world.is_main:
            error = f"no progress for {timeout:.0f} s; the ranks' stacks are in stacks/"
            write_status(run_dir, "failed", error=error)

    return Watchdog(timeout, run_dir / "stacks" / f"rank-{world.rank}.txt", on_hang)
