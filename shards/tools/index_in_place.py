"""Make a dataset of tars of other programs that can be read in place: an index per tar, and a manifest.

They are as packing would have made them, so that reading needs no other code. `index_tars` calls this.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.hashing import hash_file
from shards.format.index import ShardIndex, build_index
from shards.format.index_file import save_index
from shards.format.manifest import parse_manifest
from shards.format.schema import (
    MANIFEST,
    OPTIONAL,
    Manifest,
    Modality,
    ShardEntry,
    Split,
    SplitStatistics,
    dump_manifest,
)
from shards.format.split_names import WORDS
from shards.format.statistics import Statistics, merge, statistics_of
from shards.safe_io.printable import get_logger, printable
from shards.storage.cache import explain_unwritable
from shards.storage.store import Store, call_store
from shards.tools.scan_tar import TarScan, read_array

# Words in the names of tars, and the split that each stands for.
SPLITS = {word: name for word, name in WORDS.items() if name != "all"} | {"eval": "test"}

logger = get_logger(__name__)


@dataclass
class ScannedTar:
    """A tar of the dataset, on local disk, and what was found in it."""

    name: str
    url: str
    path: Path
    size: int
    sha256: str
    scan: TarScan


def index_in_place(
    store: Store,
    tars: list[ScannedTar],
    labels: dict[str, str | int],
    classes: list[str],
    provenance: dict[str, Any],
) -> tuple[str, Manifest]:
    """Write indexes and manifest, beside the tars if that place is writable.

    Returns:
        The folder with indexes and manifest, and the manifest.

    Raises:
        ValueError: an utterance has no time steps or a value that is not finite, or a reader would refuse the
            manifest. Nothing is written then.
    """
    modalities = {
        name: Modality(dim, np.dtype(dtype).name) for name, [(dim, dtype)] in forms_of(tars).items()
    }
    splits, work = split_of(tars), Path(tempfile.mkdtemp(prefix="awtpn-index-"))
    parts: dict[str, list[_IndexedShard]] = {}
    try:
        for tar in tars:
            part = _index_tar(tar, labels, classes, modalities, work)
            parts.setdefault(splits[tar.name], []).append(part)
        manifest = Manifest(
            modalities=modalities,
            classes=classes,
            columns=_columns([part.index for each in parts.values() for part in each]),
            splits={name: _split(each, modalities, len(classes)) for name, each in parts.items()},
            provenance=provenance,
        )
        text = dump_manifest(manifest)
        parse_manifest(text, f"{store.url}/{MANIFEST}")
        (work / MANIFEST).write_text(text)
        return _publish(store, work), manifest
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass
class _IndexedShard:
    """An indexed tar, before it is added to its split."""

    entry: ShardEntry
    index: ShardIndex
    statistics: dict[str, Statistics]


def _index_tar(
    tar: ScannedTar,
    labels: dict[str, str | int],
    classes: list[str],
    modalities: dict[str, Modality],
    work: Path,
) -> _IndexedShard:
    """Write the index of a tar into `work`."""
    utterances = tar.scan.utterances
    positions = [classes.index(str(labels[utterance.row.key])) for utterance in utterances]
    index = build_index([utterance.row for utterance in utterances], positions, modalities, classes)
    path = work / index_name(tar.name)
    save_index(index, path)
    entry = ShardEntry(
        name=tar.name,
        utterances=len(utterances),
        bytes=tar.size,
        sha256=tar.sha256,
        index=path.name,
        index_bytes=path.stat().st_size,
        index_sha256=hash_file(path),
        steps={name: int(index.steps[name].sum()) for name in modalities},
    )
    return _IndexedShard(entry, index, _statistics(tar, modalities))


def _statistics(tar: ScannedTar, modalities: dict[str, Modality]) -> dict[str, Statistics]:
    """Statistics per modality of a tar's features.

    Raises:
        ValueError: an utterance has no time steps, or a value that is not finite.
    """
    statistics = {name: Statistics(0, np.zeros(m.dim), np.zeros(m.dim)) for name, m in modalities.items()}
    for utterance in tar.scan.utterances:
        at = f"{tar.url}: {printable(utterance.row.key)}"
        if not any(array.shape[0] for array in utterance.arrays.values()):
            raise ValueError(f"{at}: no steps in any modality; leave the utterance out")
        for name, array in utterance.row.arrays.items():
            values = read_array(tar.path, array)
            if not np.isfinite(values).all():
                step, dimension = np.argwhere(~np.isfinite(values))[0]
                raise ValueError(
                    f"{at}: {name} is {values[step, dimension]} at step {step}, dimension {dimension}; "
                    "repair it"
                )
            statistics[name] = merge(statistics[name], statistics_of(values))
    return statistics


def _split(parts: list[_IndexedShard], modalities: dict[str, Modality], num_classes: int) -> Split:
    statistics = {name: parts[0].statistics[name] for name in modalities}
    for part in parts[1:]:
        statistics = {name: merge(statistics[name], part.statistics[name]) for name in modalities}
    counts = sum(np.bincount(part.index.label, minlength=num_classes) for part in parts)
    return Split(
        utterances=sum(part.entry.utterances for part in parts),
        steps={name: statistics[name].count for name in modalities},
        class_counts=np.asarray(counts).tolist(),
        moments={
            name: SplitStatistics(m.count, m.mean.tolist(), m.std.tolist()) for name, m in statistics.items()
        },
        shards=[part.entry for part in parts],
    )


def _columns(indexes: list[ShardIndex]) -> dict[str, str]:
    """Metadata to select by: columns that every tar has, of one kind (integers may mix with floats).

    A column of numbers that utterances lack is taken if at least one utterance of every tar has it.
    """
    kinds = {"b": "bool", "i": "int", "f": "float", "U": "str"}
    columns = {}
    for name in sorted(set.intersection(*(set(index.columns) for index in indexes))):
        found = {kinds[index.columns[name].dtype.kind] for index in indexes}
        if len(found) == 1 or found == {"int", "float"}:
            columns[name] = "float" if len(found) > 1 else next(iter(found))
        floats = [index.columns[name] for index in indexes if index.columns[name].dtype.kind == "f"]
        if columns.get(name) == "float" and any(np.isnan(values).any() for values in floats):
            columns[name] = OPTIONAL
    return columns


def _publish(store: Store, work: Path) -> str:
    """Put all files of `work` beside the tars; if that place is not writable, into the cache.

    The manifest is written last: a folder with one holds a complete dataset.
    """
    names = sorted((path.name for path in work.iterdir()), key=lambda name: name == MANIFEST)
    try:
        # Over http files cannot be written; fsspec would send a POST request.
        if store.url.startswith(("http://", "https://")):
            raise PermissionError(f"{store.url}: read-only")
        for name in names:
            remote = f"{store.root}/{name}"
            call_store(store, partial(store.fs.put_file, str(work / name), remote), f"{store.url}/{name}")
        store.fs.invalidate_cache()
        # An earlier indexing may have put its files into the cache. The manifest beside the tars replaces
        # them.
        shutil.rmtree(store.indexed, ignore_errors=True)
        return store.url
    except (OSError, NotImplementedError) as error:
        logger.info("%s cannot be written (%s): the index goes to %s", store.url, error, store.indexed)
    new = new_index_folder(store)
    for name in names:
        shutil.copy(work / name, new / name)
    put_in_place(new, store.indexed)
    return str(store.indexed)


def new_index_folder(store: Store) -> Path:
    """An empty folder beside `store.indexed`, on the same disk, so that it can take its place by renaming.

    Raises:
        CacheUnwritable: the cache cannot be written.
    """
    new = store.indexed.with_name(f"{store.indexed.name}.new")
    with explain_unwritable(new):
        # An interrupted indexing may have left one.
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
    return new


def put_in_place(new: Path, old: Path) -> None:
    """Rename the complete folder `new` to `old`, and remove what was there before.

    A folder cannot be replaced by one system call. Between the two renames there is none; if the process is
    killed then, indexing again makes it, and the tars themselves are never touched.
    """
    aside = old.with_name(f"{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        os.rename(old, aside)
    os.rename(new, old)
    shutil.rmtree(aside, ignore_errors=True)


def index_name(tar: str) -> str:
    """The name of the index of a tar."""
    return f"{tar.removesuffix('.tar')}.index.npz"


def forms_of(tars: list[ScannedTar]) -> dict[str, set[tuple[int, str]]]:
    """Per modality the forms (features per time step, dtype) that occur in the tars."""
    forms: dict[str, set[tuple[int, str]]] = {}
    for tar in tars:
        for name, found in tar.scan.forms.items():
            forms.setdefault(name, set()).update(found)
    return dict(sorted(forms.items()))


def split_of(tars: list[ScannedTar]) -> dict[str, str]:
    """The split of each tar, by words in its name. If one name has no such word, all are in split "all"."""
    found = {}
    for tar in tars:
        words = [SPLITS[word] for word in re.split(r"[^a-z]+", tar.name.lower()) if word in SPLITS]
        found[tar.name] = words[0] if words else "all"
    return dict.fromkeys(found, "all") if "all" in found.values() else found
