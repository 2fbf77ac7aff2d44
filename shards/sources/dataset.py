"""A dataset of features that was packed, extracted or indexed before: to pack it anew, say as int8.

SOURCE is its folder or any fsspec URL of it (`s3://bucket/corpus`), also its manifest.json, with `#train` one
split alone.

    awtpn extract clips data/clips --audio logmel
    awtpn pack data/clips data/clips-int8 --format dataset --dtype int8

Keys, splits, labels, targets, metadata and feature spaces are those of the dataset, so a model trained on the
one predicts on the other. Int8 features are read as the values that they stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.format.schema import (
    DECODED,
    INDEXED,
    LABEL_FIELD,
    QUANTIZED,
    BadSample,
    Manifest,
    Sample,
    choose_split,
)
from shards.safe_io.printable import listed
from shards.sources.base import Source

if TYPE_CHECKING:
    from shards.storage.store import Store
    from shards.streaming.reader import ShardReader

ROWS = 64  # utterances read at a time
# Provenance that says how the dataset was written; all else is of its features.
WRITTEN = ("packed", "versions", "command", INDEXED, DECODED, LABEL_FIELD, QUANTIZED)
REPACKED = "repacked"  # the key of the provenance that has these


def read(
    source: str | Path,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Source:
    """List the utterances of a dataset, in its order.

    Args:
        source: a dataset of features: its folder, or any fsspec URL of it.
        cache_dir: where the shards of a remote dataset are kept (default: as to train).
        storage_options: for the fsspec file system of `source`.

    Raises:
        ValueError: there is no dataset, or it holds recordings.
        OSError: the store cannot be reached.
    """
    from shards.storage.store import open_dataset

    store, manifest, split = open_dataset(str(source), cache_dir, storage_options)
    if recorded := [name for name, modality in manifest.modalities.items() if modality.recording]:
        raise ValueError(
            f"{store.url}: {listed(recorded)} are recordings, which are not packed anew: make features of "
            "them with `awtpn extract DATASET OUT`, and pack these"
        )
    splits = [choose_split(manifest, split, store.url)] if split else list(manifest.splits)
    written = {name: manifest.provenance[name] for name in WRITTEN if name in manifest.provenance}
    kept = {name: value for name, value in manifest.provenance.items() if name not in WRITTEN}
    return Source(
        _samples(store, manifest, splits),
        manifest.classes,
        kept | {REPACKED: {"dataset": store.url, **written}},
        sum(manifest.splits[name].utterances for name in splits),
        target=manifest.target,
        targets=manifest.targets,
    )


def _samples(store: Store, manifest: Manifest, splits: list[str]) -> Iterator[Sample | BadSample]:
    from shards.streaming.reader import ShardReader

    for split in splits:
        reader = ShardReader(store, manifest, split, skip_damaged=True, check_crc=True)
        for shard, entry in enumerate(reader.shards):
            for first in range(0, entry.utterances, ROWS):
                yield from _rows(reader, split, shard, np.arange(first, min(first + ROWS, entry.utterances)))
            reader.close_all_but([shard])


def _rows(reader: ShardReader, split: str, shard: int, rows: np.ndarray) -> Iterator[Sample | BadSample]:
    found = reader.features(np.full(len(rows), shard), rows)
    source = f"{reader.store.url}/{reader.shards[shard].name}"
    kept = rows[found.kept].tolist()
    values = {
        name: ragged.dequantized().split(ragged.host_lengths) for name, ragged in found.features.items()
    }
    for i, (key, meta) in enumerate(reader.metadata(shard, kept) if kept else []):
        yield Sample(
            key=key,
            split=split,
            label=meta.pop("label", None) if reader.manifest.classes else None,
            features={name: of[i].numpy() if len(of[i]) else None for name, of in values.items()},
            meta={name: value for name, value in meta.items() if name != "label"},
            source=source,
        )
    for key, cause in found.damaged.items():
        yield BadSample(key, cause, source)
