"""Figures of a model on a split, over all ranks, each utterance counted once."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import nn

from awtpn.checkpoint import find_model
from awtpn.config import DEMO, ROLES, DataConfig, SelectConfig
from awtpn.distributed import World, join, leave
from awtpn.metrics import auroc, count_confusion, format_table, summarise
from awtpn.model import AWTPN
from awtpn.monitor import write_atomically
from shards import FeatureStream
from shards.sources.demo import ensure_demo
from shards.store import DEFAULT_CACHE, open_store, read_manifest, split_url

# Utterances per rank and step. The same for every number of ranks, so that the same utterances share a
# batch and the figures agree to the last digit.
BATCH = 32


def evaluation_stream(
    data: DataConfig, role: str, modalities: list[str], world: World
) -> FeatureStream | None:
    """The split that `data` names for a role ("val", "test"), unshuffled; None where there is none."""
    source = stream_source(data, role)
    return None if source is None else open_evaluation(source, modalities, world)


def open_evaluation(source: dict[str, Any], modalities: list[str], world: World) -> FeatureStream:
    """An unshuffled stream of a `stream_source`."""
    return FeatureStream(
        **source,
        global_batch_size=BATCH * world.size,
        rank=world.rank,
        world_size=world.size,
        shuffle=False,
        modalities=modalities,
    )


def stream_source(data: DataConfig, role: str) -> dict[str, Any] | None:
    """FeatureStream's arguments for where a role's utterances come from; None where it has none.

    A role without a URL of its own is found in data.train's dataset: in the split of its name, or by
    `data.select`.
    """
    assert role in ROLES
    url, select = getattr(data, role), getattr(data.select, role)
    if url is None:
        url = data.train.partition("#")[0]
        if url != DEMO:
            folder, name, _ = split_url(url)
            splits = read_manifest(open_store(folder, data.cache_dir, data.storage_options), name).splits
            if role not in splits and not (select and list(splits) == ["all"]):
                return None
    if url == DEMO:
        url = ensure_demo(data.cache_dir or DEFAULT_CACHE)
    return {
        "url": url,
        "split": role,
        "select": select,
        "cache_dir": data.cache_dir,
        "cache_limit": data.cache_limit,
        "storage_options": data.storage_options,
    }


@torch.no_grad()
def evaluate(
    model: nn.Module, stream: FeatureStream, world: World, on_batch: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Figures of `model` over `stream`; every rank gets them all. See `awtpn.metrics.summarise`.

    `on_batch` is called after each batch, for whoever wants to know that things go on.
    """
    classes = len(stream.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=world.device)
    training = model.training
    model.eval()
    for batch in stream.epoch(0):
        batch = batch.to(world.device)
        # A rank without utterances in the last batch still runs forward: ZeRO-3 gathers in it.
        confusion += count_confusion(batch.label, model(batch.features).logits.argmax(-1), classes)
        on_batch()
    model.train(training)
    return summarise(world.sum(confusion.cpu().numpy()), stream.classes)


@torch.no_grad()
def reliability_auroc(model: nn.Module, stream: FeatureStream, world: World) -> dict[str, float]:
    """How well the reliability weights find the truly informative steps: AUROC per modality.

    Needs metadata that lists them (`informative_audio`, `informative_video`: step numbers), which the demo
    corpus has; empty for data that does not say. A weight is compared as a multiple of its utterance's
    uniform weight.
    """
    truth = {key: meta for key, meta in stream.metadata() if any(m.startswith("informative_") for m in meta)}
    if not truth:
        return {}
    scores: dict[str, list[Any]] = {m: [] for m in stream.modalities}
    marks: dict[str, list[Any]] = {m: [] for m in stream.modalities}
    model.eval()
    for batch in stream.epoch(0):
        output = model(batch.to(world.device).features)
        for modality, of_stream in output.streams.items():
            lengths = batch.features[modality].host_offsets.diff().tolist()
            for key, weights in zip(batch.key, of_stream.weights.cpu().split(lengths), strict=True):
                mark = np.zeros(len(weights), dtype=bool)
                mark[truth[key][f"informative_{modality}"]] = True
                scores[modality].append(weights.double().numpy() * len(weights))
                marks[modality].append(mark)
    everyone = world.from_all((scores, marks))
    return {
        m: auroc(
            np.concatenate([np.concatenate(s[m] or [np.zeros(0)]) for s, _ in everyone]),
            np.concatenate([np.concatenate(t[m] or [np.zeros(0, bool)]) for _, t in everyone]),
        )
        for m in stream.modalities
    }


def evaluate_command(options: argparse.Namespace) -> dict[str, Any]:
    """What `launch/evaluate.py` does: join the ranks, evaluate, print and write the figures."""
    world = join()
    given = Path(options.checkpoint)
    model = AWTPN.from_pretrained(find_model(given)).to(world.device)
    if options.data:
        source = {"url": options.data, "split": options.split, "select": options.select}
    else:
        source = trained_on(given, options.split, options.select)
    source |= {"cache_dir": options.cache_dir, "storage_options": options.storage_options}
    stream = open_evaluation(source, model.config.modalities, world)
    check_feature_space(model, stream)
    figures = evaluate(model, stream, world)
    if world.is_main:
        print(f"{source['url']}, split {stream.split}: {figures['utterances']} utterances\n")
        print(format_table(figures, stream.name))
        if options.out:
            write_atomically(Path(options.out), json.dumps(figures, indent=1) + "\n")
    leave()
    return figures


def trained_on(run_dir: Path, split: str, select: dict[str, Any] | None) -> dict[str, Any]:
    """The split of the data that a run was trained on, from its config.yaml.

    Raises:
        ValueError: the folder is no run, or its data has no such split.
    """
    file = run_dir / "config.yaml"
    if not file.is_file() or split not in ROLES:
        raise ValueError(f"say what to evaluate on with --data: {file} does not tell of a split {split!r}")
    data = DataConfig(**yaml.safe_load(file.read_text())["data"])
    data.select = SelectConfig(**cast(dict[str, Any], data.select))
    source = stream_source(data, split)
    if source is None:
        raise ValueError(f"the data of {run_dir} has no split {split!r}: name it with --data")
    return {"url": source["url"], "split": split, "select": select or source["select"]}


def check_feature_space(model: AWTPN, stream: FeatureStream) -> None:
    """Refuse data whose labels or feature widths are not the model's."""
    if model.classes != stream.classes:
        raise ValueError(
            f"the model knows the classes {model.classes}, but {stream.url} has {stream.classes}"
        )
    for name, dim in model.feature_dims.items():
        if stream.modalities[name].dim != dim:
            raise ValueError(
                f"the model takes {dim} features of {name}, but {stream.url} has "
                f"{stream.modalities[name].dim}"
            )
