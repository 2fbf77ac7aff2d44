"""Utterances -> shards, indexes and a manifest.

Each split has one open shard. A shard that is full is closed, indexed by reading it back, hashed and moved to
the output folder; the manifest follows when all is there. What may be packed is decided in `checks`, what may
be in the output folder in `target`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from tqdm import tqdm

from shards.checks import Accepted, accept, check_cast
from shards.index import index_tar, save_index, scalar_kind
from shards.schema import (
    MANIFEST,
    BadSample,
    Manifest,
    Modality,
    Sample,
    ShardEntry,
    Split,
    SplitMoments,
    dump_manifest,
)
from shards.statistics import Moments, merge, moments_of
from shards.store import hash_file
from shards.target import SKIPPED, Target, check_ours, claim, logger, publish, release

DTYPES = ("float16", "float32")


@dataclass
class _OpenShard:
    """A tar being written."""

    path: Path
    tar: webdataset.TarWriter
    utterances: int = 0
    steps: dict[str, int] = field(default_factory=dict)


@dataclass
class _OpenSplit:
    """A split being written: its finished shards, the open one, and what it adds up to."""

    class_counts: np.ndarray
    shards: list[ShardEntry] = field(default_factory=list)
    open: _OpenShard | None = None
    moments: dict[str, Moments] = field(default_factory=dict)


@dataclass
class _Packing:
    """A packing under way.

    Attributes:
        kinds: per metadata field in how many utterances it was, and the kinds of its values.
        skipped: key and cause of each bad sample left out.
    """

    target: Target
    accepted: Accepted
    splits: dict[str, _OpenSplit] = field(default_factory=dict)
    kinds: dict[str, tuple[int, set[str | None]]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)


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
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: must be one of {DTYPES}")
    if on_bad not in ("refuse", "skip"):
        raise ValueError(f"on_bad {on_bad!r}: must be 'refuse' or 'skip'")
    if not classes or len(set(classes)) != len(classes) or not all(isinstance(c, str) for c in classes):
        raise ValueError(f"classes {classes}: must be distinct names, at least one")
    packing = _Packing(claim(str(out), overwrite, storage_options), Accepted(classes, np.dtype(dtype)))
    url = packing.target.store.url
    try:
        for sample in tqdm(samples, total=total, desc="pack", unit="utterance", disable=not progress):
            try:
                arrays, member = accept(sample, packing.accepted)
            except ValueError as error:
                source = f"{sample.source}: " if sample.source else ""
                if on_bad == "refuse":
                    raise ValueError(f"{source}utterance {sample.key!r}: {error}") from None
                packing.skipped.append({"key": str(sample.key), "cause": f"{source}{error}"})
                continue
            _add(packing, sample, arrays, member, shard_bytes)
        manifest = _complete(packing, provenance or {})
    finally:
        for split in packing.splits.values():
            if split.open:
                split.open.tar.close()
        shutil.rmtree(packing.target.work, ignore_errors=True)
    if manifest.skipped:
        logger.warning("%s: %d bad samples skipped, listed in %s", url, manifest.skipped, SKIPPED)
    return manifest


def _add(
    packing: _Packing, sample: Sample, arrays: dict[str, np.ndarray], member: bytes, shard_bytes: int
) -> None:
    """Write an accepted utterance to its split's open shard, and finish that one if it is full."""
    accepted = packing.accepted
    split = packing.splits.setdefault(sample.split, _OpenSplit(np.zeros(len(accepted.classes), np.int64)))
    split.class_counts[accepted.classes.index(sample.label)] += 1
    for name, value in json.loads(member).items():
        seen, kinds = packing.kinds.get(name, (0, set()))
        packing.kinds[name] = (seen + 1, kinds | {scalar_kind(value)})

    if split.open is None:
        split.open = _open_shard(packing.target.work, sample.split, len(split.shards))
    shard = split.open
    members = {f"{name}.npy": values for name, values in arrays.items()}
    shard.tar.write({"__key__": sample.key, "json": member, **members})
    shard.utterances += 1
    for name, values in arrays.items():
        shard.steps[name] = shard.steps.get(name, 0) + len(values)
        split.moments[name] = merge(split.moments.get(name), moments_of(values))
    if shard.tar.tarstream.offset >= shard_bytes:
        _finish(split, packing.target, accepted)


def _complete(packing: _Packing, provenance: dict[str, Any]) -> Manifest:
    """Finish the open shards; write what was skipped and, last of all, the manifest."""
    accepted, skipped, target = packing.accepted, packing.skipped, packing.target
    if not packing.splits:
        bad = f": all {len(skipped)} samples are bad, {skipped[0]}" if skipped else ": no samples"
        raise ValueError(f"nothing to pack{bad}")
    for split in packing.splits.values():
        _finish(split, target, accepted)
    check_cast(accepted.errors, _over_splits(packing.splits), accepted.dtype)
    if skipped:
        path = target.work / SKIPPED
        path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in skipped))
        publish(target, path)
    modalities = _modalities(accepted)
    manifest = Manifest(
        modalities=modalities,
        classes=list(accepted.classes),
        columns=_columns(packing.kinds, len(accepted.keys)),
        splits={name: _split(split, modalities) for name, split in packing.splits.items()},
        provenance={
            **provenance,
            "packed": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in ("numpy", "webdataset")},
        },
        skipped=len(skipped),
    )
    path = target.work / MANIFEST
    path.write_text(dump_manifest(manifest))
    publish(target, path)
    release(target)
    return manifest


def _open_shard(work: Path, split: str, number: int) -> _OpenShard:
    path = work / f"{split}-{number:06d}.tar"
    # Fixed time and owner: the same utterances give the same bytes.
    tar = webdataset.TarWriter(str(path), mtime=0, user="", group="")
    return _OpenShard(path, tar)


def _finish(split: _OpenSplit, target: Target, accepted: Accepted) -> None:
    """Close the open shard, if there is one, index it by reading it back, and publish both."""
    shard = split.open
    if shard is None:
        return
    check_ours(target)
    shard.tar.close()
    index = index_tar(shard.path, _modalities(accepted), accepted.classes)
    if len(index.key) != shard.utterances:
        raise RuntimeError(f"{shard.path.name}: {len(index.key)} of {shard.utterances} utterances read back")
    index_path = shard.path.with_suffix(".index.npz")
    save_index(index, index_path)
    entry = ShardEntry(
        name=shard.path.name,
        utterances=shard.utterances,
        bytes=shard.path.stat().st_size,
        sha256=hash_file(shard.path),
        index=index_path.name,
        index_bytes=index_path.stat().st_size,
        index_sha256=hash_file(index_path),
        steps=dict(sorted(shard.steps.items())),
    )
    publish(target, shard.path)
    publish(target, index_path)
    split.shards.append(entry)
    split.open = None


def _modalities(accepted: Accepted) -> dict[str, Modality]:
    return {name: Modality(dim, str(accepted.dtype)) for name, (dim, _) in sorted(accepted.dims.items())}


def _columns(kinds: dict[str, tuple[int, set[str | None]]], utterances: int) -> dict[str, str]:
    """Metadata to select by: a scalar of one kind in every utterance (integers may mix with floats)."""
    columns = {}
    for name, (seen, found) in sorted(kinds.items()):
        kind = "float" if found == {"int", "float"} else next(iter(found)) if len(found) == 1 else None
        if name != "label" and seen == utterances and kind is not None:
            columns[name] = kind
    return columns


def _over_splits(splits: dict[str, _OpenSplit]) -> dict[str, Moments]:
    total: dict[str, Moments] = {}
    for split in splits.values():
        for name, moments in split.moments.items():
            total[name] = merge(total.get(name), moments)
    return total


def _split(split: _OpenSplit, modalities: dict[str, Modality]) -> Split:
    none = {name: Moments(0, np.zeros(m.dim), np.zeros(m.dim)) for name, m in modalities.items()}
    moments = none | split.moments
    return Split(
        utterances=sum(shard.utterances for shard in split.shards),
        steps={name: moments[name].count for name in modalities},
        class_counts=split.class_counts.tolist(),
        moments={
            name: SplitMoments(moments[name].count, moments[name].mean.tolist(), moments[name].std.tolist())
            for name in modalities
        },
        shards=split.shards,
    )
