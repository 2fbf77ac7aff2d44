"""Records of finished shards, by which an extraction continues where it was stopped.

A rank writes one (`.part.json`) beside each shard that it has finished. A shard with a record is not made
again. Rank 0 makes the manifest of all records, and removes them when the manifest is there.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shards.extraction.pipeline import UNDECODABLE
from shards.format.manifest import parse_shard
from shards.format.schema import DTYPES, TARGETS_SINCE, Modality
from shards.format.statistics import Statistics
from shards.packing.output_folder import RECORD_SUFFIX, OutputFolder, publish, write_json_lines
from shards.packing.shard_writer import FinishedShard, ShardStats
from shards.safe_io.bounded_json import parse_json
from shards.storage.store import Store, call_store

READING_THREADS = 8
RECORD_VERSION = TARGETS_SINCE  # the schema version with which a record last changed
# The index of a shard of schema version 1 has no column of a field that some of its utterances lack. So the
# dataset must not have one, or all its values would seem to be missing.
_NO_COLUMN = frozenset({None})


@dataclass(frozen=True)
class ShardRecord:
    """The result of one shard: what was made of its clips.

    Attributes:
        shard: the finished shard; None if none of its clips could be used.
        skipped: key and cause of each clip that was skipped.
        constant: by modality the number of clips without a stream because it never changes.
        rounded: by modality the number of clips whose sound was rounded to 16 bits.
    """

    shard: FinishedShard | None
    skipped: list[dict[str, str]]
    constant: dict[str, int] = field(default_factory=dict)
    rounded: dict[str, int] = field(default_factory=dict)

    @property
    def undecodable(self) -> int:
        """The number of clips without a stream because it cannot be decoded."""
        return self.shard.stats.kinds.get(UNDECODABLE, (0, set()))[0] if self.shard else 0


def record_name(shard: str) -> str:
    return shard + RECORD_SUFFIX


def write_record(folder: OutputFolder, shard: str, record: ShardRecord) -> None:
    """Publish the record of a finished shard: from then on the shard is not made again."""
    path = folder.workdir / record_name(shard)
    part = _dump_shard(record.shard) if record.shard else None
    entry = {"part": part, "skipped": record.skipped, "constant": record.constant, "rounded": record.rounded}
    write_json_lines(path, [{"schema_version": RECORD_VERSION, **entry}])
    publish(folder, path)


def read_records(store: Store, shards: list[str]) -> list[ShardRecord]:
    """The records of shards, by their names.

    Raises:
        ValueError: a file is not such a record; names it.
        OSError: one is not there, or the store cannot be reached.
    """
    with ThreadPoolExecutor(READING_THREADS) as threads:
        return list(threads.map(lambda shard: _read_record(store, shard), shards))


def _read_record(store: Store, shard: str) -> ShardRecord:
    name = record_name(shard)
    url = f"{store.url}/{name}"
    record = parse_json(call_store(store, lambda: store.fs.cat_file(f"{store.root}/{name}"), url), url)
    try:
        version = record.get("schema_version", 1)
        finished = _load_shard(record["part"], url, version) if record["part"] else None
        # Version 0.1 wrote records without "constant" at first.
        skipped, constant = record["skipped"], record.get("constant", {})
        rounded = record.get("rounded", {})  # since version 0.6
        if not isinstance(skipped, list) or not isinstance(constant, dict) or not isinstance(rounded, dict):
            raise TypeError("skipped must be a list, constant and rounded objects")
        return ShardRecord(finished, skipped, constant, rounded)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        # What follows the semicolon says how to repair a manifest, which this is not.
        cause = str(error).removeprefix(f"{url}: ").partition("; ")[0]
        raise ValueError(f"{url}: not the record of a shard ({cause}); remove it") from None


# --- JSON ----------------------------------------------------------------------------------------


def _dump_shard(shard: FinishedShard) -> dict[str, Any]:
    """A finished shard as plain JSON; floats keep every bit."""
    stats = shard.stats
    return {
        "entry": asdict(shard.entry),
        "class_counts": stats.class_counts.tolist(),
        "moments": {name: _dump_statistics(of) for name, of in stats.statistics.items()},
        "casts": {name: [_dump_statistics(of) for of in cast] for name, cast in stats.casts.items()},
        "kinds": {
            name: [count, sorted(kinds, key=lambda kind: kind or "")]
            for name, (count, kinds) in stats.kinds.items()
        },
    }


def _load_shard(record: dict[str, Any], at: str, version: int) -> FinishedShard:
    """What `_dump_shard` wrote, of datasets of this schema version.

    Raises:
        ValueError: it describes an impossible shard (`at` begins the message), or is not such a record.
        KeyError, TypeError, AttributeError: it is not such a record.
    """
    # The dtype is not recorded: the smaller one makes no check too strict.
    modalities = {name: Modality(len(mean), DTYPES[0]) for name, (_, mean, _) in record["moments"].items()}
    entry = parse_shard(record["entry"], modalities, at)
    early = version < TARGETS_SINCE
    stats = ShardStats(
        class_counts=np.array(record["class_counts"], np.int64),
        utterances=entry.utterances,
        statistics={name: _load_statistics(of) for name, of in record["moments"].items()},
        casts={
            name: (_load_statistics(given), _load_statistics(error))
            # Version 0.1 wrote records without it at first.
            for name, (given, error) in record.get("casts", {}).items()
        },
        kinds={
            name: (count, set(kinds) | (_NO_COLUMN if early and count < entry.utterances else set()))
            for name, (count, kinds) in record["kinds"].items()
        },
    )
    return FinishedShard(entry, stats)


def _dump_statistics(statistics: Statistics) -> list[Any]:
    return [statistics.count, statistics.mean.tolist(), statistics.squared_deviations.tolist()]


def _load_statistics(record: list[Any]) -> Statistics:
    count, mean, squared_deviations = record
    found = Statistics(count, np.array(mean, np.float64), np.array(squared_deviations, np.float64))
    if (
        not isinstance(count, int)
        or found.mean.ndim != 1
        or found.squared_deviations.shape != found.mean.shape
    ):
        raise TypeError("statistics are a count, means and deviations")
    return found
