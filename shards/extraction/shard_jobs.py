"""The shards that an extraction is to make, and the records of those that it has made.

The clips of each split are dealt, in order, to shards of a fixed number of clips: what is in a shard depends
neither on the number of ranks nor on what was made before. Beside a finished shard lies a record of it
(`.part.json`), until the manifest is there; what has a record is not made again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from shards.extraction.pipeline import UNDECODABLE, Encoders
from shards.format.feature_space import space_of
from shards.format.schema import BadSample
from shards.packing.output_folder import (
    EXTRACTION,
    PART,
    Target,
    check_available,
    clear_and_mark,
    logger,
    names_in,
    publish,
    remove_temporary,
    unfinished_replacement,
    write_json_lines,
    write_marker,
)
from shards.packing.shard_writer import FinishedShard, dump_part, load_part, shard_name
from shards.packing.validation import PackingState, check_names
from shards.safe_io.bounded_json import parse_json
from shards.sources.base import Clip, ClipSource
from shards.storage.store import NoManifest, Store, call_store, read_manifest

RECORD_THREADS = 8


@dataclass(frozen=True)
class ShardJob:
    """The clips of one shard to be."""

    name: str
    clips: list[Clip]

    @property
    def split(self) -> str:
        return self.clips[0].split


@dataclass(frozen=True)
class Record:
    """What a rank leaves beside the shard it made: the part it plays (None if no clip of it could be used),
    key and cause of each clip left out, and by modality how many clips go without a stream that never
    changes."""

    part: FinishedShard | None
    skipped: list[dict[str, str]]
    constant: dict[str, int] = field(default_factory=dict)

    @property
    def lacking(self) -> int:
        """How many of its clips go without a stream that cannot be decoded."""
        return self.part.tally.kinds.get(UNDECODABLE, (0, set()))[0] if self.part else 0


def mark_missing_files(source: ClipSource, modalities: Iterable[str]) -> ClipSource:
    """The clips without those of their files that are not there. One that later is not has gone away.

    Args:
        source: the clips.
        modalities: those whose files are wanted.

    Raises:
        OSError: a file cannot be looked for.
    """
    return replace(
        source, clips=[_found(clip, modalities) if isinstance(clip, Clip) else clip for clip in source.clips]
    )


def _found(clip: Clip, modalities: Iterable[str]) -> Clip | BadSample:
    named = {name: path for name in modalities if (path := getattr(clip, name)) is not None}
    missing = {name: f"{path}: no such file" for name, path in named.items() if not path.is_file()}
    if not missing:
        return clip
    if missing.keys() == named.keys():
        return BadSample(clip.key, "; ".join(dict.fromkeys(missing.values())), clip.source)
    there = {name: None if name in missing else getattr(clip, name) for name in ("audio", "video")}
    return replace(clip, audio=there["audio"], video=there["video"], missing=missing)


def assign_clips(source: ClipSource, clips_per_shard: int) -> tuple[list[ShardJob], list[dict[str, str]]]:
    """The clips of each split, in order, by shard; and key and cause of those that are bad from the start."""
    splits: dict[str, list[Clip]] = {}
    met = PackingState(source.classes, np.dtype("float32"))
    bad = []
    for clip in source.clips:
        try:
            if isinstance(clip, BadSample):
                raise ValueError(clip.cause)
            check_names(clip.key, clip.split, clip.label, met)
        except ValueError as error:
            at = f"{clip.source}: " if clip.source else ""
            bad.append({"key": str(clip.key), "cause": f"{at}{str(error).removeprefix(at)}"})
            continue
        met.keys.add(clip.key)
        splits.setdefault(clip.split, []).append(clip)
    lots = [
        ShardJob(shard_name(split, number), clips[first : first + clips_per_shard])
        for split, clips in splits.items()
        for number, first in enumerate(range(0, len(clips), clips_per_shard))
    ]
    return lots, bad


def extraction_id(source: ClipSource, encoders: Encoders, settings: dict[str, Any]) -> str:
    """Tells extractions apart: the same one may go on where it was stopped."""
    what = {
        "clips": [asdict(clip) for clip in source.clips],
        "classes": source.classes,
        # Precision does not change what features mean, but shards of two would not be alike.
        "features": {
            name: [space_of(encoder.settings), encoder.settings.get("dtype")]
            for name, encoder in encoders.items()
        },
        "settings": settings,
    }
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def of_generation(lots: list[ShardJob], generation: int) -> list[ShardJob]:
    """The lots under the names of their shards' generation (see `replacement`)."""
    suffix = f"-g{generation}" if generation else ""
    return [replace(lot, name=lot.name + suffix) for lot in lots]


def begin(
    store: Store, lots: list[ShardJob], what: str, overwrite: bool, retry_failed: bool
) -> tuple[bytes, list[int], int]:
    """Make the folder this launch's (main rank).

    Args:
        lots: under plain names.
        what: the extraction's digest.

    Returns:
        The launch's token, empty if the dataset is complete; which lots are to be made; and the generation of
        their shards.

    Raises:
        ValueError: something else is in the folder.
        OSError: the store cannot be reached.
    """
    if not overwrite and _complete(store, what):
        if not unfinished_replacement(store):  # which may be at work
            remove_temporary(store)
        logger.warning("%s: already complete; pass overwrite to make it again", store.url)
        return b"", [], 0
    token = EXTRACTION + f"{what} {uuid.uuid4().hex}".encode()
    begun = check_available(store, token, overwrite)
    if begun is None:
        return token, list(range(len(lots))), clear_and_mark(store, token, overwrite)
    write_marker(store, token)
    lots = of_generation(lots, begun)
    there = names_in(store)
    made = [lot for lot in lots if lot.name + PART in there]
    if retry_failed:
        failed = [
            lot
            for lot, record in zip(made, read_records(store, made), strict=True)
            if record.skipped or record.lacking
        ]
        for lot in failed:
            store.fs.rm(f"{store.root}/{lot.name}{PART}")
        there -= {lot.name + PART for lot in failed}
    todo = [which for which, lot in enumerate(lots) if lot.name + PART not in there]
    logger.warning("%s: going on; %d of %d shards are there", store.url, len(lots) - len(todo), len(lots))
    return token, todo, begun


def _complete(store: Store, what: str) -> bool:
    try:
        return read_manifest(store).provenance.get("extraction") == what
    except NoManifest:
        return False


def put_record(record: Record, lot: ShardJob, target: Target) -> None:
    """Publish the record of a finished shard: from then on it is not made again."""
    path = target.work / (lot.name + PART)
    part = dump_part(record.part) if record.part else None
    write_json_lines(path, [{"part": part, "skipped": record.skipped, "constant": record.constant}])
    publish(target, path)


def read_records(store: Store, lots: list[ShardJob]) -> list[Record]:
    """What `put_record` put.

    Raises:
        ValueError: one is no such record; names it.
        OSError: one is not there, or the store cannot be reached.
    """

    def read(lot: ShardJob) -> Record:
        name = lot.name + PART
        text = call_store(store, lambda: store.fs.cat_file(f"{store.root}/{name}"), f"{store.url}/{name}")
        url = f"{store.url}/{name}"
        record = parse_json(text, url)
        try:
            part = load_part(record["part"], url) if record["part"] else None
            # An early record knows nothing of streams that never change.
            skipped, constant = record["skipped"], record.get("constant", {})
            if not isinstance(skipped, list) or not isinstance(constant, dict):
                raise TypeError("what was left out is no list")
            return Record(part, skipped, constant)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            # Behind a semicolon stands how to mend a manifest.
            cause = str(error).removeprefix(f"{url}: ").partition("; ")[0]
            raise ValueError(f"{url}: not the record of a shard ({cause}); remove it") from None

    with ThreadPoolExecutor(RECORD_THREADS) as threads:
        return list(threads.map(read, lots))
