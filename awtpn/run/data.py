"""The data streams of a run for training, validation and test, and checks between them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping, Sequence
from shlex import quote
from typing import Any

import numpy as np
from numpy.typing import NDArray

from awtpn.config.schema import Config
from awtpn.config.settings import ROLES, DataConfig, SelectConfig
from awtpn.distributed.world import World
from awtpn.learning.targets import balanced_label_weights
from awtpn.model.base import EmotionModel
from awtpn.model.settings import TaskConfig
from awtpn.model.task import Task
from awtpn.run.demos import dataset_url
from awtpn.run.position import Position
from shards import FeatureStream
from shards.format.feature_space import check_same_space
from shards.format.recording import KIND_OF
from shards.format.schema import Modality, dump_manifest
from shards.format.split_names import find_split
from shards.format.targets import CLASS_TARGET
from shards.safe_io.printable import printable
from shards.storage.store import open_dataset
from shards.streaming.stream import NoTarget

# Utterances per rank and batch. The same for every number of ranks, so that the same utterances share a batch
# and metrics agree to the last digit.
EVALUATION_BATCH = 32
NO_VALIDATION = "none"
# Share of the utterances below which a label is rare: unweighted, its probability seldom reaches one half.
RARE = 0.25


def stream_source(data: DataConfig, role: str) -> dict[str, Any] | None:
    """The arguments of FeatureStream for a role ("train", "val", "test"); None where it has no utterances.

    A role without a URL of its own uses the dataset of data.train: the split of its name (or a synonym:
    "valid" and "dev" mean "val"), or the utterances that `data.select` chooses.
    """
    assert role in ROLES
    own, select = getattr(data, role), getattr(data.select, role)
    url = dataset_url(data.train.partition("#")[0] if own is None else own, data.cache_dir)
    if own is None:
        splits = open_dataset(url, data.cache_dir, data.storage_options)[1].splits
        if find_split(role, splits) is None and not (select and list(splits) == ["all"]):
            return None
    return {
        "url": url,
        "split": role,
        "select": select,
        "cache_dir": data.cache_dir,
        "cache_limit": data.cache_limit,
        "storage_options": data.storage_options,
        "check_crc": data.check_crc,
        "threads": data.threads,
        "target": data.target,
    }


def open_stream(encoded: Collection[str] = (), **arguments: Any) -> FeatureStream:
    """A stream of utterances that a model takes. Every command that gives a dataset to a model opens it here.

    Args:
        encoded: modalities of which the model encodes recordings.
        arguments: of FeatureStream.

    Raises:
        ValueError, OSError: as FeatureStream does; or `check_features_only`.
    """
    stream = FeatureStream(**arguments)
    others = {name: modality for name, modality in stream.modalities.items() if name not in encoded}
    check_features_only(others, stream.manifest.modalities, stream.url)
    check_encoded(encoded, stream.modalities, stream.url)
    return stream


def check_encoded(encoded: Collection[str], modalities: Mapping[str, Modality], url: str) -> None:
    """Refuse features of a modality whose recordings a model encodes.

    Raises:
        ValueError: names the modality.
    """
    for name in encoded:
        if name in modalities and not modalities[name].recording:
            raise ValueError(
                f"{url}: {name} holds features, and encoder.{name} takes recordings: leave "
                f"encoder.{name} out, or store the recordings (awtpn extract SOURCE OUT --{name} "
                f"{KIND_OF.get(name, 'none')})"
            )


def check_some_features(data: DataConfig, encoded: Collection[str] = ()) -> None:
    """Open the manifest of the training data, and refuse a dataset that holds recordings alone.

    Args:
        encoded: modalities of which the model encodes recordings.

    Raises:
        ValueError: as `check_features_only`.
        OSError: the store cannot be reached.
    """
    source = stream_source(data, "train")
    assert source is not None
    store, manifest, _ = open_dataset(source["url"], source["cache_dir"], source["storage_options"])
    if not encoded and all(modality.recording for modality in manifest.modalities.values()):
        check_features_only(manifest.modalities, manifest.modalities, store.url)


def check_features_only(chosen: Mapping[str, Modality], modalities: Mapping[str, Modality], url: str) -> None:
    """Refuse recordings, which a model without encoders does not take.

    Args:
        chosen: the modalities that a model is to read.
        modalities: all those of the dataset.
        url: of the dataset.

    Raises:
        ValueError: a chosen modality holds recordings; says what, and what to do.
    """
    recorded = {name: found.recording for name, found in chosen.items() if found.recording}
    if not recorded:
        return
    held = ", and ".join(f"{name} holds recordings ({what})" for name, what in recorded.items())
    encoders = " ".join(f"--{name} ENCODER" for name in recorded)
    fix = f"make features of them (awtpn extract {quote(url)} OUT {encoders})"
    if features := [name for name, found in modalities.items() if not found.recording]:
        fix += f", or choose the modalities with features (--model.modalities {','.join(features)})"
    fix += f"; or train an encoder with the model (--encoder.{next(iter(recorded))}.model MODEL)"
    raise ValueError(f"{url}: {held}, but a model takes features: {fix}")


def ranks_of_node(world: World) -> int:
    """The number of ranks on this node, which share a cache; 1 if nodes differ in it. Every rank calls it."""
    hosts = world.all_gather_object(platform.node())
    ranks = hosts.count(platform.node())
    return 1 if world.size % ranks else ranks


def open_training_stream(config: Config, world: World, position: Position) -> FeatureStream:
    """The stream of training utterances, in the order that the checkpoint (if any) has recorded."""
    source = stream_source(config.data, "train")
    assert source is not None
    resuming = position.step > 0
    if position.epoch_step > 0:
        for key, now, then in (
            ("train.global_batch_size", config.train.global_batch_size, position.global_batch_size),
            ("data.streams", config.data.streams or position.streams, position.streams),
            ("run.seed", config.run.seed, position.seed),
        ):
            if now != then:
                raise ValueError(
                    f"{key} is {now}, but the checkpoint is {position.epoch_step} steps into an epoch that "
                    f"began with {then}: keep it until the epoch ends, or start again with --run.resume never"
                )
    stream = open_stream(
        config.encoder,
        **source,
        global_batch_size=config.train.global_batch_size,
        rank=world.rank,
        world_size=world.size,
        local_world_size=ranks_of_node(world),
        uneven=True,  # `make_layout` has refused it where it must
        skip_damaged=config.data.damaged_budget > 0,
        seed=config.run.seed,
        streams=config.data.streams or (position.streams if resuming else None),
        modalities=list(config.model.modalities),
        task=config.task.type,
    )
    if position.epoch_step > stream.steps_per_epoch:
        raise ValueError(
            f"the checkpoint is {position.epoch_step} steps into an epoch, but an epoch of {stream.url} has "
            f"{stream.steps_per_epoch}: it is of other data, or damaged: start again with --run.resume never"
        )
    return stream


def evaluation_stream(
    data: DataConfig,
    role: str,
    modalities: list[str],
    world: World,
    task: Task | None = None,
    encoded: Collection[str] = (),
) -> FeatureStream | None:
    """The stream of a role ("val", "test"), unshuffled; None where there is none.

    There is none, either, if nobody asked for a test and the dataset's split "test" hides its targets.
    """
    source = stream_source(data, role)
    if source is None:
        return None
    try:
        return open_evaluation(source, modalities, world, task, encoded)
    except NoTarget as error:
        if role != "test" or data.test is not None or data.select.test is not None:
            raise
        if world.is_main:
            print(printable(f"there will be no test: {error}"))
        return None


def open_evaluation(
    source: dict[str, Any],
    modalities: list[str],
    world: World,
    task: Task | None = None,
    encoded: Collection[str] = (),
) -> FeatureStream:
    """Unshuffled; never skips damaged utterances, so metrics always cover the whole split.

    Args:
        source: arguments of FeatureStream.
        modalities: to read.
        task: of the model; default: `source["target"]`, else the data's own target.
        encoded: modalities of which the model encodes recordings.
    """
    if task is not None:
        source = source | target_arguments(task)
    return open_stream(
        encoded,
        **source,
        global_batch_size=EVALUATION_BATCH * world.size,
        rank=world.rank,
        world_size=world.size,
        local_world_size=ranks_of_node(world),
        shuffle=False,
        modalities=modalities,
    )


def target_arguments(task: Task) -> dict[str, Any]:
    """The arguments of FeatureStream that read the target of a model."""
    if task.type == "classification":
        return {"target": task.column or CLASS_TARGET, "task": task.type}
    return {"target": list(task.names), "task": task.type}


def check_feature_space(model: EmotionModel, stream: FeatureStream) -> None:
    """Raise ValueError if labels, feature spaces or feature widths of the data are not those of the model."""
    if model.task.type == "classification" and model.classes != stream.classes:
        raise ValueError(
            f"the model knows the classes {model.classes}, but {stream.url} has {stream.classes}"
        )
    check_features(model, stream)


def check_features(model: EmotionModel, stream: FeatureStream) -> None:
    """Raise ValueError if feature spaces or feature widths of the data are not those of the model."""
    check_same_space(
        model.provenance,
        stream.manifest.provenance,
        model.feature_dims,
        f"the model knows other features than those of {stream.url}",
        "extract the recordings with the model's encoders, or train a model on these features",
    )
    for name in model.encoders:
        own, found = model.recordings[name], stream.modalities[name].recording
        if found is None or (found.rate, found.shape) != (own.rate, own.shape):
            raise ValueError(f"the model takes {own} of {name}, but {stream.url} has {found}")
    for name, dim in model.feature_dims.items():
        if name in model.encoders:
            continue
        if stream.modalities[name].dim != dim:
            raise ValueError(
                f"the model takes {dim} features of {name}, but {stream.url} has "
                f"{stream.modalities[name].dim}"
            )


def check_targets(train: FeatureStream, values: NDArray[np.float64]) -> None:
    """Raise ValueError if all training utterances are of one class, or have equal values.

    Args:
        train: the training utterances.
        values: `known_values` of them, which reads all indexes.
    """
    fix = "data.train and data.select.train must choose utterances of two classes or more"
    if train.target.type == "classification":
        if len(occurring := np.flatnonzero(train.class_counts(check=False))) < 2:
            raise ValueError(
                f"all {train.num_utterances} training utterances of {train.url} are of the class "
                f"{train.classes[occurring[0]]!r}, and there is nothing to learn: {fix}"
            )
        return
    labels = train.target.type == "multilabel"
    for name, of_column in zip(train.target.columns, values.T, strict=True):
        if held := nothing_to_learn(of_column, name, labels):
            known = np.count_nonzero(~np.isnan(of_column))
            which = f"all {known or len(of_column)} training utterances of {train.url}"
            which += " that have a value" if 0 < known < len(of_column) else ""
            raise ValueError(
                f"{which} have {held}, and there is nothing to learn: leave it out of data.target, or choose "
                "other utterances by data.select"
            )


def nothing_to_learn(values: np.ndarray, name: str, labels: bool) -> str | None:
    """What all utterances have, such as "the same 'valence' (2)", if they are all alike; else None.

    Args:
        values: [U] of a dimension or label, NaN where missing.
        name: of the dimension or label.
        labels: it is a label: present above 0, else absent.
    """
    known = values[~np.isnan(values)]
    found = np.unique(known > 0 if labels else known)
    if len(found) > 1:
        return None
    if not len(found):
        return f"no value of {name!r}"
    if labels:
        return f"{name!r} {'present (above 0)' if found[0] else 'absent (0)'}"
    return f"the same {name!r} ({found[0]:g})"


def known_values(train: FeatureStream) -> NDArray[np.float64]:
    """`target_values` of labels or values [U, K]; of classes [0, 0], for which no index is read."""
    return train.target_values() if train.target.num_values else np.zeros((0, 0))


def rare_labels(train: FeatureStream, values: NDArray[np.float64]) -> list[str]:
    """The labels that fewer than RARE of the training utterances have whose label is known.

    Args: as of `check_targets`.
    """
    known, present = (~np.isnan(values)).sum(0), (values > 0).sum(0)
    return [name for name, n, of in zip(train.target.columns, present, known, strict=True) if n < RARE * of]


def task_of_data(config: TaskConfig, train: FeatureStream, values: NDArray[np.float64]) -> Task:
    """The task of a model that learns the target of these training utterances.

    A dimension of which the dataset does not state a range has that of the training utterances.

    Args: as of `check_targets`.
    """
    target = train.target
    names = list(target.columns)
    if target.type == "classification":
        return Task("classification", list(train.classes), column=names[0] if names else None)
    if target.type == "multilabel":
        return Task("multilabel", names)
    ranges = [
        [float(bounds[0]), float(bounds[1])] if bounds else [float(np.nanmin(v)), float(np.nanmax(v))]
        for bounds, v in zip(target.columns.values(), values.T, strict=True)
    ]
    return Task("regression", names, ranges, config.levels, config.head)


def remarks_on_splits(train: FeatureStream, others: Sequence[FeatureStream | None]) -> list[str]:
    """Notes for the user on the data: splits under another name, and utterances that no stream reads.

    Args:
        train: the training utterances.
        others: those of ROLES[1:], in this order.
    """
    streams = {role: s for role, s in zip(ROLES, [train, *others], strict=True) if s is not None}
    lines = [
        f"data.{role}: its utterances are the split {stream.split!r} of {stream.url}"
        for role, stream in streams.items()
        if stream.split not in (role, "all")
    ]
    for url in dict.fromkeys(stream.url for stream in streams.values()):
        readers = [stream for stream in streams.values() if stream.url == url]
        used = {stream.split: stream for stream in readers}
        unused = {n: s.utterances for n, s in readers[0].manifest.splits.items() if n not in used}
        if unused:
            told = ", ".join(f"{name!r} ({count} utterances)" for name, count in unused.items())
            lines.append(f"not used of {url}: split {told}; data.val and data.test take URL#SPLIT")
        for name, stream in used.items():
            if count := stream.unselected(readers):
                lines.append(f"not used of {url}#{name}: {count} utterances that no data.select takes")
            if count := stream.without_target:
                columns = ", ".join(map(repr, stream.target.columns))
                lines.append(
                    f"not used of {url}#{name}: {count} utterances without a value of {columns:.200}"
                )
    return lines


def training_data(select: SelectConfig, train: FeatureStream) -> str:
    """A digest that identifies the training utterances, whatever the path of the dataset."""
    what = dump_manifest(train.manifest) + train.split + repr(select.train) + _told_target(train)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def validation_data(select: SelectConfig, val: FeatureStream | None) -> str:
    """A digest that identifies the utterances which choose the best checkpoint; "none" without validation."""
    if val is None:
        return NO_VALIDATION
    shards = [(shard.sha256, shard.index_sha256) for shard in val.manifest.splits[val.split].shards]
    what = json.dumps([shards, val.classes, select.val], sort_keys=True, default=str) + _told_target(val)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def _told_target(stream: FeatureStream) -> str:
    """The target, for a digest; nothing for classes, so that digests of earlier versions stay."""
    target = stream.target
    return "" if target.is_classes else repr((target.type, list(target.columns)))


def balanced_weights(train: FeatureStream) -> NDArray[np.float64]:
    """Class weights [C]: utterances / (classes * utterances of the class); of labels [K, 2]: absent, present.

    Raises:
        ValueError: the manifest's counts are not those of the shards' indexes.
    """
    if train.target.type == "multilabel":
        return balanced_label_weights(train.target_values())
    counts = train.class_counts()
    return counts.sum() / (len(counts) * np.maximum(counts, 1).astype(np.float64))
