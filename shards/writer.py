"""Utterances -> shards, indexes and a manifest.

Each split has one open shard; one that is full is finished (`part`), and the manifest follows when all are
there. What may be packed is decided in `checks`, what may be in the output folder in `target`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.checks import Accepted, Stored, accept_or_skip
from shards.part import OpenShard, Part, add, check_precision, finish, manifest_of, open_shard, shard_name
from shards.schema import BadSample, Manifest, Sample
from shards.target import Target, claim, complete

DTYPES = ("float16", "float32")


@dataclass
class _Packing:
    """A packing under way: per split, in the order they were met, the open and the finished shards."""

    target: Target
    accepted: Accepted
    parts: dict[str, list[Part]] = field(default_factory=dict)
    open: dict[str, OpenShard] = field(default_factory=dict)


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
        overwrite: replace a finished dataset that is there.
        progress: show a bar on stderr.
        total: number of samples, for the bar.

    Returns:
        The manifest, as written.

    Raises:
        ValueError: a bad sample (named), a feature that the dtype would ruin, nothing to pack, or a folder
            that already holds something.
        RuntimeError: another packing has taken the folder over.
        OSError: the store cannot be reached.
    """
    check_options(classes, dtype, on_bad)
    packing = _Packing(claim(str(out), overwrite, storage_options), Accepted(classes, np.dtype(dtype)))
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
        check_precision(chain.from_iterable(packing.parts.values()), packing.accepted)
        made = {
            "packed": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("numpy", "webdataset")},
        }
        manifest = manifest_of(packing.parts, packing.accepted, {**(provenance or {}), **made}, len(skipped))
        complete(packing.target, manifest, skipped)
    finally:
        for shard in packing.open.values():
            shard.tar.close()
        shutil.rmtree(packing.target.work, ignore_errors=True)
    return manifest


def check_options(classes: list[str], dtype: str, on_bad: str) -> None:
    """Raise ValueError for options that no dataset can be made with."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: must be one of {DTYPES}")
    if on_bad not in ("refuse", "skip"):
        raise ValueError(f"on_bad {on_bad!r}: must be 'refuse' or 'skip'")
    if not classes or len(set(classes)) != len(classes) or not all(isinstance(c, str) for c in classes):
        raise ValueError(f"classes {classes}: must be distinct names, at least one")


def _add(packing: _Packing, sample: Sample, stored: Stored, shard_bytes: int) -> None:
    """Write an accepted utterance to its split's open shard, and finish that one if it is full."""
    classes, split = packing.accepted.classes, sample.split
    parts = packing.parts.setdefault(split, [])
    if split not in packing.open:
        packing.open[split] = open_shard(packing.target.work, shard_name(split, len(parts)), classes)
    add(packing.open[split], sample, stored, classes)
    if packing.open[split].bytes >= shard_bytes:
        _finish(packing, split)


def _finish(packing: _Packing, split: str) -> None:
    part = finish(packing.open[split], packing.target, packing.accepted)
    packing.parts[split].append(part)
    del packing.open[split]
