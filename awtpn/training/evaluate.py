"""Metrics of a model on a split, over all ranks, each utterance counted once."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import nn

from awtpn.config.command_parser import meant
from awtpn.config.option_types import base_models
from awtpn.config.settings import ROLES, DataConfig, SelectConfig
from awtpn.config.suggestions import similar
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.cpu_threads import (
    ONE_PIECE,
    PieceThreads,
    choose_threads,
    forward_in_pieces,
    join_outputs,
    make_piece_threads,
)
from awtpn.distributed.engines import unwrap
from awtpn.distributed.world import World, init_process_group, shutdown
from awtpn.learning.data_scales import encode_batches
from awtpn.learning.settings import LossConfig
from awtpn.metrics.classification import auroc
from awtpn.metrics.tables import format_table
from awtpn.model.base import EmotionModel, ModelOutput
from awtpn.model.encoders.passes import passes_of
from awtpn.model.finite_outputs import FiniteOutputs
from awtpn.model.models import load_model
from awtpn.model.settings import ModelConfig
from awtpn.model.task import Task
from awtpn.run.atomic_write import prepare_place, write_json
from awtpn.run.data import EVALUATION_BATCH, check_feature_space, open_evaluation, stream_source
from awtpn.run.demos import dataset_url
from awtpn.run.folder import run_on_rank0
from awtpn.run.predictions import writing_predictions
from awtpn.run.record import CONFIG_FILE, read_section
from awtpn.run.remote.commands import run_folder_on_ranks
from awtpn.training.held_out import overlap_with_evaluation
from awtpn.training.scores import make_scores
from shards import FeatureBatch, FeatureStream
from shards.format.split_names import split_from_url_or_option
from shards.format.targets import Target
from shards.safe_io.json_fields import from_record
from shards.safe_io.printable import listed, plural, printable
from shards.storage.credentials import redact_url
from shards.storage.store import open_dataset, split_url

RUN_ABOVE = 2  # folders from a checkpoint up to its run: RUN/checkpoints/best


@torch.no_grad()
def evaluate(
    model: nn.Module,
    stream: FeatureStream,
    world: World,
    on_batch: Callable[[], None] = lambda: None,
    predictions: Path | None = None,
    on_output: Callable[[FeatureBatch, ModelOutput], None] = lambda batch, output: None,
    threads: PieceThreads = ONE_PIECE,
) -> dict[str, Any]:
    """Metrics of `model` over `stream`; every rank calls and gets the same.

    Args:
        on_batch: called after each batch.
        predictions: file to write a line per utterance to, the same on all ranks; see `run.predictions`.
        on_output: called with each batch and the model's output, on the device.
        threads: that share each batch on a CPU.

    Returns:
        The figures of the model's task; see `training.scores`.

    Raises:
        NotFiniteError: the model's outputs for some utterances are not finite; names them, on every rank.
    """
    task = unwrap(model).task
    scores, finite = make_scores(task, world), FiniteOutputs()
    training = model.training
    model.eval()
    with writing_predictions(predictions, task, world) as record:
        for batch in stream.epoch(0, device=world.device):
            # A rank without utterances in the last batch still runs forward: its hooks may be collectives.
            batch, output = forward_batch(model, batch, world, threads)
            scores.add(batch, output.logits)
            finite.add(batch.key, output.logits)
            record(batch, output.logits)
            on_output(batch, output)
            on_batch()
        model.train(training)
        # Within the block: where it raises, the file of predictions does not appear.
        finite.check(world.all_gather_object, f"{stream.url}, split {stream.split}")
    return scores.figures(world)


def forward_batch(
    model: nn.Module, batch: FeatureBatch, world: World, threads: PieceThreads = ONE_PIECE
) -> tuple[FeatureBatch, ModelOutput]:
    """The model's output of a rank's batch, without gradients; every rank calls.

    With encoders in the model it is computed in passes of bounded work, equally many on every rank.

    Returns:
        The batch, with encoders ordered by length, and the output in its order.
    """
    inner = unwrap(model)
    if not len(inner.encoders):
        return batch, forward_in_pieces(model, batch, threads)
    parts = passes_of(inner, batch, [range(len(batch))])
    most = max(1, world.max(len(parts)))
    outputs = [model(batch.take(rows).features) for rows in [*parts, *[[]] * (most - len(parts))]]
    return batch.take([row for rows in parts for row in rows]), join_outputs(outputs)


@torch.no_grad()
def reliability_auroc(model: EmotionModel, stream: FeatureStream, world: World) -> dict[str, float]:
    """AUROC per modality of the weights of time steps as a detector of informative time steps.

    The weights are AWTPN's reliability weights, or the attention weights of a baseline that has them.

    Needs metadata that lists these time steps (their indices, under `informative_` and the modality's name),
    as the demo corpus has; empty for other data, and for a model without such weights. A modality of which
    all time steps are informative, or none, is left out. Weights are compared as multiples of their
    utterance's uniform weight.
    """
    listed = [f"informative_{m}" for m in stream.modalities]
    _, first = next(stream.metadata())
    if not all(name in first for name in listed):
        return {}
    truth = dict(stream.metadata())
    scores: dict[str, list[Any]] = {m: [] for m in stream.modalities}
    informative: dict[str, list[Any]] = {m: [] for m in stream.modalities}
    model.eval()
    for batch in encode_batches(model, stream.epoch(0, device=world.device), world.device):
        for modality, of_modality in model.step_weights(batch.features).items():
            lengths = batch.features[modality].host_lengths
            for key, weights in zip(batch.key, of_modality.cpu().split(lengths), strict=True):
                is_informative = np.zeros(len(weights), dtype=bool)
                if len(weights):  # an utterance that lacks the modality may still list its time steps
                    is_informative[truth[key][f"informative_{modality}"]] = True
                scores[modality].append(weights.double().numpy() * len(weights))
                informative[modality].append(is_informative)
    everyone = world.all_gather_object((scores, informative))
    found = {
        m: auroc(
            np.concatenate([np.concatenate(s[m] or [np.zeros(0)]) for s, _ in everyone]),
            np.concatenate([np.concatenate(t[m] or [np.zeros(0, bool)]) for _, t in everyone]),
        )
        for m in stream.modalities
    }
    return {m: value for m, value in found.items() if not math.isnan(value)}


def evaluate_command(options: argparse.Namespace) -> dict[str, Any]:
    """What `awtpn evaluate` does: join the ranks, evaluate, print and write the metrics."""
    options.split = split_from_url_or_option(options.data or "", options.split) or "test"
    world = init_process_group()
    for file in (options.out, options.predictions):
        if file:
            run_on_rank0(world, partial(prepare_place, Path(file)))
    given = run_folder_on_ranks(options.checkpoint, "best", options.storage_options, world)
    model = load_model(given, base_models(options)).to(world.device)
    if options.data:
        source = {"url": options.data, "split": options.split, "select": options.select}
    else:
        source = trained_on(given, options)
    source |= {"cache_dir": options.cache_dir, "storage_options": options.storage_options}
    stream = open_with_target(source, model, options.target, world)
    check_feature_space(model, stream)
    if world.is_main and (note := differing_ranges(model.task, stream.target)):
        print(printable(note))
    if world.is_main and (warning := overlap_with_training(given, stream, options)):
        print(printable(warning))
    threads = threads_for_evaluation(model.config, world)
    figures = evaluate(model, stream, world, predictions=options.predictions, threads=threads)
    if world.is_main:
        what = f"{redact_url(source['url'])}, split {stream.split}: {figures['utterances']} utterances"
        what += f"; {stream.without_target} without a value are left out" if stream.without_target else ""
        print(printable(what) + "\n")
        of_paper = model.config.name == "awtpn"  # the paper has figures of no other model
        print(format_table(figures, stream.name if of_paper else ""))
        if options.out:
            write_json(Path(options.out), figures)
    shutdown()
    return figures


def open_with_target(
    source: dict[str, Any], model: EmotionModel, target: str | None, world: World
) -> FeatureStream:
    """The stream of what a model is evaluated on, with the values of its task.

    Args:
        source: arguments of FeatureStream.
        model: whose task decides the target.
        target: `--target`, a named target or columns in the order of the model's; None: the model's names.
        world: the ranks.

    Raises:
        ValueError: the data has no such target, or not as many columns as the model predicts.
    """
    modalities, task = list(model.config.modalities), model.task
    if target is not None:
        source = source | {"target": target, "task": task.type}
        stream = open_evaluation(source, modalities, world, encoded=list(model.encoders))
        given = stream.target.num_values
        if task.type != "classification" and given != len(task.names):
            raise ValueError(
                f"--target {target!r:.60}: {plural(given, 'column')}, but the model predicts "
                f"{len(task.names)}: name a column for each of {', '.join(task.names):.200}, in this order"
            )
        return stream
    try:
        return open_evaluation(source, modalities, world, task, list(model.encoders))
    except ValueError as error:
        if "data.target" not in str(error):
            raise
        # The configuration's name for it is not what the user of this command can set.
        raise ValueError(f"{error}; awtpn evaluate takes another one by --target") from None


def differing_ranges(task: Task, target: Target) -> str | None:
    """A line if the data states another range of a value than the model has learned; else None.

    Args:
        task: of the model.
        target: of the data, with a column for each name of the task.
    """
    if task.type != "regression":
        return None
    pairs = zip(target.columns.items(), task.names, task.ranges or (), strict=True)
    differing = [
        f"{column} is from {bounds[0]:g} to {bounds[1]:g} in the data, but {name} from {own[0]:g} to "
        f"{own[1]:g} in the model"
        for (column, bounds), name, own in pairs
        if bounds is not None and list(bounds) != list(own)
    ]
    return f"note: {'; '.join(differing)}: errors are between different scales" if differing else None


def threads_for_evaluation(config: ModelConfig, world: World) -> PieceThreads:
    """Threads that share a batch as in a run with default settings, so that metrics have the same bits."""
    if world.size > 1 or world.device.type != "cpu" or config.name != "awtpn":
        return ONE_PIECE
    threads = choose_threads(None, 0, 1, os.environ)
    return make_piece_threads(threads, Layout(EVALUATION_BATCH, EVALUATION_BATCH, 1), config, LossConfig())


def overlap_with_training(given: Path, stream: FeatureStream, options: argparse.Namespace) -> str | None:
    """A line if `stream` has utterances that the model at `given` was trained on; None if none are known.

    Nothing is known of a model outside of a run folder, nor if the training data cannot be opened. Training
    data in another store than that of `stream` is not opened: that store may be out of reach, and would cost
    many retries.
    """
    try:
        places = [given.absolute(), *list(given.resolve().parents)[:RUN_ABOVE]]
        run_dir = next((folder for folder in places if (folder / CONFIG_FILE).is_file()), None)
        if run_dir is None:
            return None
        of_run = argparse.Namespace(**vars(options) | {"split": "train", "select": None})
        source = trained_on(run_dir, of_run)
        if "://" in source["url"] and split_url(source["url"])[0] != split_url(stream.url)[0]:
            return None
        train = FeatureStream(
            **source,
            cache_dir=options.cache_dir,
            storage_options=options.storage_options,
            modalities=list(stream.modalities),
            shuffle=False,
            skip_damaged=True,
        )
        return overlap_with_evaluation(train, stream)
    except (ValueError, OSError, ImportError):
        return None


def trained_on(run_dir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The split of the data that a run was trained on, from its config.yaml.

    Raises:
        ValueError: the folder is not a run, or its data has no such split.
    """
    file, split = run_dir / CONFIG_FILE, options.split
    if not file.is_file():
        raise ValueError(f"{run_dir} is no run folder, so its data is not known: name it with --data")
    if split not in ROLES:
        suggestion = meant(similar(split, ROLES))
        raise ValueError(
            f"{file} names no split {split!r}: name the data to evaluate on with --data{suggestion}"
        )
    recorded = read_section(run_dir, "data")
    select = from_record(
        SelectConfig, recorded.pop("select", {}), f"{file}: data.select", ignore_unknown=True
    )
    data = from_record(DataConfig, recorded, f"{file}: data", ignore_unknown=True)
    data.select = select
    # The run folder keeps no credentials.
    data.cache_dir, data.storage_options = options.cache_dir, options.storage_options or {}
    source = stream_source(data, split)
    if source is None:
        url = data.train.partition("#")[0]
        place = dataset_url(url, data.cache_dir)
        splits = list(open_dataset(place, data.cache_dir, data.storage_options)[1].splits)
        raise ValueError(
            f"the data of {run_dir} has no split {split!r}, but {listed(map(repr, splits))}: name a dataset "
            f"and its split with --data, such as --data {quote(f'{redact_url(url)}#{splits[0]}')}"
        )
    return {"url": source["url"], "split": split, "select": options.select or source["select"]}
