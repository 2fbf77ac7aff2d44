"""`awtpn shards info` and `preview`: show what a dataset is, and its first utterances."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.class_checks import check_class_counts, count_labels, parse_metadata
from shards.format.feature_space import describe, recorded_spaces
from shards.format.index import ShardIndex
from shards.format.index_file import load_index
from shards.format.recording import Recording
from shards.format.schema import Manifest, ShardEntry, choose_split
from shards.safe_io.printable import join_lines, plural, table_lines
from shards.storage.store import Store, map_files, open_dataset, open_file, read_range
from shards.tools.sizes import format_duration, sound_seconds
from shards.tools.target_summary import ColumnSummary, summarize, summary_lines, target_lines, targets_of
from shards.tools.utterance_arrays import array_line, read_array

# Of histograms of lengths; characters of the longest bar; characters of a line.
BINS = 12
BAR = 40
WIDTH = 110


@dataclass(frozen=True)
class Lengths:
    """How many time steps the utterances of a split have in a modality.

    Attributes:
        missing: utterances without the modality; the other attributes are over utterances with it.
        least, median, most: time steps.
        edges: bin i holds lengths of edges[i] to edges[i + 1] - 1.
        counts: utterances per bin.
    """

    missing: int
    least: int
    median: float
    most: int
    edges: list[int]
    counts: list[int]


@dataclass(frozen=True)
class SplitInfo:
    """A split: its size, utterances per class, lengths by modality, and the columns of each target.

    Attributes:
        batch_bytes: of all its utterances' arrays in batches; `bytes` are those on disk.
        pictures: by modality of recorded pictures, their number.
        seconds: by modality of recorded sound, its true length; empty if no index was read.
    """

    utterances: int
    shards: int
    bytes: int
    steps: dict[str, int]
    class_counts: dict[str, int]
    lengths: dict[str, Lengths]
    targets: dict[str, dict[str, ColumnSummary]]
    batch_bytes: int = 0
    pictures: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Info:
    """A dataset; `indexed_in` is the folder of its indexes, if they are not beside its shards."""

    url: str
    manifest: Manifest
    splits: dict[str, SplitInfo]
    indexed_in: str | None


@dataclass(frozen=True)
class Preview:
    """An utterance: its label, if the dataset has classes; its metadata; and its features by modality.

    The features are arrays [T, D] in the stored dtype, or in float32 what int8 ones stand for. Recordings
    among them are int16 [samples] or uint8 [N, H, W, 3], and `recordings` says what they are.
    """

    split: str
    shard: str
    key: str
    label: str | None
    meta: dict[str, Any]
    features: dict[str, np.ndarray]
    recordings: dict[str, Recording] = field(default_factory=dict)


def info(
    url: str,
    *,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    lengths: bool = True,
) -> Info:
    """Describe a dataset. It reads the index of each shard, and no shard.

    Args:
        url: of its folder or manifest; a fragment `#dev` chooses a split.
        cache_dir: where remote indexes are kept.
        storage_options: for the fsspec file system.
        lengths: False leaves out the lengths and the values of targets, and then no index is read.

    Raises:
        ValueError: there is no dataset, or an index is damaged.
        OSError: the store cannot be reached.
    """
    store, manifest, chosen = open_dataset(url, cache_dir, storage_options)
    splits = {}
    for name in _splits(manifest, chosen, store.url):
        split = manifest.splits[name]
        found: dict[str, Lengths] = {}
        targets: dict[str, dict[str, ColumnSummary]] = {}
        seconds: dict[str, float] = {}
        if lengths:
            indexes = list(map_files(store, lambda entry: _index(store, entry, manifest), split.shards))
            counts = [count_labels(index.label, len(manifest.classes)) for index in indexes]
            check_class_counts(counts, split, f"{store.url}#{name}")
            targets = {shown: summarize(indexes, of) for shown, of in targets_of(manifest).items()}
            seconds = sound_seconds(indexes, manifest.modalities)
            steps = [index.steps for index in indexes]
            found = {m: _lengths(np.concatenate([each[m] for each in steps])) for m in manifest.modalities}
        splits[name] = SplitInfo(
            utterances=split.utterances,
            shards=len(split.shards),
            bytes=sum(shard.bytes for shard in split.shards),
            steps=split.steps,
            class_counts=dict(zip(manifest.classes, split.class_counts, strict=True)),
            lengths=found,
            targets=targets,
            batch_bytes=sum(count * manifest.modalities[m].step_bytes for m, count in split.steps.items()),
            pictures={m: count for m, count in split.steps.items() if manifest.modalities[m].is_pictures},
            seconds=seconds,
        )
    return Info(store.url, manifest, splits, str(store.overlay) if store.overlay else None)


def preview(
    url: str,
    n: int = 3,
    *,
    split: str | None = None,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Iterator[Preview]:
    """The first utterances of a split. Only their bytes are read, and not whole shards.

    Args:
        url: of the dataset's folder or manifest; a fragment `#dev` names the split.
        n: number of utterances.
        split: its name; default: the first of the manifest.
        cache_dir: where remote indexes are kept.
        storage_options: for the fsspec file system.

    Raises:
        ValueError: there is no such dataset or split, or it is damaged.
        OSError: the store cannot be reached.
    """
    store, manifest, chosen = open_dataset(url, cache_dir, storage_options)
    [name, *_] = _splits(manifest, chosen or split, store.url)
    for entry in manifest.splits[name].shards:
        index = _index(store, entry, manifest)
        for row in range(len(index.key)):
            if n <= 0:
                return
            n -= 1
            yield _preview(store, manifest, name, entry, index, row)


def format_info(found: Info) -> str:
    """The result of `info` as text."""
    manifest = found.manifest
    lines = [f"{found.url}  (schema {manifest.schema_version})"]
    if found.indexed_in:
        lines.append(f"indexed in {found.indexed_in}")
    rows = [["modality", "features/step", "dtype", "bytes/step", "content"]]
    rows += [
        [name, str(m.dim), m.dtype, f"{m.step_bytes:,}", str(m.recording or "features")]
        for name, m in manifest.modalities.items()
    ]
    lines += ["", *table_lines(rows, "lrlrl")]
    columns = ", ".join(f"{name} ({kind})" for name, kind in manifest.columns.items())
    lines += ["", f"metadata columns, for data.select: {columns or 'none'}"]
    lines += target_lines(manifest)
    for name, split in found.splits.items():
        steps = ", ".join(f"{count:,} {modality}" for modality, count in split.steps.items())
        lines += [
            "",
            f"split {name}: {split.utterances:,} utterances in {plural(split.shards, 'shard')}, "
            f"{format_bytes(split.bytes)}; steps: {steps}",
        ]
        lines += _size_lines(split)
        lines += _bars("class", list(split.class_counts.items()))
        for shown, summaries in split.targets.items():
            lines += summary_lines(shown, targets_of(manifest)[shown], summaries)
        for modality, lengths in split.lengths.items():
            missing = f", {lengths.missing:,} without" if lengths.missing else ""
            lines.append(
                f"  {modality}: {lengths.least} to {lengths.most} steps, median {lengths.median:g}{missing}"
            )
            bins = [f"{low} to {high - 1}" for low, high in pairwise(lengths.edges)]
            lines += _bars("steps", list(zip(bins, lengths.counts, strict=True)))
    if manifest.skipped:
        lines += ["", f"{manifest.skipped} bad samples were skipped by packing: skipped.jsonl lists them"]
    lines += ["", "made:", *_made(manifest.provenance)]
    return join_lines(lines)


def _size_lines(split: SplitInfo) -> list[str]:
    """An utterance's mean size on disk and in a batch; how much sound and how many pictures there are."""
    if not split.utterances:
        return []
    on_disk, in_batch = split.bytes / split.utterances, split.batch_bytes / split.utterances
    lines = [
        f"  an utterance has {format_bytes(on_disk)} on disk, {format_bytes(in_batch)} in a batch (means)"
    ]
    lines += [f"  {name}: {format_duration(length)} of sound" for name, length in split.seconds.items()]
    lines += [f"  {name}: {plural(count, 'picture')}" for name, count in split.pictures.items()]
    return lines


def _made(provenance: dict[str, Any]) -> list[str]:
    """Provenance, one entry per line; for features first the feature space, then the encoder's settings."""
    features = recorded_spaces(provenance)
    lines = []
    for name, entry in features.items():
        settings = entry["settings"]
        lines += [f"  {name}: feature space {entry['space']}", *_wrapped(describe(settings), "    ")]
        if "dtype" in settings:
            used = "".join(f", {package} {value}" for package, value in settings.get("versions", {}).items())
            lines += _wrapped(f"computed in {settings['dtype']}{used}", "    ")
    for name, value in provenance.items():
        if value in ({}, [], None) or (name == "features" and features):
            continue
        if isinstance(value, dict):
            listed = ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
            lines += _wrapped(f"{name}: {listed}", "  ")
        else:
            lines += _wrapped(f"{name}: {_plain(value)}", "  ")
    return lines


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _wrapped(text: str, margin: str) -> list[str]:
    # Long words are not broken: they are commands and paths that a user may copy.
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=margin,
        subsequent_indent=margin + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def format_preview(found: Preview) -> str:
    """An utterance of `preview` as text."""
    label = "" if found.label is None else f"  label: {found.label}"
    lines = [f"{found.key}  ({found.split}, {found.shard}){label}"]
    lines += [
        f"  {array_line(name, values, found.recordings.get(name))}" for name, values in found.features.items()
    ]
    lines += [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in found.meta.items()]
    return join_lines(lines)


def format_bytes(size: float) -> str:
    """A number of bytes as text: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1_000
    return f"{size:,.3g} PB"


def _splits(manifest: Manifest, split: str | None, url: str) -> list[str]:
    return list(manifest.splits) if split is None else [choose_split(manifest, split, url)]


def _index(store: Store, entry: ShardEntry, manifest: Manifest) -> ShardIndex:
    with open_file(store, entry.index, entry.index_bytes, entry.index_sha256) as file:
        return load_index(file, entry, manifest)


def _lengths(steps: np.ndarray) -> Lengths:
    there = steps[steps > 0]
    if not len(there):
        return Lengths(len(steps), 0, 0.0, 0, [], [])
    least, most = int(there.min()), int(there.max())
    width = -(-(most - least + 1) // BINS)
    edges = list(range(least, most + width + 1, width))
    counts = np.bincount((there - least) // width, minlength=len(edges) - 1)
    return Lengths(len(steps) - len(there), least, float(np.median(there)), most, edges, counts.tolist())


def _preview(
    store: Store, manifest: Manifest, split: str, entry: ShardEntry, index: ShardIndex, row: int
) -> Preview:
    features = {
        name: m.values_of(read_array(store, entry, index, row, name, m))
        for name, m in manifest.modalities.items()
    }
    start, size = int(index.json_offset[row]), int(index.json_size[row])
    content = read_range(store, entry.name, start, start + size) if size else b""
    key, label = str(index.key[row]), int(index.label[row])
    meta = parse_metadata(content, key, label, manifest, f"{store.url}/{entry.name}")
    meta.pop("label", None)
    label_name = manifest.classes[label] if manifest.classes else None
    recordings = {name: m.recording for name, m in manifest.modalities.items() if m.recording}
    return Preview(split, entry.name, key, label_name, meta, features, recordings)


def _bars(what: str, rows: list[tuple[str, int]]) -> list[str]:
    """A histogram as text, one line per row."""
    total, most = sum(count for _, count in rows) or 1, max((count for _, count in rows), default=0) or 1
    cells = [
        [f"    {what} {name}", f"{count:,}", f"{count / total:.1%}", "#" * round(BAR * count / most)]
        for name, count in rows
    ]
    return table_lines(cells, "lrrl")
