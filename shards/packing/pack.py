"""Utterances -> shards, indexes and a manifest.

Each split has one open shard; one that is full is finished (`part`), and the manifest follows when all are
there. What may be packed is decided in `checks`, what may be in the output folder in `target`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.format.labels import given_classes
from shards.format.schema import DTYPES, BadSample, Manifest, Sample
from shards.packing.output_folder import Target, acquire, check_ours, complete, discard, release
from shards.packing.shard_writer import (
    FinishedShard,
    ShardStats,
    ShardWriter,
    add,
    finish,
    manifest_of,
    open_shard,
    shard_name,
    sum_of,
)
from shards.packing.validation import EncodedSample, PackingState, accept_or_skip, check_cast
from shards.safe_io.versions import installed_version

# Before all is read a feature's spread may still grow, by the next speaker or session: what the cast disturbs
# by less than this share of it may turn out well.
CLEARLY = 0.1


@dataclass
class _Packing:
    """A packing under way: per split, in the order they were met, the open and the finished shards."""

    target: Target
    accepted: PackingState
    parts: dict[str, list[FinishedShard]] = field(default_factory=dict)
    open: dict[str, ShardWriter] = field(default_factory=dict)
    total: ShardStats | None = None


def pack(
    samples: Iterable[Sample | BadSample],
    out: str,
    *,
    classes: list[str],
    provenance: dict[str, Any] | None = None,
    dtype: str = "float16",
    shard_bytes: int = 256 << 20,
    on_bad: str = "refuse",
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    total: int | None = None,
) -> Manifest:
    """Pack utterances into a dataset folder.

    Args:
        samples: the utterances; read once, in order.
        out: any fsspec URL of a folder, new or empty.
        classes: class names; a label is a position in this list.
        provenance: how the features were made; kept in the manifest.
        dtype: "float16" or "float32".
        shard_bytes: a shard is closed once it has this many bytes.
        on_bad: "refuse" stops at the first bad sample; "skip" leaves it out and lists it in `skipped.jsonl`.
        storage_options: for the fsspec file system of `out`.
        overwrite: replace a finished dataset that is there; it stays whole until the new one is.
        progress: show a bar on stderr.
        total: number of samples, for the bar.

    Returns:
        The manifest, as written.

    Raises:
        ValueError: a bad sample (named), a feature that the dtype would ruin, nothing to pack, or a folder
            that already holds something or that another packing is filling. Nothing is left behind, and a
            dataset that was to be replaced is as it was.
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    classes = check_options(classes, dtype, on_bad)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes {shard_bytes}: must be positive")
    packing = _Packing(acquire(str(out), overwrite, storage_options), PackingState(classes, np.dtype(dtype)))
    skipped: list[dict[str, str]] = []
    try:
        for sample in tqdm(samples, total=total, desc="pack", unit="utterance", disable=not progress):
            stored = accept_or_skip(sample, packing.accepted, on_bad, skipped)
            if stored is not None:
                assert isinstance(sample, Sample)
                _add(packing, sample, stored, shard_bytes)
        if not packing.parts:
            bad = f": all {len(skipped)} samples are bad, {skipped[0]}" if skipped else ": no samples"
            raise ValueError(f"nothing to pack{bad}")
        for split in list(packing.open):
            _finish(packing, split)
        assert packing.total is not None
        check_cast(packing.total.casts, packing.accepted.dtype)
        made = {
            "packed": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: installed_version(name) for name in ("numpy", "webdataset")},
        }
        manifest = manifest_of(packing.parts, packing.accepted, {**(provenance or {}), **made}, len(skipped))
        complete(packing.target, manifest, skipped)
    except (ValueError, KeyboardInterrupt):
        with contextlib.suppress(OSError, ValueError):  # what happened before is told
            discard(packing.target)
        raise
    finally:
        for shard in packing.open.values():
            shard.tar.close()
        release(packing.target)
    return manifest


def check_options(classes: list[str], dtype: str, on_bad: str) -> list[str]:
    """The classes, in the form of labels (see `labels`).

    Raises:
        ValueError: options that no dataset can be made with.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: must be one of {DTYPES}")
    if on_bad not in ("refuse", "skip"):
        raise ValueError(f"on_bad {on_bad!r}: must be 'refuse' or 'skip'")
    return given_classes(classes)


def _add(packing: _Packing, sample: Sample, stored: EncodedSample, shard_bytes: int) -> None:
    """Write an accepted utterance to its split's open shard, and finish that one if it is full."""
    classes, split = packing.accepted.classes, sample.split
    parts = packing.parts.setdefault(split, [])
    if split not in packing.open:
        check_ours(packing.target)
        name = shard_name(split, len(parts), packing.target.generation)
        packing.open[split] = open_shard(packing.target.work, name, classes)
    add(packing.open[split], sample, stored, classes)
    if packing.open[split].bytes >= shard_bytes:
        _finish(packing, split)


def _finish(packing: _Packing, split: str) -> None:
    part = finish(packing.open[split], packing.target, packing.accepted)
    packing.parts[split].append(part)
    del packing.open[split]
    packing.total = sum_of([packing.total, part.tally] if packing.total else [part.tally])
    check_cast(packing.total.casts, packing.accepted.dtype, CLEARLY)
