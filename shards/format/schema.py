"""The dataclasses of a dataset: sample, modality, shard, split, manifest.

A dataset is a folder of shards (plain WebDataset tars), an index beside each shard, and one `manifest.json`.
The manifest is the contract between packing and reading: it is all that planning an epoch needs. Its keys are
the names of the fields here, so a renamed field would break datasets that exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from shards.format.recording import Recording
from shards.format.split_names import find_split
from shards.format.targets import CLASSES, OPTIONAL, Target
from shards.safe_io.json_text import json_text

# 2: targets other than classes, and columns with missing values. 3: recordings. 4: int8 features. A dataset
# has the lowest version that can describe it, so that early programs read what they can.
SCHEMA_VERSION = 4
TARGETS_SINCE = 2
RECORDINGS_SINCE = 3
QUANTIZED_SINCE = 4
MANIFEST = "manifest.json"
FLOATS = ("float16", "float32")
INT8 = "int8"
DTYPES = (*FLOATS, INT8)  # of features
COLUMN_KINDS = ("bool", "int", "float", "str", OPTIONAL)
# Keys of the provenance of a dataset that `awtpn shards index` made from tars of other programs: when; why
# the tars could not be read in place and were decoded into shards of our own, or None; and the field of their
# JSON members that holds the label.
INDEXED, DECODED = "indexed", "decoded"
LABEL_FIELD = "label_field"
# The key of the provenance of a dataset of int8 features: the splits that the scales are of, by modality the
# largest error of a dimension as a share of its standard deviation, and how many values were clipped.
QUANTIZED = "quantized"

# File names of the manifest are joined to local folders, so they must not be able to leave them. The cache
# adds a hash and a size to the name, and file systems allow 255 bytes.
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
# Not "json": the index uses this name for the metadata.
MODALITY_NAME = re.compile(r"(?!json$)[a-z][a-z0-9_]{0,99}")


@dataclass(frozen=True)
class Sample:
    """One utterance to be packed.

    Attributes:
        key: name of the utterance, unique in the dataset.
        split: name of the split it belongs to.
        label: name of its class; None in a dataset without classes, whose target is other metadata.
        features: per modality an array [T, D] (time steps, features per time step), or None if it is missing.
        meta: metadata of the utterance, of types that JSON has; streams can select by scalars.
        source: the file it came from, for error messages.
    """

    key: str
    split: str
    label: str | None
    features: dict[str, np.ndarray | None]
    meta: dict[str, Any] = field(default_factory=dict)
    source: str | None = None


@dataclass(frozen=True)
class BadSample:
    """An utterance that a source could not read; packing refuses or skips it, by its option `on_bad`."""

    key: str
    cause: str
    source: str | None = None


@dataclass(frozen=True)
class Quantization:
    """What int8 features stand for: `value = q * scale + offset` in float32, for each dimension on its own.

    It is the same for all shards and splits of a dataset.

    Attributes:
        scale: [D], numbers that float32 holds; 0 of a dimension that never changes.
        offset: [D], likewise.
    """

    scale: list[float]
    offset: list[float]

    @cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset, [D] float32 each."""
        return np.array(self.scale, np.float32), np.array(self.offset, np.float32)

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """The values of int8 [T, D], in float32."""
        scale, offset = self.arrays
        return stored.astype(np.float32) * scale + offset


def check_quantization(quantization: Quantization, dim: int) -> None:
    """Raise ValueError unless it has a finite scale and offset for each of `dim` features."""
    for name, values in (("scale", quantization.scale), ("offset", quantization.offset)):
        if len(values) != dim:
            raise ValueError(f"{name}: {len(values)} numbers for {dim} features per step")
        largest = float(np.finfo(np.float32).max)
        for i, value in enumerate(values):
            if not (0.0 if name == "scale" else -largest) <= value <= largest:  # so that NaN is refused, too
                raise ValueError(f"{name}[{i}] is {value!s:.40}")


@dataclass(frozen=True)
class Modality:
    """Numbers per time step of a modality, and their dtype in the shards and in a batch.

    Attributes:
        dim: features per time step; of recordings all numbers of a step.
        dtype: "float16", "float32" or "int8"; of recordings "int16" or "uint8".
        recording: what the steps of a recording are; None of features.
        quantization: what int8 features stand for; None of all else.
    """

    dim: int
    dtype: str
    recording: Recording | None = None
    quantization: Quantization | None = None

    def values_of(self, stored: np.ndarray) -> np.ndarray:
        """The values of stored features [T, D]: of int8 in float32, all others as they are."""
        return stored if self.quantization is None else self.quantization.dequantize(stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one time step: [features], or that of a recording's step."""
        return tuple(self.recording.shape) if self.recording else (self.dim,)

    @property
    def step_bytes(self) -> int:
        """Bytes of a time step in a batch."""
        return self.dim * np.dtype(self.dtype).itemsize

    @property
    def is_jpeg(self) -> bool:
        """Whether each time step is stored as a JPEG."""
        return self.recording is not None and self.recording.jpeg_quality is not None

    @property
    def is_pictures(self) -> bool:
        """Whether it is pictures as recorded; a time step is one of them."""
        return self.recording is not None and not self.recording.is_sound

    @property
    def is_sound(self) -> bool:
        """Whether it is sound as recorded, whose true number of samples is stored."""
        return self.recording is not None and self.recording.is_sound


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its files with sizes and SHA-256, its utterances, and time steps by modality."""

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
    """Mean [D] and standard deviation [D] over all `count` time steps of a modality.

    They are of the values as stored; of int8 features of what these stand for.
    """

    count: int
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Split:
    """One split: its size, time steps by modality, counts per class, statistics by modality, and shards.

    The field of the statistics is called `moments`, as the key of the manifest is. Recordings have none.
    """

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
        classes: class names; a label is a position in this list. Empty if utterances have no class; then the
            target is another one.
        columns: metadata that every utterance has, by kind: "bool", "int", "float" or "str"; and numbers that
            only some have: "optional float".
        splits: by name, in the order in which they first occurred in packing.
        provenance: how the features were made; free-form.
        skipped: number of bad samples that packing skipped (`skipped.jsonl` lists them).
        target: what the utterances are labeled with; that of version 1 is the classes.
        targets: further targets, by name, that a run can choose.
        schema_version: of the layout on disk.
    """

    modalities: dict[str, Modality]
    classes: list[str]
    columns: dict[str, str]
    splits: dict[str, Split]
    provenance: dict[str, Any]
    skipped: int = 0
    target: Target = CLASSES
    targets: dict[str, Target] = field(default_factory=dict)
    schema_version: int = TARGETS_SINCE


def version_of(modalities: Mapping[str, Modality]) -> int:
    """The lowest schema version that can describe a new dataset of these modalities."""
    if any(modality.quantization for modality in modalities.values()):
        return QUANTIZED_SINCE
    recorded = any(modality.recording for modality in modalities.values())
    return RECORDINGS_SINCE if recorded else TARGETS_SINCE


def read_in_place(manifest: Manifest) -> bool:
    """Whether the shards are tars of other programs that are read in place."""
    return INDEXED in manifest.provenance and not manifest.provenance.get(DECODED)


def choose_split(manifest: Manifest, split: str, url: str) -> str:
    """A split by its name, or by another name for the same ("val" is "valid" or "dev", see `split_names`).

    A dataset whose only split is "all" gives that one for every name.

    Raises:
        ValueError: there is no such split, or several with that meaning.
    """
    if found := find_split(split, manifest.splits):
        return found
    if list(manifest.splits) == ["all"]:
        return "all"
    raise ValueError(f"{url}: no split {split!r}; it has {list(manifest.splits)}")


def choose_modalities(manifest: Manifest, names: list[str] | None, url: str) -> dict[str, Modality]:
    """The modalities of these names (default: all), in the manifest's order.

    Raises:
        ValueError: there is no such modality, or no name.
    """
    if names is not None and not names:
        raise ValueError(f"{url}: modalities is empty; it has {', '.join(manifest.modalities)}")
    for name in names or []:
        if name not in manifest.modalities:
            raise ValueError(
                f"{url}: no modality {name!r}; it has {', '.join(manifest.modalities)}: choose among these "
                "(a run does by model.modalities)"
            )
    return {name: m for name, m in manifest.modalities.items() if names is None or name in names}


def dump_manifest(manifest: Manifest) -> str:
    """The text of `manifest.json`; that of an early version is the same as when it was written.

    Runs record a hash of it, by which they recognize their data when they resume.
    """
    record = asdict(manifest)
    if manifest.schema_version < TARGETS_SINCE:
        del record["target"], record["targets"]
    if manifest.schema_version < RECORDINGS_SINCE:
        for modality in record["modalities"].values():
            del modality["recording"]
    if manifest.schema_version < QUANTIZED_SINCE:
        for modality in record["modalities"].values():
            del modality["quantization"]
    return json_text(record, indent=1) + "\n"
