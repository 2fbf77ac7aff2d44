"""Write one shard, and compute what the manifest says of it.

A finished shard is indexed by reading it back, hashed, and moved to the output folder. A `FinishedShard` has
what the manifest needs of its utterances. The manifest is made of all finished shards; it does not matter
which processes wrote them, or in which order they were finished.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from shards.format.columns import column_kinds, scalar_kind
from shards.format.hashing import hash_file
from shards.format.index import index_tar
from shards.format.index_file import save_index
from shards.format.jpeg import encode_jpeg
from shards.format.recording import DTYPE_OF
from shards.format.schema import Manifest, Modality, ShardEntry, Split, SplitStatistics, version_of
from shards.format.statistics import Statistics, merge, no_statistics, statistics_of
from shards.format.targets import OPTIONAL
from shards.packing.output_folder import OutputFolder, check_still_ours, publish
from shards.packing.quantization import QuantizationError, add_errors
from shards.packing.validation import EncodedSample, PackingState, check_cast
from shards.safe_io.file_names import as_text

JPEG_THREADS = 4


@dataclass
class ShardStats:
    """Counts and feature statistics of a set of utterances.

    Attributes:
        class_counts: [C] utterances per class.
        utterances: their number.
        statistics: per modality, of the values as stored; of int8 of what they stand for.
        casts: per modality that was cast, of the values given and of the error (stored - given).
        errors: per modality that was quantized.
        kinds: per metadata field the number of utterances that have it, and the kinds of its values (see
            `columns.scalar_kind`).
    """

    class_counts: np.ndarray
    utterances: int = 0
    statistics: dict[str, Statistics] = field(default_factory=dict)
    casts: dict[str, tuple[Statistics, Statistics]] = field(default_factory=dict)
    errors: dict[str, QuantizationError] = field(default_factory=dict)
    kinds: dict[str, tuple[int, set[str | None]]] = field(default_factory=dict)


@dataclass
class ShardWriter:
    """A tar being written."""

    path: Path
    tar: webdataset.TarWriter
    stats: ShardStats

    @property
    def bytes(self) -> int:
        return int(self.tar.tarstream.offset)


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard: its entry in the manifest, and the statistics of its utterances."""

    entry: ShardEntry
    stats: ShardStats


def shard_name(split: str, number: int, generation: int = 0) -> str:
    """A shard's name, with its generation where it replaces a dataset (see `replacement`)."""
    return f"{split}-{number:06d}" + (f"-g{generation}" if generation else "")


def open_shard(workdir: Path, name: str, classes: list[str]) -> ShardWriter:
    """Create the shard `name` in the folder `workdir`."""
    path = workdir / f"{name}.tar"
    # Fixed time and owner, so that the same utterances give the same bytes.
    tar = webdataset.TarWriter(str(path), mtime=0, user="", group="")
    return ShardWriter(path, tar, ShardStats(np.zeros(len(classes), np.int64)))


def write_sample(shard: ShardWriter, key: str, sample: EncodedSample, state: PackingState) -> None:
    """Write a valid utterance."""
    members: dict[str, Any] = {}
    for name, values in sample.arrays.items():
        recording = state.recordings.get(name)
        if recording and recording.jpeg_quality:
            members |= _pictures(name, values, recording.jpeg_quality)
        else:
            members[f"{name}.npy"] = values
    shard.tar.write({"__key__": key, "json": sample.json_member, **members})
    stats = shard.stats
    stats.utterances += 1
    if sample.label is not None:
        stats.class_counts[state.classes.index(sample.label)] += 1
    for name, values in sample.arrays.items():
        if quantization := state.quantizations.get(name):
            values = quantization.dequantize(values)
        # Of recordings only the steps are counted.
        found = no_statistics(len(values)) if name in state.recordings else statistics_of(values)
        stats.statistics[name] = merge(stats.statistics.get(name), found)
    for name, cast in sample.casts.items():
        stats.casts[name] = merge_cast(stats.casts.get(name), cast)
    for name, error in sample.errors.items():
        stats.errors[name] = add_errors(stats.errors.get(name), error)
    for name, value in json.loads(sample.json_member).items():
        count, kinds = stats.kinds.get(name, (0, set()))
        stats.kinds[name] = (count + 1, kinds | {scalar_kind(value)})


def _pictures(name: str, pictures: np.ndarray, quality: int) -> dict[str, bytes]:
    """A member for each picture: webdataset takes all after a key's first dot as the kind of a member."""
    with ThreadPoolExecutor(JPEG_THREADS, thread_name_prefix="jpeg") as threads:
        encoded = threads.map(partial(encode_jpeg, quality=quality), pictures)
        # All numbers have the same length, because webdataset writes the members in the order of their names.
        digits = max(4, len(str(len(pictures) - 1)))
        return {f"{name}.{number:0{digits}d}.jpg": content for number, content in enumerate(encoded)}


def finish_shard(shard: ShardWriter, folder: OutputFolder, state: PackingState) -> FinishedShard:
    """Close a shard, index it by reading it back, and publish both files.

    Raises:
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    check_still_ours(folder)
    shard.tar.close()
    index = index_tar(shard.path, modalities_of(state), state.classes)
    if len(index.key) != shard.stats.utterances:
        raise RuntimeError(
            f"{shard.path.name}: {len(index.key)} of {shard.stats.utterances} utterances read back"
        )
    index_path = shard.path.with_suffix(".index.npz")
    save_index(index, index_path)
    entry = ShardEntry(
        name=shard.path.name,
        utterances=shard.stats.utterances,
        bytes=shard.path.stat().st_size,
        sha256=hash_file(shard.path),
        index=index_path.name,
        index_bytes=index_path.stat().st_size,
        index_sha256=hash_file(index_path),
        steps={name: found.count for name, found in sorted(shard.stats.statistics.items())},
    )
    publish(folder, shard.path)
    publish(folder, index_path)
    return FinishedShard(entry, shard.stats)


# --- The manifest --------------------------------------------------------------------------------


def manifest_of(
    splits: dict[str, list[FinishedShard]], state: PackingState, provenance: dict[str, Any], skipped: int
) -> Manifest:
    """The manifest of the finished shards of each split, in order; `skipped` is the number of bad samples."""
    stats = {name: sum_stats([shard.stats for shard in shards]) for name, shards in splits.items()}
    total = sum_stats(list(stats.values()))
    modalities = {name: m for name, m in modalities_of(state).items() if name in total.statistics}
    return Manifest(
        modalities=modalities,
        classes=list(state.classes),
        columns=_columns(total, state),
        splits={
            name: _split([shard.entry for shard in shards], stats[name], modalities)
            for name, shards in splits.items()
        },
        provenance=as_text(provenance),  # paths and commands may hold bytes that are not UTF-8
        skipped=skipped,
        target=state.target,
        targets=dict(state.targets),
        schema_version=version_of(modalities),
    )


def check_precision(shards: Iterable[FinishedShard], state: PackingState) -> None:
    """Raise ValueError, naming the feature, if the rounding of the stored dtype is too coarse for one."""
    check_cast(sum_stats([shard.stats for shard in shards]).casts, state.dtype)


def modalities_of(state: PackingState) -> dict[str, Modality]:
    """The modalities of the utterances packed so far, and those whose width was known before."""
    found = {
        name: Modality(dim, str(state.dtype), quantization=state.quantizations.get(name))
        for name, (dim, _) in state.dims.items()
    }
    for name, recording in state.recordings.items():
        found[name] = Modality(recording.dim, DTYPE_OF[recording.kind], recording)
    return dict(sorted(found.items()))


def sum_stats(parts: list[ShardStats]) -> ShardStats:
    """The statistics of all their utterances together; there is at least one part."""
    total = ShardStats(np.zeros_like(parts[0].class_counts))
    for part in parts:
        total.utterances += part.utterances
        total.class_counts = total.class_counts + part.class_counts
        for name, statistics in part.statistics.items():
            total.statistics[name] = merge(total.statistics.get(name), statistics)
        for name, cast in part.casts.items():
            total.casts[name] = merge_cast(total.casts.get(name), cast)
        for name, error in part.errors.items():
            total.errors[name] = add_errors(total.errors.get(name), error)
        for name, (count, kinds) in part.kinds.items():
            before, kinds_before = total.kinds.get(name, (0, set()))
            total.kinds[name] = (before + count, kinds_before | kinds)
    return total


def merge_cast(
    a: tuple[Statistics, Statistics] | None, b: tuple[Statistics, Statistics]
) -> tuple[Statistics, Statistics]:
    """Statistics of the values of `a` and `b` together, and of their errors; None means no values."""
    return b if a is None else (merge(a[0], b[0]), merge(a[1], b[1]))


def _columns(total: ShardStats, state: PackingState) -> dict[str, str]:
    """The columns of metadata; those of the targets are always there, even if all values are missing."""
    targets = (state.target, *state.targets.values())
    of_targets = {name: OPTIONAL for target in targets for name in target.columns}
    return dict(sorted((of_targets | column_kinds(total.kinds, total.utterances)).items()))


def _split(shards: list[ShardEntry], stats: ShardStats, modalities: dict[str, Modality]) -> Split:
    none = {name: no_statistics(0, 0 if m.recording else m.dim) for name, m in modalities.items()}
    found = {name: (none | stats.statistics)[name] for name in modalities}
    return Split(
        utterances=stats.utterances,
        steps={name: of.count for name, of in found.items()},
        class_counts=stats.class_counts.tolist(),
        moments={
            name: SplitStatistics(of.count, of.mean.tolist(), of.std.tolist())
            for name, of in found.items()
            if modalities[name].recording is None
        },
        shards=shards,
    )
