"""Write an index, and read it only if its arrays are consistent with each other and with the manifest.

An index decides which bytes of a shard become which features, and with which label. Its hash proves only that
it is the file which the manifest names; both may be damaged or forged. So every value is checked here, by a
few operations on whole arrays, before any byte of a shard is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.format.class_checks import WrongManifest
from shards.format.index import ALIGNMENT, ShardIndex, first_pictures, form_of
from shards.format.jpeg import least_jpeg_bytes
from shards.format.schema import INDEXED, OPTIONAL, Manifest, Modality, ShardEntry
from shards.format.tar_members import BLOCK
from shards.safe_io.bounded_npz import read_uncompressed_npz

# NumPy's dtype kinds for a column of each kind; a column of floats may be integers in some shards.
KINDS = {"bool": "b", "int": "i", "float": "fi", "str": "U", OPTIONAL: "fi"}
KIND_NAMES = {"U": "text", "b": "bool", "i": "whole numbers", "fi": "numbers"}


def save_index(index: ShardIndex, path: Path) -> None:
    """Write an index; the same index gives the same bytes."""
    arrays = {
        "key": index.key,
        "label": index.label,
        "json.offset": index.json_offset,
        "json.size": index.json_size,
        **{f"offset.{name}": array for name, array in index.offset.items()},
        **{f"steps.{name}": array for name, array in index.steps.items()},
        **{f"crc.{name}": array for name, array in index.crc.items()},
        **{f"form.{name}": array for name, array in index.form.items()},
        **{f"samples.{name}": array for name, array in index.samples.items()},
        **{f"picture.offset.{name}": array for name, array in index.picture_offset.items()},
        **{f"picture.size.{name}": array for name, array in index.picture_size.items()},
        **{f"column.{name}": array for name, array in index.columns.items()},
    }
    if index.classes is not None:
        arrays["classes"] = index.classes
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_index(index_file: BinaryIO, entry: ShardEntry, manifest: Manifest) -> ShardIndex:
    """Read an index, if it is the one that the manifest names and consistent with it.

    Args:
        index_file: the `.npz`.
        entry: of the shard.
        manifest: of the dataset.

    Raises:
        WrongManifest: it was made with other classes.
        ValueError: it is damaged, not an index, the index of another shard or of other features, or its
            arrays overlap, reach beyond the shard, or do not fit each other. One line.
    """
    fix = "`awtpn shards index` makes it again" if INDEXED in manifest.provenance else "pack it again"
    # An index is small, and a damaged one would make us read noise as features: its hash is checked every
    # time.
    content = index_file.read()
    if hashlib.sha256(content).hexdigest() != entry.index_sha256:
        raise ValueError(f"{index_file.name}: not the index the manifest names: damaged or replaced; {fix}")
    try:
        arrays = read_uncompressed_npz(content)
        if "key" not in arrays:
            raise ValueError("array 'key' is missing")
    except ValueError as error:
        raise ValueError(f"{index_file.name}: not the index of a shard ({error}); {fix}") from None
    try:
        index = _index(arrays, entry, manifest)
        _check_values(index, entry, manifest)
    except ValueError as error:
        raise type(error)(f"{index_file.name}: {error}; {fix}") from None
    return index


def _index(arrays: dict[str, np.ndarray], entry: ShardEntry, manifest: Manifest) -> ShardIndex:
    """The arrays by name, if none is missing and all have the right dtype and length."""
    utterances = arrays["key"].size
    if utterances != entry.utterances:
        raise ValueError(f"{utterances} utterances, {entry.utterances} by the manifest")

    def take(name: str, kind: Any, length: int = utterances) -> np.ndarray:
        if name not in arrays:
            raise ValueError(f"array {name!r:.60} is missing")
        array = arrays[name]
        fits = array.dtype.kind in kind if isinstance(kind, str) else array.dtype == np.dtype(kind)
        if not fits or array.shape != (length,):
            raise ValueError(
                f"array {name!r:.60} is {array.dtype!s:.40} {array.shape!s:.40}, where {length} of "
                f"{KIND_NAMES.get(kind, kind) if isinstance(kind, str) else np.dtype(kind).name} belong"
            )
        return array

    offset, steps = {}, {}
    for name in manifest.modalities:
        # A modality that no utterance of the shard has may be missing in the index.
        there = f"offset.{name}" in arrays or f"steps.{name}" in arrays
        offset[name] = take(f"offset.{name}", np.int64) if there else np.full(utterances, -1)
        steps[name] = take(f"steps.{name}", np.int32) if there else np.zeros(utterances, np.int32)
    sound = [name for name, modality in manifest.modalities.items() if modality.is_sound]
    jpeg = {
        name: max(0, int(steps[name].sum(dtype=np.int64)))
        for name, modality in manifest.modalities.items()
        if modality.is_jpeg
    }
    columns = {}
    for name, kind in manifest.columns.items():
        # A number that no utterance of the shard has is missing in the index.
        if kind == OPTIONAL and f"column.{name}" not in arrays:
            # One value in memory, whatever its length: a manifest may name any number of such columns.
            columns[name] = np.broadcast_to(np.nan, utterances)
            continue
        array = take(f"column.{name}", KINDS[kind])
        columns[name] = array.astype(np.float64) if kind == OPTIONAL else array
    classes = arrays.get("classes")
    if classes is not None and (classes.dtype.kind != "U" or classes.ndim != 1):
        raise ValueError("array 'classes' does not hold the names of classes")
    form = {name: arrays[f"form.{name}"] for name in manifest.modalities if f"form.{name}" in arrays}
    if not all(found.dtype.kind == "U" and found.ndim == 0 for found in form.values()):
        raise ValueError("an array 'form' is not the name of one")
    return ShardIndex(
        key=take("key", "U"),
        label=take("label", np.int32),
        json_offset=take("json.offset", np.int64),
        json_size=take("json.size", np.int32),
        offset=offset,
        steps=steps,
        columns=columns,
        # An index of an early version has none of these.
        crc={n: take(f"crc.{n}", np.uint32) for n in (*offset, "json") if f"crc.{n}" in arrays},
        form=form,
        classes=classes,
        samples={name: take(f"samples.{name}", np.int64) for name in sound},
        picture_offset={n: take(f"picture.offset.{n}", np.int64, count) for n, count in jpeg.items()},
        picture_size={n: take(f"picture.size.{n}", np.int32, count) for n, count in jpeg.items()},
    )


def _check_values(index: ShardIndex, entry: ShardEntry, manifest: Manifest) -> None:
    """Raise ValueError if the index contradicts the manifest, or the tar cannot hold what it lists."""
    if index.classes is not None:
        # NumPy drops zero characters at the end of text.
        _check_classes(index.classes.tolist(), [name.rstrip("\0") for name in manifest.classes])
    # Without classes all labels are 0.
    if len(index.label) and not 0 <= index.label.min() <= index.label.max() < max(len(manifest.classes), 1):
        raise ValueError(
            f"a label is {index.label.min()} or {index.label.max()}, and there are {len(manifest.classes)} "
            "classes"
        )
    if len(set(index.key.tolist())) != len(index.key):
        raise ValueError("two utterances have the same key")
    for name, modality in manifest.modalities.items():
        if name in index.form and index.form[name].item() != form_of(modality):
            both = f"{index.form[name]!s:.60}, by the manifest {form_of(modality)}"
            raise ValueError(f"{name} is {both}: one of the two was changed")
        _check_steps(name, index.offset[name], index.steps[name], entry)
        if modality.is_sound:
            _check_samples(name, index, modality.dim)
        if modality.is_jpeg:
            _check_pictures(name, index, modality)
    _check_extents(index, entry, manifest.modalities, links=INDEXED in manifest.provenance)


def _check_classes(indexed: list[str], named: list[str]) -> None:
    """Compare the index's classes with the manifest's: labels are positions in them."""
    if indexed == named:
        return
    if len(indexed) != len(named):
        raise WrongManifest(
            f"{len(indexed)} classes, {len(named)} by the manifest: one of the two was changed"
        )
    i = next(i for i, name in enumerate(named) if name != indexed[i])
    raise WrongManifest(
        f"class {i} is {indexed[i]!r:.40}, by the manifest {named[i]!r:.40}: one of the two was changed"
    )


def _check_steps(name: str, offset: np.ndarray, steps: np.ndarray, entry: ShardEntry) -> None:
    if len(steps) and steps.min() < 0:
        raise ValueError(f"an utterance has {steps.min()} steps of {name}")
    there = offset != -1
    if steps[~there].any():
        raise ValueError(f"an utterance without {name} has steps of it")
    if (offset[there] % ALIGNMENT).any():
        raise ValueError(f"{name} does not begin where the data of a .npy member can")
    total = int(steps.sum(dtype=np.int64))
    if total != entry.steps.get(name, 0):
        raise ValueError(f"{total} steps of {name}, {entry.steps.get(name, 0)} by the manifest")


def _check_samples(name: str, index: ShardIndex, per_step: int) -> None:
    # By their difference: a number of samples near the largest int64 has no product.
    missing = index.steps[name].astype(np.int64) * per_step - index.samples[name]
    if np.any((index.samples[name] < 0) | (missing < 0) | (missing >= per_step)):
        raise ValueError(f"numbers of samples of {name} do not fit its steps of {per_step}")


def _check_pictures(name: str, index: ShardIndex, modality: Modality) -> None:
    offset, size, steps = index.picture_offset[name], index.picture_size[name], index.steps[name]
    if np.any(size < 1) or np.any(offset % BLOCK):
        raise ValueError(f"a picture of {name} is empty, or does not begin where a member of a tar does")
    least = least_jpeg_bytes(modality.dim)
    if np.any(size < least):
        shape = " x ".join(map(str, modality.shape))
        raise ValueError(
            f"a picture of {name} has {size.min()} bytes; a JPEG of {shape} has at least {least}"
        )
    there = steps > 0
    first = first_pictures(index, name)
    if np.any(offset[first[there]] != index.offset[name][there]):
        raise ValueError(f"{name} does not begin where its first picture does")


def _check_extents(
    index: ShardIndex, entry: ShardEntry, modalities: dict[str, Modality], links: bool
) -> None:
    """Check that arrays and JSON members are inside the shard, with at least a tar header between them.

    Args:
        links: tars of other programs may have hard links, so several utterances may share one member.
    """
    offsets, sizes = [index.json_offset], [index.json_size.astype(np.int64)]
    for name, modality in modalities.items():
        if modality.is_jpeg:
            continue
        offsets.append(index.offset[name])
        sizes.append(index.steps[name].astype(np.int64) * modality.step_bytes)
    # Row by row: an utterance's members follow each other in a tar, so this is nearly sorted.
    start, size = np.array(offsets).T.ravel(), np.array(sizes).T.ravel()
    if index.picture_offset:
        start = np.concatenate([start, *index.picture_offset.values()])
        size = np.concatenate([size, *index.picture_size.values()])
    if (size < 0).any():
        raise ValueError("a JSON member has a negative size")
    if (index.json_offset[index.json_size > 0] % BLOCK).any():
        raise ValueError("a JSON member does not begin where a member of a tar does")
    start, size = start[size > 0], size[size > 0]
    if (start < BLOCK).any():
        raise ValueError("an array or JSON member begins before the first member of its shard")
    if ((start > entry.bytes) | (size > entry.bytes) | (start + size > entry.bytes)).any():
        names = ", ".join(("json", *modalities))
        raise ValueError(f"one of {names} reaches past the end of its shard")
    order = np.argsort(start, kind="stable")
    start, size = start[order], size[order]
    if links:
        start, size = np.unique(np.stack([start, size], axis=1), axis=0).T
    ends = -(-(start + size) // BLOCK) * BLOCK + BLOCK
    if (start[1:] < ends[:-1]).any():
        first = int(start[1:][start[1:] < ends[:-1]][0])
        raise ValueError(f"what begins at byte {first} of its shard overlaps what is before it")
