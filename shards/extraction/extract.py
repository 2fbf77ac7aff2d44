"""Recordings -> features -> shards, over many ranks, so that a stop costs at most the shard being made.

    source -> deal -> decode (threads, ahead) -> encode (batches of like length) -> part -> manifest

Shard j of those to be made (`lots`) is made by rank j % world_size. A rank whose shards have their records is
done; the main rank waits until all have (`beats`), writes the manifest, which makes the dataset whole, and
takes the records away. Started again, an extraction makes what has no record yet.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from shards.extraction.heartbeat import RankMonitor, heartbeat_monitor, heartbeat_writer
from shards.extraction.pipeline import UNDECODABLE, Decoded, Encoders, decode_ahead, encode
from shards.extraction.shard_jobs import (
    Record,
    ShardJob,
    assign_clips,
    begin,
    extraction_id,
    mark_missing_files,
    of_generation,
    put_record,
    read_records,
)
from shards.format.feature_space import CONSTANT, constant_provenance, extraction_provenance
from shards.format.schema import BadSample, Manifest, Sample
from shards.packing.output_folder import (
    Target,
    check_ours,
    complete,
    discard,
    logger,
    open_folder,
    open_workdir,
    token_in,
)
from shards.packing.pack import check_options
from shards.packing.shard_writer import (
    FinishedShard,
    ShardWriter,
    add,
    check_precision,
    finish,
    manifest_of,
    open_shard,
)
from shards.packing.validation import PackingState, accept_or_skip
from shards.sources.base import ClipSource
from shards.storage.retry import DISK_FULL
from shards.storage.store import Store, read_manifest

# So many clips of one shard do not all fail by themselves.
SUSPICIOUS_CLIPS = 8

T = TypeVar("T")
# A small value of this rank -> that of each rank, in order, once all have called it.
AllGatherObject = Callable[[Any], list[Any]]


def extract(
    source: ClipSource,
    out: str,
    *,
    audio: Any = None,
    video: Any = None,
    rank: int = 0,
    world_size: int = 1,
    all_gather_object: AllGatherObject = lambda value: [value],
    clips_per_shard: int = 256,
    batch: int = 16,
    threads: int = 4,
    dtype: str = "float16",
    on_bad: str = "skip",
    keep_constant: bool = False,
    provenance: dict[str, Any] | None = None,
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    patience: float = 1800.0,
    progress: bool = True,
) -> Manifest | None:
    """Make a dataset of recordings.

    Every rank calls it with the same arguments but `rank`. Called again after a stop, with any number of
    ranks, it goes on.

    Args:
        source: the clips.
        out: any fsspec URL of a folder that all ranks reach, new or empty.
        audio: what makes features of sound (see `shards.extraction.encoders`), or None.
        video: the same for pictures.
        rank: of this process, of `world_size`.
        all_gather_object: returns every rank's value of a small object, in rank order, once all have called
            it; they do so at the beginning only. A rank above 0 returns when its own shards are there.
        clips_per_shard: fixed, so that shards do not depend on the number of ranks.
        batch: clips encoded at a time.
        threads: that decode.
        dtype: features are stored in: "float16" or "float32". A feature that it ruins is warned of.
        on_bad: "skip" leaves a clip that fails out and lists it, with its cause, in `skipped.jsonl`; "refuse"
            stops at it.
        keep_constant: make features of streams that never change (`media`), too. Otherwise a clip's
            digital silence, or its picture that stands still, counts as a stream that it lacks.
        provenance: further facts for the manifest, such as the command.
        storage_options: for the fsspec file system of `out`.
        overwrite: replace a finished dataset, which stays whole until the new one is, or another unfinished
            extraction.
        retry_failed: when it goes on, make shards again of which clips were left out.
        patience: seconds without a sign of life after which the main rank gives another one up.
        progress: show a bar on stderr (main rank).

    Returns:
        The manifest on rank 0, None on others. If all was made before, that manifest.

    Raises:
        ValueError: no clip could be used, nor one of many for a shard, or a bad one where they are refused;
            ranks that read other clips; or a folder that already holds something else.
        OSError: the recordings or the store cannot be reached, another extraction has taken the folder over,
            or a rank is gone.
    """
    source = replace(source, classes=check_options(source.classes, dtype, on_bad))
    encoders = {
        name: encoder for name, encoder in (("audio", audio), ("video", video)) if encoder is not None
    }
    if not encoders:
        raise ValueError("there is nothing to extract: give an encoder of audio, of video, or both")
    if min(clips_per_shard, batch, threads) < 1:
        raise ValueError(f"clips_per_shard={clips_per_shard}, batch={batch}, threads={threads}: at least 1")
    source = mark_missing_files(source, encoders)
    lots, bad = assign_clips(source, clips_per_shard)
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
    if not keep_constant:
        # Named only then: those who keep them go on with what was begun before one could choose.
        settings["constant"] = "missing"
    what = extraction_id(source, encoders, settings)
    digests = all_gather_object(what)
    if others := [other for other, theirs in enumerate(digests) if theirs != digests[0]]:
        raise ValueError(
            f"ranks {others} read other clips, or were given other settings, than rank 0; give all ranks the "
            "same SOURCE and options"
        )
    store = open_folder(str(out), storage_options)
    token, todo, generation = together(
        lambda: begin(store, lots, what, overwrite, retry_failed) if rank == 0 else (b"", [], 0),
        all_gather_object,
    )[0]
    if not token:
        return read_manifest(store) if rank == 0 else None
    together(lambda: check_reached(store, token, rank), all_gather_object)
    lots = of_generation(lots, generation)
    target = open_workdir(store, token, generation)
    try:
        accepted = new_accepted(source, encoders, dtype)
        owners = {lots[which].name: turn % world_size for turn, which in enumerate(todo)}
        watch = RankMonitor(target, {name: owner for name, owner in owners.items() if owner > 0}, patience)
        tick = heartbeat_monitor(watch) if rank == 0 else heartbeat_writer(target, rank, patience)
        own = [lots[which] for which in todo[rank::world_size]]
        decoded = decode_ahead((c for lot in own for c in lot.clips), encoders, threads, keep_constant)
        make(own, decoded, target, encoders, accepted, batch, on_bad, tick, progress and rank == 0)
        if rank > 0:
            return None
        watch.wait(progress)
        facts = {
            **source.provenance,
            **(provenance or {}),
            **extraction_provenance(encoders),
            "extraction": what,
        }
        return conclude(lots, bad, target, accepted, facts, keep_constant)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(
                f"{store.url}: no room left ({error}); shards are built in {target.work.parent}. Make room, "
                "and the same command goes on"
            ) from None
        if isinstance(error, FileNotFoundError):
            check_ours(target)  # another one has removed our files
        raise
    finally:
        shutil.rmtree(target.work, ignore_errors=True)


def new_accepted(source: ClipSource, encoders: Encoders, dtype: str) -> PackingState:
    """The widths are known before the first clip, so that a shard does not depend on others."""
    dims = {name: (int(encoder.dim), "the encoder") for name, encoder in encoders.items()}
    return PackingState(source.classes, np.dtype(dtype), dims=dims)


# --- The beginning -------------------------------------------------------------------------------


def together(call: Callable[[], T], all_gather_object: AllGatherObject) -> list[T]:
    """What `call` returns on each rank. Where it raises, all ranks do: none waits for one that stopped."""
    value, error = None, None
    try:
        value = call()
    except (ValueError, OSError) as raised:
        error = raised
    answers = all_gather_object((value, error and str(error)))
    if error is not None:
        raise error
    for _, cause in answers:
        if cause is not None:
            raise ValueError(cause)
    return [value for value, _ in answers]


def check_reached(store: Store, token: bytes, rank: int) -> None:
    """Raise ValueError if this rank does not see what the main one has put into the folder."""
    if token_in(store) != token:
        raise ValueError(f"{store.url}: rank {rank} sees another folder than rank 0; give one that all reach")


# --- One rank's work -----------------------------------------------------------------------------


def make(
    lots: list[ShardJob],
    decoded: Generator[Decoded, None, None],
    target: Target,
    encoders: Encoders,
    accepted: PackingState,
    batch: int,
    on_bad: str,
    tick: Callable[[], None],
    progress: bool,
) -> None:
    """Make shards, one after another; decoding goes on across their borders, batches do not.

    Args:
        decoded: the clips of all of them, in order.
        tick: called with each clip and batch.

    Raises:
        ValueError: every clip of a shard failed, and they are many.
        OSError: the recordings went away, the store cannot be reached, or another extraction took it over.
    """
    total = sum(len(lot.clips) for lot in lots)
    with tqdm(total=total, desc="extract", unit="clip", disable=not progress) as bar, closing(decoded):
        for lot in lots:
            samples = encode(readable(islice(decoded, len(lot.clips)), tick), encoders, batch, tick)
            record = make_shard(lot, ticking(samples, bar), target, accepted, on_bad)
            if record.part is None and len(lot.clips) >= SUSPICIOUS_CLIPS:
                first = record.skipped[0]
                raise ValueError(
                    f"all {len(lot.clips)} clips of {lot.name} failed, the first, {first['key']}, since "
                    f"{first['cause']}; repair that, and the same command goes on; or take them out of SOURCE"
                )
            put_record(record, lot, target)


def readable(decoded: Iterable[Decoded], tick: Callable[[], None]) -> Iterator[Decoded]:
    for each in decoded:
        if each.lost:
            raise OSError(f"{each.cause}: the recordings went away; with them back, the same command goes on")
        tick()
        yield each


def ticking(samples: Iterator[Sample | BadSample], bar: Any) -> Iterator[Sample | BadSample]:
    for sample in samples:
        yield sample
        bar.update()


def make_shard(
    lot: ShardJob, samples: Iterator[Sample | BadSample], target: Target, accepted: PackingState, on_bad: str
) -> Record:
    """Write a shard and publish it; there is none if all its clips are bad."""
    shard: ShardWriter | None = None
    skipped: list[dict[str, str]] = []
    constant: Counter[str] = Counter()
    try:
        for sample in samples:
            stored = accept_or_skip(sample, accepted, on_bad, skipped)
            if stored is not None:
                assert isinstance(sample, Sample)
                shard = shard or open_shard(target.work, lot.name, accepted.classes)
                add(shard, sample, stored, accepted.classes)
                constant.update(sample.meta.get(CONSTANT, ()))
        return Record(finish(shard, target, accepted) if shard else None, skipped, dict(constant))
    finally:
        if shard is not None:
            shard.tar.close()


# --- The main rank's end -------------------------------------------------------------------------


def conclude(
    lots: list[ShardJob],
    bad: list[dict[str, str]],
    target: Target,
    accepted: PackingState,
    provenance: dict[str, Any],
    keep_constant: bool,
) -> Manifest:
    """Add up the records and write the manifest.

    Raises:
        ValueError: no clip could be used.
    """
    records = read_records(target.store, lots)
    skipped = bad + [entry for record in records for entry in record.skipped]
    parts: dict[str, list[FinishedShard]] = {}
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
    constant = sum((Counter(record.constant) for record in records), Counter[str]())
    provenance = {**provenance, **constant_provenance(keep_constant, constant)}
    manifest = manifest_of(parts, accepted, provenance, len(skipped))
    for name in accepted.dims.keys() - manifest.modalities.keys():
        logger.warning("%s: no clip has any %s; the dataset is without it", target.store.url, name)
        manifest.provenance["features"].pop(name)
    if lacking := sum(record.lacking for record in records):
        logger.warning(
            "%s: %d clips go without a stream that cannot be decoded; their metadata %r says why",
            target.store.url,
            lacking,
            UNDECODABLE,
        )
    for name, count in sorted(constant.items()):
        logger.warning(
            "%s: %d clips go without their %s, which never changes; keep_constant keeps it",
            target.store.url,
            count,
            name,
        )
    complete(target, manifest, skipped)
    return manifest
