"""Recordings -> features -> shards, over many ranks, so that a stop costs at most the shard being made.

    source -> deal -> decode (threads, ahead) -> encode (batches of like length) -> part -> manifest

The clips of each split are dealt, in order, to shards of a fixed number of clips, and shard j is made by rank
j % world_size: what is in a shard depends neither on the number of ranks nor on what was made before. Beside
each finished shard lies a record of it (`.part.json`); from these the main rank writes the manifest, which
makes the dataset whole, and then takes them away. Started again, an extraction makes what has no record yet.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.checks import Accepted, accept_or_skip, check_names
from shards.clips import Clip, ClipSource
from shards.feature_space import making, space_of
from shards.features import LACKING, Encoders, decode_ahead, encode
from shards.part import (
    OpenShard,
    Part,
    add,
    check_precision,
    dump_part,
    finish,
    load_part,
    manifest_of,
    open_shard,
    shard_name,
)
from shards.retry import DISK_FULL
from shards.schema import BadSample, Manifest, Sample
from shards.store import Store, asking
from shards.target import (
    EXTRACTION,
    PART,
    Target,
    complete,
    discard,
    hold,
    logger,
    look,
    names_in,
    open_folder,
    publish,
    take,
    token_in,
    write_json_lines,
)
from shards.writer import check_options

RECORD_THREADS = 8


@dataclass(frozen=True)
class Lot:
    """The clips of one shard to be."""

    name: str
    clips: list[Clip]

    @property
    def split(self) -> str:
        return self.clips[0].split


@dataclass(frozen=True)
class Record:
    """What a rank leaves beside the shard it made: the part it plays (None if no clip of it could be used),
    and key and cause of each clip left out."""

    part: Part | None
    skipped: list[dict[str, str]]


def extract(
    source: ClipSource,
    out: str,
    *,
    audio: Any = None,
    video: Any = None,
    rank: int = 0,
    world_size: int = 1,
    wait: Callable[[], None] = lambda: None,
    clips_per_shard: int = 256,
    batch: int = 16,
    threads: int = 4,
    dtype: str = "float16",
    on_bad: str = "skip",
    provenance: dict[str, Any] | None = None,
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Manifest | None:
    """Make a dataset of recordings.

    Every rank calls it with the same arguments but `rank`. Called again after a stop, with any number of
    ranks, it goes on.

    Args:
        source: the clips.
        out: any fsspec URL of a folder that all ranks reach, new or empty.
        audio: what makes features of sound (see `shards.encoders`), or None.
        video: the same for pictures.
        rank: of this process, of `world_size`.
        wait: returns once every rank has called it.
        clips_per_shard: fixed, so that shards do not depend on the number of ranks.
        batch: clips encoded at a time.
        threads: that decode.
        dtype: features are stored in: "float16" or "float32". A feature that it ruins is warned of.
        on_bad: "skip" leaves a clip that fails out and lists it, with its cause, in `skipped.jsonl`; "refuse"
            stops at it.
        provenance: further facts for the manifest, such as the command.
        storage_options: for the fsspec file system of `out`.
        overwrite: replace a finished dataset, or another unfinished extraction, that is there.
        progress: show a bar on stderr (main rank).

    Returns:
        The manifest on rank 0, None on others.

    Raises:
        ValueError: no clip could be used, a bad one where they are refused, or a folder that already holds
            something else.
        RuntimeError: another extraction has taken the folder over.
        OSError: the store cannot be reached.
    """
    check_options(source.classes, dtype, on_bad)
    encoders = {
        name: encoder for name, encoder in (("audio", audio), ("video", video)) if encoder is not None
    }
    if not encoders:
        raise ValueError("there is nothing to extract: give an encoder of audio, of video, or both")
    if min(clips_per_shard, batch, threads) < 1:
        raise ValueError(f"clips_per_shard={clips_per_shard}, batch={batch}, threads={threads}: at least 1")
    lots, bad = deal(source, clips_per_shard)
    if bad and on_bad == "refuse":
        raise ValueError(f"utterance {bad[0]['key']!r}: {bad[0]['cause']}")
    if rank == 0:
        # Before hours go into the others.
        for remark in source.remarks:
            logger.warning("%s", remark)
        if bad:
            told = "%d of %d clips cannot be used; the first, %s: %s"
            logger.warning(told, len(bad), len(source.clips), bad[0]["key"], bad[0]["cause"])
    settings = {"clips_per_shard": clips_per_shard, "dtype": dtype, "on_bad": on_bad}
    token = EXTRACTION + digest(source, encoders, settings).encode()
    store = open_folder(str(out), storage_options)

    # Every rank looks before any changes something: all refuse alike, and share the work out alike.
    resumes = look(store, token, overwrite)
    there = names_in(store) if resumes else set()
    todo = [lot for lot in lots if lot.name + PART not in there]
    wait()
    if rank == 0 and not resumes:
        take(store, token, overwrite)
    wait()
    if token_in(store) != token:
        raise ValueError(
            f"{store.url}: rank {rank} reads other clips, or was given other settings, than rank 0; give all "
            "ranks the same SOURCE and options"
        )
    target = hold(store, token)
    try:
        if resumes and rank == 0:
            logger.warning(
                "%s: going on; %d of %d shards are there", store.url, len(lots) - len(todo), len(lots)
            )
        accepted = new_accepted(source, encoders, dtype)
        make(
            todo[rank::world_size], target, encoders, accepted, batch, threads, on_bad, progress and rank == 0
        )
        wait()
        if rank > 0:
            return None
        facts = {**source.provenance, **(provenance or {}), **making(encoders)}
        return conclude(lots, bad, target, accepted, facts)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(
                f"{store.url}: no room left ({error}); shards are built in {target.work.parent}. Make room, "
                "and the same command goes on"
            ) from None
        raise
    finally:
        shutil.rmtree(target.work, ignore_errors=True)


def deal(source: ClipSource, clips_per_shard: int) -> tuple[list[Lot], list[dict[str, str]]]:
    """The clips of each split, in order, by shard; and key and cause of those that are bad from the start."""
    splits: dict[str, list[Clip]] = {}
    met = Accepted(source.classes, np.dtype("float32"))
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
        Lot(shard_name(split, number), clips[first : first + clips_per_shard])
        for split, clips in splits.items()
        for number, first in enumerate(range(0, len(clips), clips_per_shard))
    ]
    return lots, bad


def digest(source: ClipSource, encoders: Encoders, settings: dict[str, Any]) -> str:
    """Tells extractions apart: the same one may go on where it was stopped."""
    what = {
        "clips": [asdict(clip) for clip in source.clips],
        "classes": source.classes,
        "features": {name: space_of(encoder.settings) for name, encoder in encoders.items()},
        "settings": settings,
    }
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def new_accepted(source: ClipSource, encoders: Encoders, dtype: str) -> Accepted:
    """The widths are known before the first clip, so that a shard does not depend on others."""
    dims = {name: (int(encoder.dim), "the encoder") for name, encoder in encoders.items()}
    return Accepted(source.classes, np.dtype(dtype), dims=dims)


# --- One rank's work -----------------------------------------------------------------------------


def make(
    lots: list[Lot],
    target: Target,
    encoders: Encoders,
    accepted: Accepted,
    batch: int,
    threads: int,
    on_bad: str,
    progress: bool,
) -> None:
    """Make shards, one after another; decoding goes on across their borders, batches do not."""
    clips = [clip for lot in lots for clip in lot.clips]
    decoded = decode_ahead(clips, encoders, threads)
    with tqdm(total=len(clips), desc="extract", unit="clip", disable=not progress) as bar, closing(decoded):
        for lot in lots:
            samples = encode(islice(decoded, len(lot.clips)), encoders, batch)
            record = make_shard(lot, ticking(samples, bar), target, accepted, on_bad)
            put_record(record, lot, target)


def ticking(samples: Iterator[Sample | BadSample], bar: Any) -> Iterator[Sample | BadSample]:
    for sample in samples:
        yield sample
        bar.update()


def make_shard(
    lot: Lot, samples: Iterator[Sample | BadSample], target: Target, accepted: Accepted, on_bad: str
) -> Record:
    """Write a shard and publish it; there is none if all its clips are bad."""
    shard: OpenShard | None = None
    skipped: list[dict[str, str]] = []
    try:
        for sample in samples:
            stored = accept_or_skip(sample, accepted, on_bad, skipped)
            if stored is not None:
                assert isinstance(sample, Sample)
                shard = shard or open_shard(target.work, lot.name, accepted.classes)
                add(shard, sample, stored, accepted.classes)
        return Record(finish(shard, target, accepted) if shard else None, skipped)
    finally:
        if shard is not None:
            shard.tar.close()


def put_record(record: Record, lot: Lot, target: Target) -> None:
    """Publish the record of a finished shard: from then on it is not made again."""
    path = target.work / (lot.name + PART)
    part = dump_part(record.part) if record.part else None
    write_json_lines(path, [{"part": part, "skipped": record.skipped}])
    publish(target, path)


# --- The main rank's end -------------------------------------------------------------------------


def conclude(
    lots: list[Lot],
    bad: list[dict[str, str]],
    target: Target,
    accepted: Accepted,
    provenance: dict[str, Any],
) -> Manifest:
    """Add up the records and write the manifest.

    Raises:
        ValueError: no clip could be used.
    """
    with ThreadPoolExecutor(RECORD_THREADS) as threads:
        records = list(threads.map(lambda lot: read_record(target.store, lot), lots))
    skipped = bad + [entry for record in records for entry in record.skipped]
    parts: dict[str, list[Part]] = {}
    for lot, record in zip(lots, records, strict=True):
        if record.part:
            parts.setdefault(lot.split, []).append(record.part)
    if not parts:
        # Nothing is worth going on with: once the cause is repaired, all is to be tried again.
        discard(target)
        if not skipped:
            raise ValueError("nothing to extract: no clips")
        first = f"the first is {skipped[0]['key']}: {skipped[0]['cause']}"
        raise ValueError(f"nothing to extract: all {len(skipped)} clips failed; {first}")
    try:
        check_precision(chain.from_iterable(parts.values()), accepted)
    except ValueError as error:
        # Packing refuses it; but here hours may have gone into it, and one feature is not the dataset.
        logger.warning("%s: %s", target.store.url, error)
        provenance = {**provenance, "warning": str(error)}
    manifest = manifest_of(parts, accepted, provenance, len(skipped))
    for name in accepted.dims.keys() - manifest.modalities.keys():
        logger.warning("%s: no clip has any %s; the dataset is without it", target.store.url, name)
        manifest.provenance["features"].pop(name)
    tallies = [part.tally for part in chain.from_iterable(parts.values())]
    if lacking := sum(tally.kinds.get(LACKING, (0, set()))[0] for tally in tallies):
        logger.warning(
            "%s: %d clips go without a stream that cannot be decoded; their metadata %r says why",
            target.store.url,
            lacking,
            LACKING,
        )
    complete(target, manifest, skipped)
    return manifest


def read_record(store: Store, lot: Lot) -> Record:
    """What `put_record` put.

    Raises:
        OSError: it is not there, or the store cannot be reached.
    """
    name = lot.name + PART
    text = asking(store, lambda: store.fs.cat_file(f"{store.root}/{name}"), f"{store.url}/{name}")
    record = json.loads(text)
    return Record(load_part(record["part"]) if record["part"] else None, record["skipped"])
