"""One shard on its way to disk, and the part that it plays in the manifest.

A finished shard is indexed by reading it back, hashed, and moved to the output folder. What the manifest must
know of its utterances stays behind as a `Part`; parts add up to the manifest, whoever made them and in
whatever order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from shards.format.hashing import hash_file
from shards.format.index import index_tar, scalar_kind
from shards.format.index_file import save_index
from shards.format.manifest import parse_shard
from shards.format.schema import DTYPES, Manifest, Modality, Sample, ShardEntry, Split, SplitStatistics
from shards.format.statistics import Statistics, merge, statistics_of
from shards.packing.output_folder import Target, check_ours, publish
from shards.packing.validation import EncodedSample, PackingState, check_cast
from shards.safe_io.file_names import as_text


@dataclass
class ShardStats:
    """What utterances add up to.

    Attributes:
        class_counts: [C] utterances per class.
        utterances: their number.
        moments: per modality those of the values as stored.
        casts: per modality that was cast those of the values given, and of the error (stored - given).
        kinds: per metadata field in how many utterances it was, and the kinds of its values.
    """

    class_counts: np.ndarray
    utterances: int = 0
    moments: dict[str, Statistics] = field(default_factory=dict)
    casts: dict[str, tuple[Statistics, Statistics]] = field(default_factory=dict)
    kinds: dict[str, tuple[int, set[str | None]]] = field(default_factory=dict)


@dataclass
class ShardWriter:
    """A tar being written."""

    path: Path
    tar: webdataset.TarWriter
    tally: ShardStats

    @property
    def bytes(self) -> int:
        return int(self.tar.tarstream.offset)


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard."""

    entry: ShardEntry
    tally: ShardStats


def shard_name(split: str, number: int, generation: int = 0) -> str:
    """A shard's name; one that replaces a dataset tells its generation (see `replacement`)."""
    return f"{split}-{number:06d}" + (f"-g{generation}" if generation else "")


def open_shard(work: Path, name: str, classes: list[str]) -> ShardWriter:
    """Begin the shard `name` in the folder `work`."""
    path = work / f"{name}.tar"
    # Fixed time and owner: the same utterances give the same bytes.
    tar = webdataset.TarWriter(str(path), mtime=0, user="", group="")
    return ShardWriter(path, tar, ShardStats(np.zeros(len(classes), np.int64)))


def add(shard: ShardWriter, sample: Sample, stored: EncodedSample, classes: list[str]) -> None:
    """Write an accepted utterance."""
    members = {f"{name}.npy": values for name, values in stored.arrays.items()}
    shard.tar.write({"__key__": sample.key, "json": stored.member, **members})
    tally = shard.tally
    tally.utterances += 1
    tally.class_counts[classes.index(stored.label)] += 1
    for name, values in stored.arrays.items():
        tally.moments[name] = merge(tally.moments.get(name), statistics_of(values))
    for name, cast in stored.casts.items():
        tally.casts[name] = _merge_cast(tally.casts.get(name), cast)
    for name, value in json.loads(stored.member).items():
        seen, kinds = tally.kinds.get(name, (0, set()))
        tally.kinds[name] = (seen + 1, kinds | {scalar_kind(value)})


def finish(shard: ShardWriter, target: Target, accepted: PackingState) -> FinishedShard:
    """Close a shard, index it by reading it back, and publish both.

    Raises:
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    check_ours(target)
    shard.tar.close()
    index = index_tar(shard.path, modalities_of(accepted), accepted.classes)
    if len(index.key) != shard.tally.utterances:
        raise RuntimeError(
            f"{shard.path.name}: {len(index.key)} of {shard.tally.utterances} utterances read back"
        )
    index_path = shard.path.with_suffix(".index.npz")
    save_index(index, index_path)
    entry = ShardEntry(
        name=shard.path.name,
        utterances=shard.tally.utterances,
        bytes=shard.path.stat().st_size,
        sha256=hash_file(shard.path),
        index=index_path.name,
        index_bytes=index_path.stat().st_size,
        index_sha256=hash_file(index_path),
        steps={name: moments.count for name, moments in sorted(shard.tally.moments.items())},
    )
    publish(target, shard.path)
    publish(target, index_path)
    return FinishedShard(entry, shard.tally)


def manifest_of(
    splits: dict[str, list[FinishedShard]], accepted: PackingState, provenance: dict[str, Any], skipped: int
) -> Manifest:
    """The manifest of finished shards: per split its parts, in order."""
    tallies = {name: sum_of([part.tally for part in parts]) for name, parts in splits.items()}
    total = sum_of(list(tallies.values()))
    modalities = {name: m for name, m in modalities_of(accepted).items() if name in total.moments}
    return Manifest(
        modalities=modalities,
        classes=list(accepted.classes),
        columns=_columns(total),
        splits={
            name: _split([part.entry for part in parts], tallies[name], modalities)
            for name, parts in splits.items()
        },
        provenance=as_text(provenance),  # paths and commands may hold bytes that are no text
        skipped=skipped,
    )


def check_precision(parts: Iterable[FinishedShard], accepted: PackingState) -> None:
    """Raise ValueError, naming the feature, if the stored dtype ruins one."""
    check_cast(sum_of([part.tally for part in parts]).casts, accepted.dtype)


def modalities_of(accepted: PackingState) -> dict[str, Modality]:
    return {name: Modality(dim, str(accepted.dtype)) for name, (dim, _) in sorted(accepted.dims.items())}


def sum_of(tallies: list[ShardStats]) -> ShardStats:
    """The tally of all their utterances together; there is at least one."""
    total = ShardStats(np.zeros_like(tallies[0].class_counts))
    for tally in tallies:
        total.utterances += tally.utterances
        total.class_counts = total.class_counts + tally.class_counts
        for name, moments in tally.moments.items():
            total.moments[name] = merge(total.moments.get(name), moments)
        for name, cast in tally.casts.items():
            total.casts[name] = _merge_cast(total.casts.get(name), cast)
        for name, (count, kinds) in tally.kinds.items():
            seen, found = total.kinds.get(name, (0, set()))
            total.kinds[name] = (seen + count, found | kinds)
    return total


def _merge_cast(
    a: tuple[Statistics, Statistics] | None, b: tuple[Statistics, Statistics]
) -> tuple[Statistics, Statistics]:
    return b if a is None else (merge(a[0], b[0]), merge(a[1], b[1]))


# --- Parts on disk -------------------------------------------------------------------------------


def dump_part(part: FinishedShard) -> dict[str, Any]:
    """A part as plain JSON; floats keep every bit."""
    tally = part.tally
    return {
        "entry": asdict(part.entry),
        "class_counts": tally.class_counts.tolist(),
        "moments": {name: _dump_moments(m) for name, m in tally.moments.items()},
        "casts": {name: [_dump_moments(m) for m in cast] for name, cast in tally.casts.items()},
        "kinds": {
            name: [seen, sorted(kinds, key=lambda kind: kind or "")]
            for name, (seen, kinds) in tally.kinds.items()
        },
    }


def load_part(record: dict[str, Any], at: str) -> FinishedShard:
    """What `dump_part` wrote.

    Raises:
        ValueError: it tells of a shard that cannot be (`at` begins the message), or is no such record.
        KeyError, TypeError, AttributeError: it is no such record.
    """
    # The dtype is not recorded: the smaller one is never too strict.
    modalities = {name: Modality(len(mean), DTYPES[0]) for name, (_, mean, _) in record["moments"].items()}
    entry = parse_shard(record["entry"], modalities, at)
    tally = ShardStats(
        class_counts=np.array(record["class_counts"], np.int64),
        utterances=entry.utterances,
        moments={name: _load_moments(m) for name, m in record["moments"].items()},
        casts={
            name: (_load_moments(given), _load_moments(error))
            # An early record has none.
            for name, (given, error) in record.get("casts", {}).items()
        },
        kinds={name: (seen, set(kinds)) for name, (seen, kinds) in record["kinds"].items()},
    )
    return FinishedShard(entry, tally)


def _dump_moments(moments: Statistics) -> list[Any]:
    return [moments.count, moments.mean.tolist(), moments.deviation.tolist()]


def _load_moments(record: list[Any]) -> Statistics:
    count, mean, deviation = record
    moments = Statistics(count, np.array(mean, np.float64), np.array(deviation, np.float64))
    if not isinstance(count, int) or moments.mean.ndim != 1 or moments.deviation.shape != moments.mean.shape:
        raise TypeError("moments are a count, means and deviations")
    return moments


# --- The manifest's fields -----------------------------------------------------------------------


def _columns(total: ShardStats) -> dict[str, str]:
    """Metadata to select by: a scalar of one kind in every utterance (integers may mix with floats)."""
    columns = {}
    for name, (seen, found) in sorted(total.kinds.items()):
        kind = "float" if found == {"int", "float"} else next(iter(found)) if len(found) == 1 else None
        if name != "label" and seen == total.utterances and kind is not None:
            columns[name] = kind
    return columns


def _split(shards: list[ShardEntry], tally: ShardStats, modalities: dict[str, Modality]) -> Split:
    none = {name: Statistics(0, np.zeros(m.dim), np.zeros(m.dim)) for name, m in modalities.items()}
    moments = none | tally.moments
    return Split(
        utterances=tally.utterances,
        steps={name: moments[name].count for name in modalities},
        class_counts=tally.class_counts.tolist(),
        moments={
            name: SplitStatistics(
                moments[name].count, moments[name].mean.tolist(), moments[name].std.tolist()
            )
            for name in modalities
        },
        shards=shards,
    )
