"""Which utterances two streams share, whatever their datasets, splits and keys are called.

Two utterances are the same if all their arrays are: compared by the CRC-32 and the number of time steps of
each array. The indexes hold both, so no features are read. A copy in another dtype, or features that were
extracted again, do not compare as equal; only their keys may show it, see `common_by_key`.

Training uses it to refuse evaluation data that it trains on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from shards.storage.store import map_files
from shards.streaming.stream import FeatureStream

# With more, the comparison would take longer than about ten seconds, and is skipped.
MOST_UTTERANCES = 2_000_000
MOST_REMOTE_INDEXES = 1_000  # small files, but each needs a request
# Number of keys that are given as examples.
EXAMPLES = 5


@dataclass(frozen=True)
class CommonUtterances:
    """Utterances of a stream that are also in another one.

    Attributes:
        count: number of them.
        total: number of all utterances of the stream.
        examples: keys of the first of them.
    """

    count: int
    total: int
    examples: list[str]


def same_shards(one: FeatureStream, other: FeatureStream) -> bool:
    """Whether both read the same split or copies of it, compared by the hashes of their shards."""
    return _shard_hashes(one) == _shard_hashes(other)


def same_dataset(one: FeatureStream, other: FeatureStream) -> bool:
    """Whether both read splits of one dataset or of copies of it, in which keys are unique."""
    return one.manifest.splits == other.manifest.splits


def why_not_comparable(streams: list[FeatureStream]) -> str | None:
    """Why these streams are too large to compare; None if they are not."""
    utterances = sum(stream.num_utterances for stream in streams)
    if utterances > MOST_UTTERANCES:
        return f"{utterances:,} utterances are more than {MOST_UTTERANCES:,}"
    # Counted by hash, since two streams of one split read the same files.
    remote = {entry.index_sha256 for s in streams if s.store.cache is not None for entry in s.shards}
    if len(remote) > MOST_REMOTE_INDEXES:
        return f"{len(remote):,} remote index files are more than {MOST_REMOTE_INDEXES:,}"
    return None


def content_hashes(stream: FeatureStream) -> np.ndarray | None:
    """A hash of each selected utterance's arrays, [U] uint64 in the manifest's order.

    It is 0 for an utterance without any of the modalities, and for one whose index is damaged if the stream
    skips damage. None for a dataset of an early version, whose indexes hold no checksums.

    Raises:
        ValueError: an index is missing or damaged.
        OSError: the store cannot be reached.
    """
    found = list(map_files(stream.store, partial(_hashes_of_shard, stream), range(len(stream.shards))))
    known = [part for part in found if part is not None]
    return np.concatenate(known) if len(known) == len(found) else None


def common_by_content(one: np.ndarray, other: np.ndarray, stream: FeatureStream) -> CommonUtterances:
    """The utterances of `stream` that are also in another stream.

    Args:
        one: `content_hashes` of the other stream.
        other: `content_hashes` of `stream`.
        stream: to look up keys.
    """
    found = np.flatnonzero(np.isin(other, one[one != 0]))
    return CommonUtterances(len(found), len(other), list(_keys_at(stream, found[:EXAMPLES])))


def common_by_key(
    one: FeatureStream, other: FeatureStream, excluded: np.ndarray | None = None
) -> CommonUtterances:
    """The selected utterances of `other` whose keys are among those of `one`.

    Args:
        one, other: streams of two datasets.
        excluded: [U] bool in the manifest's order: utterances of `other` that are not counted.

    Raises:
        ValueError: an index is missing or damaged.
        OSError: the store cannot be reached.
    """
    keys = np.concatenate(_keys(one))
    other_keys = np.concatenate(_keys(other))
    # No utterance has an empty key; it marks utterances of a damaged index.
    same = np.isin(other_keys, keys[keys != ""])
    found = np.flatnonzero(same if excluded is None else same & ~excluded)
    return CommonUtterances(len(found), len(other_keys), [str(key) for key in other_keys[found[:EXAMPLES]]])


def _keys(stream: FeatureStream) -> list[np.ndarray]:
    """The keys of each shard's selected utterances; empty ones where its index is damaged and skipped."""
    return list(map_files(stream.store, partial(_keys_of_shard, stream), range(len(stream.shards))))


def _keys_of_shard(stream: FeatureStream, shard: int) -> np.ndarray:
    rows = stream.selected(shard)
    try:
        return stream.index(shard).key[rows]
    except (ValueError, FileNotFoundError):
        if not stream.skips_damaged:
            raise
        return np.zeros(len(rows), np.str_)


def _hashes_of_shard(stream: FeatureStream, shard: int) -> np.ndarray | None:
    """`content_hashes` of a shard's selected utterances."""
    rows = stream.selected(shard)
    try:
        index = stream.index(shard)
    except (ValueError, FileNotFoundError):
        if not stream.skips_damaged:
            raise
        return np.zeros(len(rows), np.uint64)
    hashes = np.zeros(len(rows), np.uint64)
    total_steps = np.zeros(len(rows), np.int64)
    for modality in sorted(stream.modalities):
        if modality not in index.crc:
            if index.steps[modality][rows].any():
                return None
            crc = np.zeros(len(rows), np.uint64)
        else:
            crc = index.crc[modality][rows].astype(np.uint64)
        steps = index.steps[modality][rows]
        total_steps += steps
        hashes = _mix(hashes ^ (steps.astype(np.uint64) << np.uint64(32) | crc))
    return np.where(total_steps > 0, hashes, np.uint64(0))


def _mix(words: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the result depends on every bit of the word, [U] uint64."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _keys_at(stream: FeatureStream, positions: np.ndarray) -> Iterator[str]:
    """Keys of the utterances at these positions among the selected ones, in the manifest's order."""
    ends = np.cumsum([len(stream.selected(shard)) for shard in range(len(stream.shards))])
    for position in positions.tolist():
        shard = int(np.searchsorted(ends, position, side="right"))
        rows = stream.selected(shard)
        yield str(stream.index(shard).key[rows[position - ends[shard]]])


def _shard_hashes(stream: FeatureStream) -> list[str]:
    return sorted(entry.sha256 for entry in stream.shards)
