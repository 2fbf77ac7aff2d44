"""Plan an extraction: which clips go into which shard, and which shards are finished already.

The clips of each split are assigned, in order, to shards of a fixed number of clips. So the content of a
shard depends neither on the number of ranks nor on what was made before. Of the unfinished shards, rank r of
W makes those at positions r, r + W, r + 2 W, ... (`extract`), on however many hosts the ranks run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from shards.extraction.pipeline import Encoders
from shards.extraction.shard_records import read_records, record_name
from shards.format.feature_space import space_of
from shards.format.schema import BadSample
from shards.format.targets import CLASSES
from shards.packing.marker import extraction_token, read_token, write_marker
from shards.packing.output_folder import (
    check_available,
    clear_and_mark,
    is_being_replaced,
    list_names,
    logger,
    remove_temporary,
)
from shards.packing.shard_writer import shard_name
from shards.packing.validation import PackingState, check_key_split_label, check_targets
from shards.sources.base import Clip, ClipSource
from shards.storage.store import NoManifest, Store, read_manifest

T = TypeVar("T")
# A small object of this rank -> that of each rank, in rank order, once all ranks have called it.
AllGatherObject = Callable[[Any], list[Any]]


@dataclass(frozen=True)
class ShardJob:
    """A shard to make: its name and its clips."""

    name: str
    clips: list[Clip]

    @property
    def split(self) -> str:
        return self.clips[0].split


@dataclass(frozen=True)
class ExtractionPlan:
    """All shards of a dataset, and what is there already.

    Attributes:
        extraction: the id of the extraction (`extraction_id`).
        jobs: a job for each shard of the dataset, in order.
        finished: names of the shards that have a record.
        skipped: key and cause of each clip that cannot be used from the start.
        token: marks the output folder as this launch's; empty if the dataset is complete.
        generation: of the shards (see `packing.replacement`).
    """

    extraction: str
    jobs: list[ShardJob]
    finished: frozenset[str]
    skipped: list[dict[str, str]]
    token: bytes
    generation: int

    @property
    def is_complete(self) -> bool:
        return not self.token

    @property
    def unfinished(self) -> list[ShardJob]:
        """The jobs to do; rank r of W does those at positions r, r + W, r + 2 W, ..."""
        return [job for job in self.jobs if job.name not in self.finished]


def plan_jobs(
    source: ClipSource,
    encoders: Encoders,
    store: Store,
    settings: dict[str, Any],
    *,
    overwrite: bool,
    retry_failed: bool,
    rank: int,
    all_gather_object: AllGatherObject,
) -> ExtractionPlan:
    """Plan the shards and mark the output folder as this launch's. Every rank calls it.

    Args:
        source: the clips.
        encoders: by modality.
        store: the output folder.
        settings: what else decides the content of the shards: `clips_per_shard`, `dtype`, `on_bad`.
        overwrite: replace a finished dataset or another unfinished extraction.
        retry_failed: make shards again if clips of them were skipped or have an undecodable stream.
        rank: of this process.
        all_gather_object: over the ranks.

    Raises:
        ValueError: a bad clip where they are refused, ranks with other clips or another folder, or a folder
            that holds something else; on every rank.
        OSError: a recording or the store cannot be reached.
    """
    source = mark_missing_files(source, encoders)
    jobs, skipped = assign_clips(source, settings["clips_per_shard"])
    if skipped and settings["on_bad"] == "refuse":
        raise ValueError(f"utterance {skipped[0]['key']!r}: {skipped[0]['cause']}")
    if rank == 0:
        # Now, because the extraction of the other clips may take hours.
        _warn_of_source(source, skipped)
    extraction = extraction_id(source, encoders, settings)
    ids = all_gather_object(extraction)
    if others := [other for other, theirs in enumerate(ids) if theirs != ids[0]]:
        raise ValueError(
            f"ranks {others} read other clips, or were given other settings, than rank 0; give all ranks the "
            "same SOURCE and options"
        )
    claim = gather_or_raise(
        lambda: claim_folder(store, jobs, extraction, overwrite, retry_failed) if rank == 0 else None,
        all_gather_object,
    )[0]
    assert claim is not None, "rank 0 claims the folder"
    token, generation, finished = claim
    if token:
        gather_or_raise(lambda: check_same_folder(store, token, rank), all_gather_object)
    jobs = with_generation(jobs, generation)
    return ExtractionPlan(extraction, jobs, finished, skipped, token, generation)


def _warn_of_source(source: ClipSource, skipped: list[dict[str, str]]) -> None:
    for remark in source.remarks:
        logger.warning("%s", remark)
    if skipped:
        text = "%d of %d clips cannot be used; the first, %s: %s"
        logger.warning(text, len(skipped), len(source.clips), skipped[0]["key"], skipped[0]["cause"])


# --- Clips ---------------------------------------------------------------------------------------


def mark_missing_files(source: ClipSource, modalities: Iterable[str]) -> ClipSource:
    """Remove from the clips what is not wanted, and files that do not exist.

    If a file exists now and is missing later, the storage has failed, and not the clip.

    Args:
        source: the clips.
        modalities: those that are wanted.

    Raises:
        ValueError: the corpus lacks a wanted modality (`ClipSource.missing`).
        OSError: the file system does not answer.
    """
    wanted = tuple(modalities)
    for name in wanted:
        if name in source.missing:
            raise ValueError(source.missing[name])
    clips = [_without_missing(clip, wanted) if isinstance(clip, Clip) else clip for clip in source.clips]
    return replace(source, clips=clips)


def _without_missing(clip: Clip, modalities: Collection[str]) -> Clip | BadSample:
    text = clip.text if "text" in modalities else None
    paths = {name: getattr(clip, name) for name in ("audio", "video")}
    wanted = {name: path for name, path in paths.items() if name in modalities and path is not None}
    lost = {name: f"{path}: no such file" for name, path in wanted.items() if not path.is_file()}
    missing = {name: cause for name, cause in clip.missing.items() if name in modalities} | lost
    if missing and text is None and lost.keys() == wanted.keys():
        return BadSample(clip.key, "; ".join(dict.fromkeys(missing.values())), clip.source)
    left = {name: None if name in lost else path for name, path in paths.items()}
    return replace(clip, audio=left["audio"], video=left["video"], missing=missing, text=text)


def assign_clips(source: ClipSource, clips_per_shard: int) -> tuple[list[ShardJob], list[dict[str, str]]]:
    """The clips of each split, in order, by shard; and key and cause of those that cannot be used."""
    splits: dict[str, list[Clip]] = {}
    state = PackingState(source.classes, np.dtype("float32"), source.target, source.targets)
    skipped = []
    for clip in source.clips:
        try:
            if isinstance(clip, BadSample):
                raise ValueError(clip.cause)
            check_key_split_label(clip.key, clip.split, clip.label, state)
            check_targets(clip.meta, state)
        except ValueError as error:
            at = f"{clip.source}: " if clip.source else ""
            skipped.append({"key": str(clip.key), "cause": f"{at}{str(error).removeprefix(at)}"})
            continue
        state.keys.add(clip.key)
        splits.setdefault(clip.split, []).append(clip)
    jobs = [
        ShardJob(shard_name(split, number), clips[first : first + clips_per_shard])
        for split, clips in splits.items()
        for number, first in enumerate(range(0, len(clips), clips_per_shard))
    ]
    return jobs, skipped


def extraction_id(source: ClipSource, encoders: Encoders, settings: dict[str, Any]) -> str:
    """A hash of all that determines the dataset: an extraction with the same id continues a stopped one."""
    what = {
        "clips": [_described(clip, bool(source.stored)) for clip in source.clips],
        "classes": source.classes,
        # The precision of an encoder does not change its feature space, but it changes the bytes of a shard.
        "features": {
            name: [space_of(encoder.settings), encoder.settings.get("dtype")]
            for name, encoder in encoders.items()
        },
        "settings": settings,
    }
    if source.target != CLASSES:
        # Only then, so that extractions continue which began before there were targets. Further targets name
        # columns that the shards have anyway.
        what["target"] = asdict(source.target)
    text = json.dumps(what, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _described(clip: Clip | BadSample, is_packed: bool) -> dict[str, Any]:
    if is_packed:
        # By the content of the shards, wherever they lie. The cause of a damaged row may name a cache.
        place = clip.packed.place if isinstance(clip, Clip) and clip.packed else None
        return {"key": clip.key, "split": getattr(clip, "split", None), "packed": place}
    found = asdict(clip)
    found.pop("packed", None)  # None: a clip has it since there are datasets of recordings
    # Without a text as before clips could have one, so that extractions continue which began then.
    if found.get("text", "") is None:
        del found["text"]
    return found


def with_generation(jobs: list[ShardJob], generation: int) -> list[ShardJob]:
    """The jobs, with the generation in the names of their shards (see `packing.replacement`)."""
    suffix = f"-g{generation}" if generation else ""
    return [replace(job, name=job.name + suffix) for job in jobs]


# --- The output folder ---------------------------------------------------------------------------


def claim_folder(
    store: Store, jobs: list[ShardJob], extraction: str, overwrite: bool, retry_failed: bool
) -> tuple[bytes, int, frozenset[str]]:
    """Mark the folder as this launch's, and find out which shards are finished (rank 0).

    Args:
        store: the output folder.
        jobs: under names without a generation.
        extraction: its id.
        overwrite: as for `plan_jobs`.
        retry_failed: as for `plan_jobs`.

    Returns:
        The token in the marker, empty if the dataset is complete; the generation of the shards; and the names
        of the finished ones.

    Raises:
        ValueError: the folder holds something else.
        OSError: the store cannot be reached.
    """
    if not overwrite and _holds_dataset_of(store, extraction):
        if not is_being_replaced(store):  # another extraction may be writing the replacement just now
            remove_temporary(store)
        logger.warning(
            "%s: already complete; %spass overwrite (--overwrite) to make it again",
            store.url,
            "failed clips are tried again only while it is not; " if retry_failed else "",
        )
        return b"", 0, frozenset()
    token = extraction_token(extraction)
    generation = check_available(store, token, overwrite)
    if generation is None:
        return token, clear_and_mark(store, token, overwrite), frozenset()
    write_marker(store, token)
    names = list_names(store)
    shards = [job.name for job in with_generation(jobs, generation)]
    finished = [shard for shard in shards if record_name(shard) in names]
    if retry_failed:
        finished = _remove_failed(store, finished)
    logger.warning("%s: continues; %d of %d shards are there", store.url, len(finished), len(shards))
    return token, generation, frozenset(finished)


def _holds_dataset_of(store: Store, extraction: str) -> bool:
    try:
        return read_manifest(store).provenance.get("extraction") == extraction
    except NoManifest:
        return False


def _remove_failed(store: Store, finished: list[str]) -> list[str]:
    """Remove the records of shards whose clips failed, so that these are made again. Returns the others."""
    kept = []
    for shard, record in zip(finished, read_records(store, finished), strict=True):
        if record.skipped or record.undecodable:
            store.fs.rm(f"{store.root}/{record_name(shard)}")
        else:
            kept.append(shard)
    return kept


def check_same_folder(store: Store, token: bytes, rank: int) -> None:
    """Raise ValueError if this rank does not see the marker that rank 0 has written."""
    if read_token(store) != token:
        raise ValueError(f"{store.url}: rank {rank} sees another folder than rank 0; give one that all reach")


def gather_or_raise(call: Callable[[], T], all_gather_object: AllGatherObject) -> list[T]:
    """What `call` returns on each rank. If it raises on one, all ranks raise, so that none waits for it."""
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
