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

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

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
        name: Modality(_field(entry, "dim", int, at), _field(entry, "dtype", str, at))
        for name, entry in _field(record, "modalities", dict, url).items()
        for at in [f"{url}: modalities.{name}"]
    }
    splits = {
        name: _parse_split(entry, f"{url}: splits.{name}")
        for name, entry in _field(record, "splits", dict, url).items()
    }
    return Manifest(
        modalities=modalities,
        classes=_field(record, "classes", list, url),
        columns=_field(record, "columns", dict, url),
        splits=splits,
        provenance=_field(record, "provenance", dict, url),
        skipped=_field(record, "skipped", int, url),
        schema_version=version,
    )


def _parse_split(record: Any, at: str) -> Split:
    shards = [
        _parse_shard(entry, f"{at}.shards[{i}]") for i, entry in enumerate(_field(record, "shards", list, at))
    ]
    utterances = _field(record, "utterances", int, at)
    if utterances != sum(shard.utterances for shard in shards):
        raise ValueError(f"{at}: {utterances} utterances, but its shards hold another number; pack it again")
    moments = {
        name: SplitMoments(*(_field(m, key, kind, f"{at}.moments.{name}") for key, kind in _MOMENT_FIELDS))
        for name, m in _field(record, "moments", dict, at).items()
    }
    return Split(
        utterances=utterances,
        steps=_field(record, "steps", dict, at),
        class_counts=_field(record, "class_counts", list, at),
        moments=moments,
        shards=shards,
    )


_MOMENT_FIELDS = (("count", int), ("mean", list), ("std", list))


def _parse_shard(record: Any, at: str) -> ShardEntry:
    shard = ShardEntry(
        name=_field(record, "name", str, at),
        utterances=_field(record, "utterances", int, at),
        bytes=_field(record, "bytes", int, at),
        sha256=_field(record, "sha256", str, at),
        index=_field(record, "index", str, at),
        index_bytes=_field(record, "index_bytes", int, at),
        index_sha256=_field(record, "index_sha256", str, at),
        steps=_field(record, "steps", dict, at),
    )
    for name in (shard.name, shard.index):
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{at}: {name!r} is not a plain file name; shards lie beside their manifest")
    return shard


def _field(record: Any, name: str, kind: type, at: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise ValueError(f"{at}: field {name!r} is missing; this is not a complete manifest, pack it again")
    if not isinstance(record[name], kind):
        found = type(record[name]).__name__
        raise ValueError(f"{at}: field {name!r} must be {kind.__name__}, not {found}; pack it again")
    return record[name]
