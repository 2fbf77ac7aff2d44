"""Shards that others made: indexed where they lie, or, where that cannot be read in place, decoded once.

What is added, one index per tar and the manifest, lies beside the tars, or, where that place is read-only, in
the cache. Decoded shards are an ordinary packing, in the cache: `open_dataset` finds either by the same URL.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.index import ShardIndex, build_index, save_index
from shards.schema import (
    MANIFEST,
    PLAIN_NAME,
    Manifest,
    Modality,
    Sample,
    ShardEntry,
    Split,
    SplitMoments,
    dump_manifest,
)
from shards.statistics import Moments, merge, moments_of
from shards.store import NoManifest, Store, asking, fetch_new, hash_file, open_store, read_manifest, split_url
from shards.survey import Survey, read_array, survey, uncompressed
from shards.writer import pack

TAR = re.compile(r".+\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)")
# Words in the names of tars that tell their split.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"dev": "dev", "test": "test", "eval": "test"}
# Mark of a manifest that was made here: it may be made again, a packing's not.
INDEXED = "indexed"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Indexed:
    """What indexing has made.

    Attributes:
        url: of the dataset, to be streamed from.
        folder: where index and manifest lie.
        manifest: of the dataset.
        decoded: why the shards had to be decoded; None where they are read in place.
        ignored: how many members of what extension were left out.
    """

    url: str
    folder: str
    manifest: Manifest
    decoded: str | None
    ignored: dict[str, int]


@dataclass
class _Tar:
    """A tar of the dataset, on local disk."""

    name: str
    url: str
    path: Path
    size: int
    sha256: str
    found: Survey


def index_url(
    url: str,
    *,
    classes: list[str] | None = None,
    label: str = "label",
    dtype: str | None = None,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    progress: bool = True,
) -> Indexed:
    """Make the tars of a folder a dataset that `FeatureStream` reads.

    Args:
        url: any fsspec URL of a folder of tars. Names with words like "train" or "test" tell their split.
        classes: class names; labels that are numbers are positions in it. Default: all labels found, sorted.
        label: JSON field that holds the label; where there is none, `.cls` and `.txt` members are looked for.
        dtype: "float16" or "float32" for what has to be decoded; default: float16 where all is.
        cache_dir: where remote tars, decoded shards and what a read-only place does not take are kept.
        storage_options: for the fsspec file system.
        progress: show a bar on stderr.

    Raises:
        ValueError: there are no tars, one is damaged or holds what is never read, an utterance has no label
            or no steps, or its features differ in size from others'; names the tar and the member or key.
        OSError: the store cannot be reached.
    """
    store = open_store(split_url(url)[0], cache_dir, storage_options)
    _refuse_packed(store)
    tars = []
    for name in tqdm(_tar_names(store), desc="index", unit="tar", disable=not progress):
        path, size, sha256 = fetch_new(store, name)
        at = f"{store.url}/{name}"
        tars.append(_Tar(name, at, path, size, sha256, survey(path, at, label)))
    labels = _labels(tars, classes)
    names = classes or _found_classes(labels)
    _check_utterances(tars)
    slow = _slow(tars)
    provenance = {INDEXED: datetime.now(UTC).isoformat(timespec="seconds"), "decoded": slow}
    shutil.rmtree(store.indexed, ignore_errors=True)
    if slow is None:
        folder, manifest = _index_in_place(store, tars, labels, names, provenance)
    else:
        logger.info("%s; decoding all shards into %s", slow, store.indexed)
        folder = str(store.indexed)
        manifest = pack(
            _decoded(tars, labels, names),
            folder,
            classes=names,
            provenance=provenance,
            dtype=dtype or _dtype(tars),
            progress=progress,
        )
    ignored = sum((tar.found.ignored for tar in tars), Counter[str]())
    if ignored:
        logger.warning("%s: members left out, by extension: %s", store.url, dict(ignored))
    return Indexed(store.url, folder, manifest, slow, dict(ignored))


def _refuse_packed(store: Store) -> None:
    try:
        manifest = read_manifest(store)
    except NoManifest:
        return
    if INDEXED not in manifest.provenance:
        raise ValueError(f"{store.url}: is a packed dataset already; it needs no indexing")


def _tar_names(store: Store) -> list[str]:
    try:
        found = asking(store, lambda: store.fs.ls(store.root, detail=False), store.url)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{store.url}: no such folder; give the URL of the folder that holds the tars"
        ) from None
    names = sorted(name for path in found if TAR.fullmatch(name := path.rstrip("/").rpartition("/")[2]))
    if not names:
        raise ValueError(f"{store.url}: no tars there; give the URL of the folder that holds them")
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{store.url}/{name}: rename it, to letters, digits, '.', '-' and '_'")
    return names


def _labels(tars: list[_Tar], classes: list[str] | None) -> dict[str, str | int]:
    """Label of each utterance by key: a name, or without given classes perhaps a number.

    Raises:
        ValueError: there is none, it is of no use, or a key is there twice.
    """
    labels: dict[str, str | int] = {}
    for tar in tars:
        for utterance in tar.found.utterances:
            key, value = utterance.row.key, utterance.label
            at = f"{tar.url}: {key}"
            if key in labels:
                raise ValueError(f"{at}: this key is in the dataset twice; rename one")
            if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
                raise ValueError(
                    f"{at}: no label ({value!r}); name the JSON field that holds it, or add a .cls or .txt "
                    "member"
                )
            if classes is not None and isinstance(value, int):
                if not 0 <= value < len(classes):
                    raise ValueError(f"{at}: label {value} is no position in the classes {classes}")
                value = classes[value]
            if classes is not None and value not in classes:
                raise ValueError(f"{at}: label {value!r} is unknown; the classes are {classes}")
            labels[key] = value
    return labels


def _found_classes(labels: dict[str, str | int]) -> list[str]:
    values = set(labels.values())
    numbers = sorted(value for value in values if isinstance(value, int))
    return [str(value) for value in numbers] + sorted(value for value in values if isinstance(value, str))


def _check_utterances(tars: list[_Tar]) -> None:
    """Refuse a dataset without features, or whose modalities are not of one size each."""
    forms = _forms(tars)
    if not forms:
        raise ValueError(
            f"{tars[0].url}: no arrays; features are members <key>.<modality>.npy, [steps, features per step]"
        )
    for name, found in forms.items():
        dims = sorted({dim for dim, _ in found})
        if len(dims) > 1:
            where = {
                dim: tar.url
                for tar in reversed(tars)
                for dim, _ in tar.found.forms.get(name, ())
                if dim in dims
            }
            raise ValueError(f"{name} has {dims} features per step ({where}); make all with the same encoder")


def _forms(tars: list[_Tar]) -> dict[str, set[tuple[int, str]]]:
    forms: dict[str, set[tuple[int, str]]] = {}
    for tar in tars:
        for name, found in tar.found.forms.items():
            forms.setdefault(name, set()).update(found)
    return dict(sorted(forms.items()))


def _slow(tars: list[_Tar]) -> str | None:
    """Why the dataset cannot be read in place; None if it can."""
    for tar in tars:
        if tar.found.slow:
            return tar.found.slow
    for name, found in _forms(tars).items():
        if len(found) > 1:
            return f"{name} is of several dtypes: {sorted(dtype for _, dtype in found)}"
    return None


def _dtype(tars: list[_Tar]) -> str:
    half = all(np.dtype(dtype).itemsize == 2 for found in _forms(tars).values() for _, dtype in found)
    return "float16" if half else "float32"


def _decoded(tars: list[_Tar], labels: dict[str, str | int], classes: list[str]) -> Iterator[Sample]:
    """The utterances, as packing takes them. Keys lose what packing does not allow in them."""
    splits = _splits(tars)
    for tar in tars:
        with uncompressed(tar.path) as plain:
            for utterance in tar.found.utterances:
                key = utterance.row.key
                yield Sample(
                    key=re.sub(r"[\s./\\]+", "_", key),
                    split=splits[tar.name],
                    label=str(labels[key]),
                    features={name: read_array(plain, array) for name, array in utterance.arrays.items()},
                    meta={name: value for name, value in utterance.row.meta.items() if name != "label"},
                    source=tar.url,
                )


def _splits(tars: list[_Tar]) -> dict[str, str]:
    """Split of each tar by the words in its name; where one has none, all are the split "all"."""
    found = {}
    for tar in tars:
        words = [SPLITS[word] for word in re.split(r"[^a-z]+", tar.name.lower()) if word in SPLITS]
        found[tar.name] = words[0] if words else "all"
    return dict.fromkeys(found, "all") if "all" in found.values() else found


def _index_in_place(
    store: Store,
    tars: list[_Tar],
    labels: dict[str, str | int],
    classes: list[str],
    provenance: dict[str, Any],
) -> tuple[str, Manifest]:
    """Write indexes and manifest, beside the tars if that can be written.

    Returns:
        Where they lie, and the manifest.
    """
    modalities = {name: Modality(dim, np.dtype(dtype).name) for name, [(dim, dtype)] in _forms(tars).items()}
    split_of, work = _splits(tars), Path(tempfile.mkdtemp(prefix="awtpn-index-"))
    parts: dict[str, list[_Part]] = {}
    try:
        for tar in tars:
            part = _index_tar(tar, labels, classes, modalities, work)
            parts.setdefault(split_of[tar.name], []).append(part)
        manifest = Manifest(
            modalities=modalities,
            classes=classes,
            columns=_columns([part.index for each in parts.values() for part in each]),
            splits={name: _split(each, modalities, len(classes)) for name, each in parts.items()},
            provenance=provenance,
        )
        (work / MANIFEST).write_text(dump_manifest(manifest))
        return _publish(store, work), manifest
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass
class _Part:
    """An indexed tar as a part of its split."""

    entry: ShardEntry
    index: ShardIndex
    moments: dict[str, Moments]


def _index_tar(
    tar: _Tar,
    labels: dict[str, str | int],
    classes: list[str],
    modalities: dict[str, Modality],
    work: Path,
) -> _Part:
    """Write a tar's index into `work`."""
    utterances = tar.found.utterances
    positions = [classes.index(str(labels[utterance.row.key])) for utterance in utterances]
    index = build_index([utterance.row for utterance in utterances], positions, modalities)
    path = work / f"{tar.name.removesuffix('.tar')}.index.npz"
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
    return _Part(entry, index, _moments(tar, modalities))


def _moments(tar: _Tar, modalities: dict[str, Modality]) -> dict[str, Moments]:
    """Moments per modality of a tar's features.

    Raises:
        ValueError: an utterance has no steps, or a value that is not finite.
    """
    moments = {name: Moments(0, np.zeros(m.dim), np.zeros(m.dim)) for name, m in modalities.items()}
    for utterance in tar.found.utterances:
        at = f"{tar.url}: {utterance.row.key}"
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
            moments[name] = merge(moments[name], moments_of(values))
    return moments


def _split(parts: list[_Part], modalities: dict[str, Modality], num_classes: int) -> Split:
    moments = {name: parts[0].moments[name] for name in modalities}
    for part in parts[1:]:
        moments = {name: merge(moments[name], part.moments[name]) for name in modalities}
    counts = sum(np.bincount(part.index.label, minlength=num_classes) for part in parts)
    return Split(
        utterances=sum(part.entry.utterances for part in parts),
        steps={name: moments[name].count for name in modalities},
        class_counts=np.asarray(counts).tolist(),
        moments={name: SplitMoments(m.count, m.mean.tolist(), m.std.tolist()) for name, m in moments.items()},
        shards=[part.entry for part in parts],
    )


def _columns(indexes: list[ShardIndex]) -> dict[str, str]:
    """Metadata to select by: columns of every tar, of one kind (integers may mix with floats)."""
    kinds = {"b": "bool", "i": "int", "f": "float", "U": "str"}
    columns = {}
    for name in sorted(set.intersection(*(set(index.columns) for index in indexes))):
        found = {kinds[index.columns[name].dtype.kind] for index in indexes}
        if len(found) == 1 or found == {"int", "float"}:
            columns[name] = "float" if len(found) > 1 else next(iter(found))
    return columns


def _publish(store: Store, work: Path) -> str:
    """Put all files of `work` beside the tars, the manifest last; where none can be put, into the cache."""
    names = sorted((path.name for path in work.iterdir()), key=lambda name: name == MANIFEST)
    try:
        # Over http a file can at best be posted to some program.
        if store.url.startswith(("http://", "https://")):
            raise PermissionError(f"{store.url}: read-only")
        for name in names:
            remote = f"{store.root}/{name}"
            asking(store, partial(store.fs.put_file, str(work / name), remote), f"{store.url}/{name}")
        store.fs.invalidate_cache()
        return store.url
    except (OSError, NotImplementedError) as error:
        logger.info("%s cannot be written (%s): the index goes to %s", store.url, error, store.indexed)
    store.indexed.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(work / name, store.indexed / name)
    return str(store.indexed)
