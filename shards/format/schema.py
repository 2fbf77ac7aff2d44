"""What a sample, a shard and a manifest are.

A dataset is a folder of shards (plain WebDataset tars), an index beside each shard, and one `manifest.json`.
The manifest is the contract between packing and reading: planning an epoch needs nothing else.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from shards.format.split_names import find_split
from shards.safe_io.json_text import json_text

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
DTYPES = ("float16", "float32")
COLUMN_KINDS = ("bool", "int", "float", "str")
# In the provenance of tars that others made. Where it says besides that they were decoded, ours lie there.
INDEXED, DECODED = "indexed", "decoded"
# And the field of their JSON members that holds the label.
LABEL_FIELD = "label_field"

# A file name of the manifest is joined to folders of this machine, so it must not be able to leave them. In a
# cache it gets a hash and a size added to it, and file systems allow 255 bytes.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
# "json" is what the index calls the metadata.
MODALITY_NAME = re.compile(r"(?!json$)[a-z][a-z0-9_]{0,99}")


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
class SplitStatistics:
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
    moments: dict[str, SplitStatistics]
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


def read_in_place(manifest: Manifest) -> bool:
    """Whether the shards are tars that others made, read where they lie."""
    return INDEXED in manifest.provenance and not manifest.provenance.get(DECODED)


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
    return json_text(asdict(manifest), indent=1) + "\n"
