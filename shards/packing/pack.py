"""Utterances -> shards, indexes and a manifest.

Each split has one open shard. A full shard is finished (`shard_writer`); the manifest follows when all are
there. `validation` checks each utterance, `output_folder` what the folder may hold before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from shards.format.labels import given_classes
from shards.format.precision_names import long_name
from shards.format.recording import Recording, check_recording
from shards.format.schema import DTYPES, INT8, BadSample, Manifest, Sample
from shards.format.targets import CLASSES, Target, check_declared
from shards.packing.output_folder import (
    OutputFolder,
    acquire,
    check_still_ours,
    commit,
    discard,
    release,
)
from shards.packing.scales import check_read_again, find_scales, quantization_facts
from shards.packing.shard_writer import (
    FinishedShard,
    ShardStats,
    ShardWriter,
    finish_shard,
    manifest_of,
    open_shard,
    shard_name,
    sum_stats,
    write_sample,
)
from shards.packing.validation import (
    EncodedSample,
    PackingState,
    check_cast,
    refuse_transcript,
    validate_or_skip,
)
from shards.progress import progress_bar
from shards.safe_io.versions import installed_version

# Packing refuses a cast if its error is too large a share of a feature's standard deviation. Before all
# utterances are read, the deviation may still grow with the next speaker or session, so a larger share, this
# one, is allowed.
EARLY_TOLERANCE = 0.1


@dataclass
class _Packing:
    """A packing that is running: per split, in the order of their first samples, finished and open shards."""

    folder: OutputFolder
    state: PackingState
    finished: dict[str, list[FinishedShard]] = field(default_factory=dict)
    open: dict[str, ShardWriter] = field(default_factory=dict)
    total: ShardStats | None = None


def pack(
    samples: Iterable[Sample | BadSample],
    out: str,
    *,
    classes: list[str],
    target: Target = CLASSES,
    targets: Mapping[str, Target] | None = None,
    recordings: Mapping[str, Recording] | None = None,
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
        samples: the utterances; read once, in order. For int8 twice, so that an iterator does not do.
        out: any fsspec URL of a folder, new or empty.
        classes: class names; a label is a position in this list. If utterances have none, an empty list, and
            another `target`.
        target: what the utterances are labeled with. The values of columns are metadata of the utterances.
        targets: further targets, by name, that a run can choose.
        recordings: the modalities that are recordings, not features: sound as int16 [samples], pictures as
            uint8 RGB [N, height, width, 3].
        provenance: how the features were made; kept in the manifest.
        dtype: of features: "float16" or "float32"; or "fp16", "fp32"; or "int8", which
            `shards.packing.quantization` explains.
        shard_bytes: a shard is closed once it has this many bytes.
        on_bad: "refuse" stops at the first bad sample; "skip" skips it, and lists it in `skipped.jsonl`.
        storage_options: for the fsspec file system of `out`.
        overwrite: replace a finished dataset that is there; it stays complete until the new one is.
        progress: show it on stderr: a bar on a terminal, lines in a log.
        total: number of samples, for the progress shown.

    Returns:
        The manifest, as written.

    Raises:
        ValueError: a bad sample (named), a feature for which the dtype is too coarse, nothing to pack, or a
            folder that holds something already or into which another packing writes. All that was written is
            removed, and a dataset that was to be replaced is unchanged.
        OSError: another packing has taken the folder over, or the store cannot be reached.
    """
    dtype = long_name(dtype)
    classes, target, further = check_options(classes, dtype, on_bad, target, targets or {})
    if dtype == INT8:
        check_read_again(samples)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes {shard_bytes}: must be positive")
    for name, recording in (recordings or {}).items():
        try:
            check_recording(recording)
        except ValueError as error:
            raise ValueError(f"recordings[{name!r}]: {error}") from None
    state = PackingState(classes, np.dtype(dtype), target, further, recordings=dict(recordings or {}))
    packing = _Packing(acquire(str(out), overwrite, storage_options), state)
    skipped: list[dict[str, str]] = []
    scales_of: dict[str, list[str]] = {}
    try:
        if dtype == INT8:
            with progress_bar("find scales", "utterance", total, show=progress) as bar:
                packing.state, scales_of = find_scales(samples, state, on_bad, bar.update)
        with progress_bar("pack", "utterance", total, show=progress) as bar:
            for sample in samples:
                refuse_transcript(sample)
                encoded = validate_or_skip(sample, packing.state, on_bad, skipped)
                if encoded is not None:
                    assert isinstance(sample, Sample)
                    _write(packing, sample, encoded, shard_bytes)
                bar.update()
        if not packing.finished:
            bad = f": all {len(skipped)} samples are bad, {skipped[0]}" if skipped else ": no samples"
            raise ValueError(f"nothing to pack{bad}")
        for split in list(packing.open):
            _finish(packing, split)
        assert packing.total is not None
        check_cast(packing.total.casts, packing.state.dtype)
        made_by = {
            "packed": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {name: installed_version(name) for name in ("numpy", "webdataset")},
        }
        facts = {**(provenance or {}), **made_by}
        if dtype == INT8:
            of_shards = {split: [shard.stats for shard in of] for split, of in packing.finished.items()}
            facts |= quantization_facts({split: sum_stats(of) for split, of in of_shards.items()}, scales_of)
        manifest = manifest_of(packing.finished, packing.state, facts, len(skipped))
        commit(packing.folder, manifest, skipped)
    except (ValueError, KeyboardInterrupt):
        with contextlib.suppress(OSError, ValueError):  # report the first error
            discard(packing.folder)
        raise
    finally:
        for shard in packing.open.values():
            shard.tar.close()
        release(packing.folder)
    return manifest


def check_options(
    classes: list[str], dtype: str, on_bad: str, target: Target, targets: Mapping[str, Target]
) -> tuple[list[str], Target, dict[str, Target]]:
    """Check options of packing and extraction.

    Returns:
        The classes as label names (see `labels`), and the targets with their ranges as floats.

    Raises:
        ValueError: an option has no such value, or the targets are none (`targets.check_declared`).
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: must be one of {DTYPES}")
    if on_bad not in ("refuse", "skip"):
        raise ValueError(f"on_bad {on_bad!r}: must be 'refuse' or 'skip'")
    # Only another target can do without classes.
    if classes or target.is_classes:
        classes = given_classes(classes)
    return classes, *check_declared(target, targets, classes)


def _write(packing: _Packing, sample: Sample, encoded: EncodedSample, shard_bytes: int) -> None:
    """Write an utterance to the open shard of its split, and finish that shard if it is full."""
    classes, split = packing.state.classes, sample.split
    finished = packing.finished.setdefault(split, [])
    if split not in packing.open:
        check_still_ours(packing.folder)
        name = shard_name(split, len(finished), packing.folder.generation)
        packing.open[split] = open_shard(packing.folder.workdir, name, classes)
    write_sample(packing.open[split], sample.key, encoded, packing.state)
    if packing.open[split].bytes >= shard_bytes:
        _finish(packing, split)


def _finish(packing: _Packing, split: str) -> None:
    shard = finish_shard(packing.open[split], packing.folder, packing.state)
    packing.finished[split].append(shard)
    del packing.open[split]
    packing.total = sum_stats([packing.total, shard.stats] if packing.total else [shard.stats])
    check_cast(packing.total.casts, packing.state.dtype, EARLY_TOLERANCE)
