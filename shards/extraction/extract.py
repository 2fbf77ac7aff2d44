"""Recordings -> features -> shards, over many ranks. A stop costs at most the shards that are being made.

    plan (`shard_jobs`) -> for each job of this rank: decode, encode (`pipeline`), validate, write
    (`packing`), record (`shard_records`) -> rank 0 waits (`heartbeat`) and writes the manifest

Of the shards to make, shard j is made by rank j % world_size. If an extraction is started again, it makes the
shards that have no record yet. The manifest makes the dataset complete; then the records are removed.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from shlex import quote
from typing import Any

import numpy as np

from shards.extraction.heartbeat import RankMonitor, heartbeat_monitor, heartbeat_writer
from shards.extraction.media.container import import_av
from shards.extraction.pipeline import UNDECODABLE, DecodedClip, decode_ahead, encode
from shards.extraction.shard_jobs import AllGatherObject, ExtractionPlan, ShardJob, plan_jobs
from shards.extraction.shard_records import ShardRecord, read_records, write_record
from shards.extraction.stored_media import for_stored
from shards.format.feature_space import CONSTANT, ROUNDED, constant_provenance, extraction_provenance
from shards.format.precision_names import long_name
from shards.format.recording import Recording
from shards.format.schema import INT8, BadSample, Manifest, Sample
from shards.packing.output_folder import (
    OutputFolder,
    check_still_ours,
    commit,
    discard,
    logger,
    open_output_store,
    open_workdir,
)
from shards.packing.pack import check_options
from shards.packing.shard_writer import (
    FinishedShard,
    ShardWriter,
    check_precision,
    finish_shard,
    manifest_of,
    open_shard,
    write_sample,
)
from shards.packing.validation import PackingState, validate_or_skip
from shards.progress import progress_bar
from shards.sources.base import TRANSCRIPTS, Clip, ClipSource
from shards.storage.credentials import redact_url
from shards.storage.retry import DISK_FULL
from shards.storage.store import read_manifest

# If all clips of a shard fail, and they are at least this many, the cause is not the clips: extraction stops.
SUSPICIOUS_CLIPS = 8


def refuse_int8(dtype: str, out: str) -> None:
    """Refuse to extract int8 features.

    Their scales hold for a whole dataset, and are known when all features are. An extraction writes shards
    while other ranks still make features, and may be stopped and continued; none of them can know the scales.

    Raises:
        ValueError: the dtype is int8; names the two commands that make such a dataset.
    """
    if dtype == INT8:
        shown = quote(redact_url(out))
        raise ValueError(
            "--dtype int8: its scales are those of all features, which no rank knows while they are made: "
            f"extract with --dtype float16, then run `awtpn pack {shown} {shown}-int8 --format dataset "
            "--dtype int8`"
        )


def extract(
    source: ClipSource,
    out: str,
    *,
    audio: Any = None,
    video: Any = None,
    text: Any = None,
    rank: int = 0,
    world_size: int = 1,
    all_gather_object: AllGatherObject = lambda value: [value],
    clips_per_shard: int = 256,
    batch: int = 16,
    threads: int = 4,
    dtype: str = "float16",
    on_bad: str = "skip",
    keep_constant: bool = False,
    store_text: bool = False,
    provenance: dict[str, Any] | None = None,
    storage_options: dict[str, Any] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    patience: float = 1800.0,
    progress: bool = True,
) -> Manifest | None:
    """Make a dataset of recordings: of their features, or of the sound and pictures themselves.

    An encoder with the attribute `recording` (`waveform`, `frames`) makes no features: what it returns is
    stored as it is. Every rank calls this function, with the same arguments except `rank`. Called again after
    a stop, with any number of ranks, it continues.

    Args:
        source: the clips.
        out: any fsspec URL of a folder that all ranks reach, new or empty.
        audio: an encoder of sound (see `shards.extraction.encoders`), or None.
        video: an encoder of pictures, or None.
        text: an encoder of words, or None.
        rank: of this process, of `world_size`.
        all_gather_object: returns the objects of all ranks, in rank order, once all have called it. Ranks
            call it at the beginning only; a rank above 0 returns when its own shards are finished.
        clips_per_shard: fixed, so that shards do not depend on the number of ranks.
        batch: clips encoded at a time.
        threads: for decoding.
        dtype: of the stored features: "float16" or "float32"; or "fp16", "fp32". A warning names a feature
            for which it is too coarse. Recordings are always int16 and uint8.
        on_bad: "skip" skips a clip that fails, and lists it with its cause in `skipped.jsonl`; "refuse" stops
            at it.
        keep_constant: keep streams that never change (`media`), too. Otherwise digital silence
            or a still picture counts as a missing stream.
        store_text: store the words, too, as metadata of each utterance. They are personal data; without it
            the dataset holds only their features and times.
        provenance: further facts for the manifest, such as the command.
        storage_options: for the fsspec file system of `out`.
        overwrite: replace a finished dataset, which stays complete until the new one is, or another
            unfinished extraction.
        retry_failed: when it continues, make shards again if clips of them were skipped.
        patience: seconds without progress of another rank after which rank 0 stops with an error.
        progress: show it on stderr (rank 0): a bar on a terminal, lines in a log.

    Returns:
        The manifest on rank 0, None on others. If the dataset was complete already, its manifest.

    Raises:
        ValueError: no clip could be used, or none of the many clips of a shard, or a bad clip where they are
            refused; ranks that read other clips; or a folder that already holds something else.
        OSError: the recordings or the store cannot be reached, another extraction has taken the folder over,
            or a rank makes no progress.
    """
    dtype = long_name(dtype)
    refuse_int8(dtype, out)
    classes, target, targets = check_options(source.classes, dtype, on_bad, source.target, source.targets)
    source = replace(source, classes=classes, target=target, targets=targets)
    given = {"audio": audio, "video": video, "text": text}
    encoders = {
        name: for_stored(name, encoder, source.stored.get(name))
        for name, encoder in given.items()
        if encoder is not None
    }
    if not encoders:
        raise ValueError("there is nothing to extract: give an encoder of audio, of video or of text")
    if store_text and text is None:
        raise ValueError("store_text stores the words of text features: give an encoder of text, too")
    if min(clips_per_shard, batch, threads) < 1:
        raise ValueError(f"clips_per_shard={clips_per_shard}, batch={batch}, threads={threads}: at least 1")
    settings: dict[str, Any] = {"clips_per_shard": clips_per_shard, "dtype": dtype, "on_bad": on_bad}
    if not keep_constant:
        # Only where they are not kept, so that extractions continue which began before the option existed.
        settings["constant"] = "missing"
    if store_text:
        settings["store_text"] = True
    if {"audio", "video"} & encoders.keys() and any(isinstance(c, Clip) and c.files for c in source.clips):
        import_av()  # before anything is written
    store = open_output_store(str(out), storage_options)
    plan = plan_jobs(
        source,
        encoders,
        store,
        settings,
        overwrite=overwrite,
        retry_failed=retry_failed,
        rank=rank,
        all_gather_object=all_gather_object,
    )
    if plan.is_complete:
        return read_manifest(store) if rank == 0 else None
    folder = open_workdir(store, plan.token, plan.generation)
    try:
        owners = {job.name: i % world_size for i, job in enumerate(plan.unfinished)}
        monitor = RankMonitor(folder, {name: owner for name, owner in owners.items() if owner > 0}, patience)
        on_progress = heartbeat_monitor(monitor) if rank == 0 else heartbeat_writer(folder, rank, patience)
        # The widths are known before the first clip, so that a shard does not depend on those before it.
        recordings = recordings_of(encoders)
        dims = {name: (int(e.dim), "the encoder") for name, e in encoders.items() if name not in recordings}
        state = PackingState(classes, np.dtype(dtype), target, targets, dims=dims, recordings=recordings)
        jobs = plan.unfinished[rank::world_size]
        clips = [clip for job in jobs for clip in job.clips]
        with (
            progress_bar("extract", "clip", len(clips), show=rank == 0 and progress) as bar,
            # Clips of the next shard are decoded while the last ones of this shard are encoded. A batch of an
            # encoder has clips of one shard only, so that the shard's bytes do not depend on other shards.
            closing(decode_ahead(clips, encoders, threads, keep_constant)) as decoded,
        ):
            for job in jobs:
                readable = check_readable(islice(decoded, len(job.clips)), on_progress)
                samples = encode(readable, encoders, batch, on_progress, store_text)
                record = write_shard(job, samples, folder, state, on_bad, bar.update)
                check_not_all_failed(job, record)
                write_record(folder, job.name, record)
        if rank > 0:
            return None
        monitor.wait(progress)
        facts = {**source.provenance, **(provenance or {}), **extraction_provenance(encoders)}
        return write_dataset(plan, folder, state, facts, keep_constant)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise OSError(
                f"{store.url}: no room left ({error}); shards are built in {folder.workdir.parent}. "
                "Make room, and the same command continues"
            ) from None
        if isinstance(error, FileNotFoundError):
            check_still_ours(folder)  # another extraction may have removed our files
        raise
    finally:
        shutil.rmtree(folder.workdir, ignore_errors=True)


def recordings_of(encoders: Mapping[str, Any]) -> dict[str, Recording]:
    """The modalities that are stored as recorded, by encoders without features."""
    return {name: encoder.recording for name, encoder in encoders.items() if hasattr(encoder, "recording")}


# --- One shard -----------------------------------------------------------------------------------


def check_readable(clips: Iterable[DecodedClip], on_progress: Callable[[], None]) -> Iterator[DecodedClip]:
    """The clips, with a call of `on_progress` for each.

    Raises:
        OSError: the file of one is gone or cannot be read.
    """
    for clip in clips:
        if clip.is_unreadable:
            raise OSError(
                f"{clip.cause}: the recordings are no longer there; restore them, and the same command "
                "continues"
            )
        on_progress()
        yield clip


def write_shard(
    job: ShardJob,
    samples: Iterable[Sample | BadSample],
    folder: OutputFolder,
    state: PackingState,
    on_bad: str,
    on_sample: Callable[[], object],
) -> ShardRecord:
    """Validate and write the samples of a shard, and publish it; none is made if all its clips are bad."""
    shard: ShardWriter | None = None
    skipped: list[dict[str, str]] = []
    constant: Counter[str] = Counter()
    rounded: Counter[str] = Counter()
    try:
        for sample in samples:
            encoded = validate_or_skip(sample, state, on_bad, skipped)
            if encoded is not None:
                assert isinstance(sample, Sample)
                shard = shard or open_shard(folder.workdir, job.name, state.classes)
                write_sample(shard, sample.key, encoded, state)
                constant.update(sample.meta.get(CONSTANT, ()))
                rounded.update(name for name in state.recordings if name in _rounded(sample))
            on_sample()
        finished = finish_shard(shard, folder, state) if shard else None
        return ShardRecord(finished, skipped, dict(constant), dict(rounded))
    finally:
        if shard is not None:
            shard.tar.close()


def _rounded(sample: Sample) -> list[str]:
    found = sample.meta.get(ROUNDED)  # a column of the corpus may have this name
    return found if isinstance(found, list) else []


def check_not_all_failed(job: ShardJob, record: ShardRecord) -> None:
    """Raise ValueError if every clip of a shard failed, and they are many."""
    if record.shard is None and len(job.clips) >= SUSPICIOUS_CLIPS:
        first = record.skipped[0]
        raise ValueError(
            f"all {len(job.clips)} clips of {job.name} failed, the first, {first['key']}, because "
            f"{first['cause']}; repair that, and the same command continues; or remove them from SOURCE"
        )


# --- The dataset ---------------------------------------------------------------------------------


def write_dataset(
    plan: ExtractionPlan,
    folder: OutputFolder,
    state: PackingState,
    provenance: dict[str, Any],
    keep_constant: bool,
) -> Manifest:
    """Make the manifest of all records and complete the dataset (rank 0, when all shards have a record).

    Raises:
        ValueError: no clip could be used.
        OSError: another extraction has taken the folder over, or the store cannot be reached.
    """
    url = folder.store.url
    records = read_records(folder.store, [job.name for job in plan.jobs])
    skipped = plan.skipped + [entry for record in records for entry in record.skipped]
    shards: dict[str, list[FinishedShard]] = {}
    for job, record in zip(plan.jobs, records, strict=True):
        if record.shard:
            shards.setdefault(job.split, []).append(record.shard)
    if not shards:
        # No record is kept, so that all clips are tried again after a repair.
        discard(folder)
        if not skipped:
            raise ValueError("nothing to extract: no clips")
        first = f"the first is {skipped[0]['key']}: {skipped[0]['cause']}"
        raise ValueError(f"nothing to extract: all {len(skipped)} clips failed; {first}")
    provenance = {**provenance, "extraction": plan.extraction}
    try:
        check_precision(chain.from_iterable(shards.values()), state)
    except ValueError as error:
        # Packing refuses it. But here it may have taken hours, and other features are not affected.
        logger.warning("%s: %s", url, error)
        provenance["warning"] = str(error)
    constant = sum((Counter(record.constant) for record in records), Counter[str]())
    provenance |= constant_provenance(keep_constant, constant)
    if sound := [name for name, recording in state.recordings.items() if recording.is_sound]:
        rounded = sum((Counter(record.rounded) for record in records), Counter[str]())
        provenance[ROUNDED] = {name: rounded[name] for name in sound}
    manifest = manifest_of(shards, state, provenance, len(skipped))
    for name in (state.dims.keys() | state.recordings.keys()) - manifest.modalities.keys():
        logger.warning("%s: no clip has any %s; the dataset is without it", url, name)
        manifest.provenance["features"].pop(name)
    if "text" not in manifest.modalities:
        manifest.provenance.pop(TRANSCRIPTS, None)
    if undecodable := sum(record.undecodable for record in records):
        text = "%s: %d clips are without a stream that cannot be decoded; their metadata %r says why"
        logger.warning(text, url, undecodable, UNDECODABLE)
    for name, count in sorted(constant.items()):
        text = "%s: %d clips are without their %s, which never changes; keep_constant keeps it"
        logger.warning(text, url, count, name)
    commit(folder, manifest, skipped)
    return manifest
