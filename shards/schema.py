"""What a sample, a shard and a manifest are.

A dataset is a folder of shards (plain WebDataset tars), an index beside each shard, and one `manifest.json`.
The manifest is the contract between packing and reading: planning an epoch needs nothing else.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shards.split_names import find_split

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
DTYPES = ("float16", "float32")
COLUMN_KINDS = ("bool", "int", "float", "str")
# In the provenance of tars that others made. Where it says besides that they were decoded, ours lie there.
INDEXED, DECODED = "indexed", "decoded"

# A file name of the manifest is joined to folders of this machine, so it must not be able to leave them.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class Sample:
    """One utterance on its way into a shard.

    Attributes:
        key: name of the utterance, unique in the dataset.
        split: name of the split it belongs to.
        label: name of its class.
        features: per modality an array [T, D] (steps, features per step), or None where it has none.
        meta: JSON-able facts about the utterance; scalars can be selected by when streaming.
        source: the file it came from, for error messages.
    """

    key: str
    split: str
    label: str
    features: dict[str, np.ndarray | None]
    meta: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class BadSample:
    """An utterance that a source could not read: packing refuses or skips it, as it was told to."""

    key: str
    cause: str
    source: str | None = None


@dataclass(frozen=True)
class Modality:
    """One stream of steps: features per step and the dtype they are stored in."""

    dim: int
    dtype: str


@dataclass(frozen=True)
class ShardEntry:
    """One shard as the manifest knows it; `bytes` and the hashes are those of the files."""

    name: str
    utterances: int
    bytes: int
    sha256: str
    index: str
    index_bytes: int
    index_sha256: str
    steps: dict[str, int]


@dataclass(frozen=True)
class SplitMoments:
    """Mean [D] and standard deviation [D] over all `count` steps of a modality, of the values as stored."""

    count: int
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Split:
    """One split: its size, its classes (counts in the manifest's class order) and its shards in order."""

    utterances: int
    steps: dict[str, int]
    class_counts: list[int]
    moments: dict[str, SplitMoments]
    shards: list[ShardEntry]


@dataclass(frozen=True)
class Manifest:
    """A dataset, complete: what `manifest.json` holds.

    Attributes:
        modalities: by name, in alphabetical order.
        classes: class names; a label is a position in this list.
        columns: metadata that every utterance has, by kind: "bool", "int", "float" or "str".
        splits: by name, in the order in which packing met them.
        provenance: how the features were made; free-form.
        skipped: bad samples that packing left out (`skipped.jsonl` lists them).
        schema_version: of the layout on disk.
    """

    modalities: dict[str, Modality]
    classes: list[str]
    columns: dict[str, str]
    splits: dict[str, Split]
    provenance: dict[str, Any]
    skipped: int = 0
    schema_version: int = SCHEMA_VERSION


def choose_split(manifest: Manifest, split: str, url: str) -> str:
    """A split by its name, or by another name for the same ("val" is "valid" or "dev", see `split_names`).

    A dataset whose only split is "all" gives that one, whatever is asked for.

    Raises:
        ValueError: there is no such split, or several that may be meant.
    """
    if found := find_split(split, manifest.splits):
        return found
    if list(manifest.splits) == ["all"]:
        return "all"
    raise ValueError(f"{url}: no split {split!r}; it has {list(manifest.splits)}")


def dump_manifest(manifest: Manifest) -> str:
    """The text of `manifest.json`."""
    return json.dumps(asdict(manifest), indent=1, allow_nan=False) + "\n"


def parse_manifest(text: str | bytes, url: str) -> Manifest:
    """Read and check the text of a `manifest.json`.

    Args:
        text: content of the file.
        url: where it came from, for error messages.

    Raises:
        ValueError: not JSON, of a newer schema, or a field is missing, of the wrong type or inconsistent.
    """
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{url}: not JSON ({error}); point to a dataset folder that was packed") from None
    version = _field(record, "schema_version", int, url)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{url}: schema version {version}, while this code reads up to {SCHEMA_VERSION}; upgrade it"
        )
    modalities = {
        name: _parse_modality(entry, f"{url}: modalities.{name}")
        for name, entry in _field(record, "modalities", dict, url).items()
    }
    classes, columns = _list(record, "classes", str, url), _dict(record, "columns", str, url)
    if not modalities or not classes or not set(columns.values()) <= set(COLUMN_KINDS):
        raise ValueError(
            f"{url}: there must be a modality and a class, and columns must be {COLUMN_KINDS}; pack it again"
        )
    splits = {
        name: _parse_split(entry, modalities, len(classes), f"{url}: splits.{name}")
        for name, entry in _field(record, "splits", dict, url).items()
    }
    return Manifest(
        modalities=modalities,
        classes=classes,
        columns=columns,
        splits=splits,
        provenance=_field(record, "provenance", dict, url),
        skipped=_field(record, "skipped", int, url),
        schema_version=version,
    )


def _parse_modality(record: Any, at: str) -> Modality:
    modality = Modality(_field(record, "dim", int, at), _field(record, "dtype", str, at))
    if modality.dim < 1 or modality.dtype not in DTYPES:
        raise ValueError(f"{at}: {modality}: dim must be positive, dtype one of {DTYPES}; pack it again")
    return modality


def _parse_split(record: Any, modalities: dict[str, Modality], num_classes: int, at: str) -> Split:
    shards = [
        _parse_shard(entry, f"{at}.shards[{i}]") for i, entry in enumerate(_field(record, "shards", list, at))
    ]
    utterances = _field(record, "utterances", int, at)
    if utterances != sum(shard.utterances for shard in shards):
        raise ValueError(f"{at}: {utterances} utterances, but its shards hold another number; pack it again")
    class_counts = _list(record, "class_counts", int, at)
    if len(class_counts) != num_classes or sum(class_counts) != utterances:
        raise ValueError(
            f"{at}: class_counts {class_counts} do not add up to {utterances} utterances of {num_classes} "
            "classes; pack it again"
        )
    found = _field(record, "moments", dict, at)
    return Split(
        utterances=utterances,
        steps=_dict(record, "steps", int, at),
        class_counts=class_counts,
        moments={
            name: _parse_moments(_field(found, name, dict, f"{at}.moments"), m.dim, f"{at}.moments.{name}")
            for name, m in modalities.items()
        },
        shards=shards,
    )


def _parse_moments(record: Any, dim: int, at: str) -> SplitMoments:
    moments = SplitMoments(
        _field(record, "count", int, at),
        _list(record, "mean", float, at),
        _list(record, "std", float, at),
    )
    if not len(moments.mean) == len(moments.std) == dim:
        raise ValueError(
            f"{at}: {len(moments.mean)} means and {len(moments.std)} deviations of {dim} features per step; "
            "pack it again"
        )
    return moments


def _parse_shard(record: Any, at: str) -> ShardEntry:
    shard = ShardEntry(
        name=_field(record, "name", str, at),
        utterances=_field(record, "utterances", int, at),
        bytes=_field(record, "bytes", int, at),
        sha256=_field(record, "sha256", str, at),
        index=_field(record, "index", str, at),
        index_bytes=_field(record, "index_bytes", int, at),
        index_sha256=_field(record, "index_sha256", str, at),
        steps=_dict(record, "steps", int, at),
    )
    for name in (shard.name, shard.index):
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{at}: {name!r} is not a plain file name; shards lie beside their manifest")
    return shard


def _field(record: Any, name: str, kind: type, at: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"{at}: field {name!r} is missing; this is not a complete manifest, pack it again")
    _check_kind(record[name], kind, f"{at}: field {name!r}")
    return record[name]


def _list(record: Any, name: str, kind: type, at: str) -> Any:
    """A field that is a list of `kind`."""
    found = _field(record, name, list, at)
    for i, value in enumerate(found):
        _check_kind(value, kind, f"{at}: {name}[{i}]")
    return found


def _dict(record: Any, name: str, kind: type, at: str) -> Any:
    """A field that is a dict with values of `kind`."""
    found = _field(record, name, dict, at)
    for key, value in found.items():
        _check_kind(value, kind, f"{at}: {name}.{key}")
    return found


def _check_kind(value: Any, kind: type, at: str) -> None:
    """Raise ValueError unless it is of a kind. Integers of a manifest are counts."""
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits or (kind is int and value < 0):
        found = type(value).__name__ if kind in (dict, list) else f"{value!r:.40}"
        wanted = "a count" if kind is int else kind.__name__
        raise ValueError(f"{at} must be {wanted}, not {found}; pack it again")
