"""Parse `manifest.json` into a `Manifest`, and check every name, size and count in it.

A manifest may come from anywhere. Its names become paths, its counts become sizes of arrays, and planning
uses it before any shard is opened. So all of it is checked here; counts must fit the sizes of the files.
Opening a dataset calls this, and packing calls it on its own manifest before it writes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from shards.format.jpeg import least_jpeg_bytes
from shards.format.recording import DTYPE_OF, Recording, check_recording
from shards.format.schema import (
    COLUMN_KINDS,
    DTYPES,
    FLOATS,
    INDEXED,
    INT8,
    MODALITY_NAME,
    PLAIN_NAME,
    QUANTIZED_SINCE,
    RECORDINGS_SINCE,
    SCHEMA_VERSION,
    SHA256,
    SPLIT_NAME,
    TARGETS_SINCE,
    Manifest,
    Modality,
    Quantization,
    ShardEntry,
    Split,
    SplitStatistics,
    check_quantization,
)
from shards.format.targets import CLASSES, NUMBERS, OPTIONAL, Target, check_declared
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.git_lfs import refuse_pointer_text

# Counts and sizes, and their sums, are below this: float64 and every JSON reader hold such integers exactly.
COUNT_LIMIT = 2**53
# Of a split. Planning holds a few numbers in memory for every thousand utterances.
MOST_UTTERANCES = 2**34
# Largest manifest; one with a million shards is smaller.
MANIFEST_BYTES = 1 << 30
# Largest index; an index is read into memory as a whole.
INDEX_BYTES = 1 << 32
# Least bytes of an utterance in a tar: the header of one array.
LEAST_TAR_BYTES = 512
# Least bytes of a picture as JPEG in a tar: its header, and a block with its content.
LEAST_PICTURE_BYTES = 1024
# Least bytes of an utterance in an index: one letter of the key, the label, offset and size of the metadata.
LEAST_INDEX_BYTES = 20


def parse_manifest(text: str | bytes, url: str) -> Manifest:
    """Read and check the text of a `manifest.json`.

    Args:
        text: content of the file.
        url: where it came from, for error messages.

    Raises:
        ValueError: not JSON, of a newer schema, or a field is missing, of the wrong type, impossible or
            inconsistent. One line.
    """
    if len(text) > MANIFEST_BYTES:
        raise ValueError(f"{url}: {len(text)} bytes are more than a manifest may have ({MANIFEST_BYTES})")
    refuse_pointer_text(text, url)
    try:
        record = parse_json(text, url)
    except ValueError as error:
        raise ValueError(f"{error}; point to a dataset folder that was packed") from None
    version = _field(record, "schema_version", int, url)
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{url}: schema version {version}, while this code reads up to {SCHEMA_VERSION}; upgrade it"
        )
    if version < 1:
        raise ValueError(f"{url}: schema version {version}: there is none; pack it again")
    found = _field(record, "modalities", dict, url)
    _check_names(found, MODALITY_NAME, f"{url}: modalities")
    modalities = {
        name: _parse_modality(entry, f"{url}: modalities.{name}", version) for name, entry in found.items()
    }
    classes, columns = _list(record, "classes", str, url), _dict(record, "columns", str, url)
    kinds = COLUMN_KINDS if version >= TARGETS_SINCE else [k for k in COLUMN_KINDS if k != OPTIONAL]
    if not modalities or not (classes or version >= TARGETS_SINCE) or not set(columns.values()) <= set(kinds):
        raise ValueError(
            f"{url}: there must be a modality and a class, and columns must be {kinds}; pack it again"
        )
    _check_classes(classes, url)
    target, targets = CLASSES, dict[str, Target]()
    if version >= TARGETS_SINCE:
        target, targets = _parse_targets(record, classes, columns, url)
    found = _field(record, "splits", dict, url)
    _check_names(found, SPLIT_NAME, f"{url}: splits")
    provenance = _field(record, "provenance", dict, url)
    splits = {
        name: _parse_split(entry, modalities, len(classes), f"{url}: splits.{name}", INDEXED in provenance)
        for name, entry in found.items()
    }
    _check_files([shard for split in splits.values() for shard in split.shards], url)
    return Manifest(
        modalities=modalities,
        classes=classes,
        columns=columns,
        splits=splits,
        provenance=provenance,
        skipped=_field(record, "skipped", int, url),
        target=target,
        targets=targets,
        schema_version=version,
    )


def parse_shard(record: Any, modalities: dict[str, Modality], at: str, links: bool = False) -> ShardEntry:
    """Parse the entry of a shard.

    Args:
        record: what JSON gave.
        modalities: of the dataset.
        at: where the record is, for error messages.
        links: the tar may have hard links, by which several utterances share one array.

    Raises:
        ValueError: a field is missing, of the wrong type or impossible, such as more features than the file's
            bytes can hold.
    """
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
            raise ValueError(
                f"{at}: {_shown(name)} is not a plain file name; shards are beside their manifest"
            )
    for name, digest in (("sha256", shard.sha256), ("index_sha256", shard.index_sha256)):
        if not SHA256.fullmatch(digest):
            raise ValueError(
                f"{at}: {name} {_shown(digest)} is not a hash of 64 hexadecimal digits; pack it again"
            )
    _check_steps(shard.steps, modalities, at)
    features = sum(count * _least_step_bytes(modalities[name]) for name, count in shard.steps.items())
    for what, needed, there in (
        (f"{shard.utterances} utterances", shard.utterances * LEAST_TAR_BYTES, shard.bytes),
        (f"the features of {shard.steps} steps", features, shard.bytes * (shard.utterances if links else 1)),
        (f"{shard.utterances} utterances", shard.utterances * LEAST_INDEX_BYTES, shard.index_bytes),
        ("the index", shard.index_bytes, INDEX_BYTES),
    ):
        if needed > there:
            raise ValueError(f"{at}: {what} do not fit into {there} bytes; pack it again")
    return shard


def _least_step_bytes(modality: Modality) -> int:
    """The fewest bytes of a time step in a tar."""
    if modality.is_jpeg:
        return max(LEAST_PICTURE_BYTES, LEAST_TAR_BYTES + least_jpeg_bytes(modality.dim))
    return modality.step_bytes


def _parse_targets(
    record: Any, classes: list[str], columns: dict[str, str], url: str
) -> tuple[Target, dict[str, Target]]:
    """The dataset's own target and the further ones, which must fit its classes and columns."""
    own = _parse_target(_field(record, "target", dict, url), f"{url}: target")
    further = {
        name: _parse_target(entry, f"{url}: targets.{name if name.isidentifier() else _shown(name)}")
        for name, entry in _field(record, "targets", dict, url).items()
    }
    try:
        own, further = check_declared(own, further, classes)
    except ValueError as error:
        raise ValueError(f"{url}: {error}; pack it again") from None
    for at, target in (("target", own), *((f"targets.{name}", each) for name, each in further.items())):
        for name in target.columns:
            kind = columns.get(name)
            if kind not in NUMBERS:
                cause = "is not a column of numbers" if kind else "is not a column of the dataset"
                raise ValueError(f"{url}: {at}: {_shown(name)} {cause}; pack it again")
            if kind == OPTIONAL and not target.missing:
                raise ValueError(
                    f"{url}: {at}: {_shown(name)} is missing in some utterances, and the target says that "
                    "none is; pack it again"
                )
    return own, further


def _parse_target(record: Any, at: str) -> Target:
    missing = record.get("missing") if isinstance(record, dict) else None
    if not isinstance(missing, bool):
        raise ValueError(f"{at}: field 'missing' must be true or false, not {_shown(missing)}; pack it again")
    return Target(_field(record, "type", str, at), _field(record, "columns", dict, at), missing)


def _parse_modality(record: Any, at: str, version: int) -> Modality:
    recording = _parse_recording(record, at)
    if recording and version < RECORDINGS_SINCE:
        # Early programs would read the modality as features: one manifest must not mean two things.
        raise ValueError(
            f"{at}: a recording in schema version {version}; recordings are of version {RECORDINGS_SINCE}, "
            "extract it again"
        )
    quantization = _parse_quantization(record, at)
    modality = Modality(
        _field(record, "dim", int, at), _field(record, "dtype", str, at), recording, quantization
    )
    if recording and (modality.dim, modality.dtype) != (recording.dim, DTYPE_OF[recording.kind]):
        raise ValueError(
            f"{at}: dim {modality.dim} and dtype {_shown(modality.dtype)} are not those of {recording}; "
            "extract it again"
        )
    dtypes = DTYPES if version >= QUANTIZED_SINCE else FLOATS
    if not recording and (modality.dim < 1 or modality.dtype not in dtypes):
        raise ValueError(
            f"{at}: {modality!s:.100}: dim must be positive, dtype one of {dtypes}; pack it again"
        )
    if (modality.dtype == INT8) != (quantization is not None):
        raise ValueError(f"{at}: int8 features, and no others, have a quantization; pack it again")
    if quantization:
        try:
            check_quantization(quantization, modality.dim)
        except ValueError as error:
            raise ValueError(f"{at}.quantization: {error}; pack it again") from None
    return modality


def _parse_quantization(record: Any, at: str) -> Quantization | None:
    """What int8 features stand for; None of other features."""
    if not isinstance(record, dict) or record.get("quantization") is None:
        return None
    at, entry = f"{at}.quantization", _field(record, "quantization", dict, at)
    return Quantization(_list(entry, "scale", float, at), _list(entry, "offset", float, at))


def _parse_recording(record: Any, at: str) -> Recording | None:
    """What the steps of a recording are; None of features."""
    if not isinstance(record, dict) or record.get("recording") is None:
        return None
    at, entry = f"{at}.recording", _field(record, "recording", dict, at)
    quality = entry.get("jpeg_quality")
    if quality is not None:
        quality = _field(entry, "jpeg_quality", int, at)
    recording = Recording(
        _field(entry, "kind", str, at),
        float(_field(entry, "rate", float, at)),
        _list(entry, "shape", int, at),
        quality,
    )
    try:
        check_recording(recording)
    except ValueError as error:
        raise ValueError(f"{at}: {error}; extract it again") from None
    return recording


def _parse_split(
    record: Any, modalities: dict[str, Modality], num_classes: int, at: str, links: bool
) -> Split:
    shards = [
        parse_shard(entry, modalities, f"{at}.shards[{i}]", links)
        for i, entry in enumerate(_field(record, "shards", list, at))
    ]
    utterances = _field(record, "utterances", int, at)
    if utterances != sum(shard.utterances for shard in shards):
        raise ValueError(f"{at}: {utterances} utterances, but its shards hold another number; pack it again")
    if utterances > MOST_UTTERANCES:
        raise ValueError(f"{at}: {utterances} utterances are more than a split can have ({MOST_UTTERANCES})")
    class_counts = _list(record, "class_counts", int, at)
    if len(class_counts) != num_classes or (num_classes and sum(class_counts) != utterances):
        raise ValueError(
            f"{at}: class_counts {class_counts!s:.100} do not add up to {utterances} utterances of "
            f"{num_classes} classes; pack it again"
        )
    steps = _dict(record, "steps", int, at)
    _check_steps(steps, modalities, at)
    found = _field(record, "moments", dict, at)
    statistics = {
        name: _parse_statistics(_field(found, name, dict, f"{at}.moments"), m, f"{at}.moments.{name}")
        for name, m in modalities.items()
        if m.recording is None
    }
    for name in modalities:
        counts = {
            "steps": steps.get(name, 0),
            **({"moments": statistics[name].count} if name in statistics else {}),
            "shards": sum(shard.steps.get(name, 0) for shard in shards),
        }
        if len(set(counts.values())) > 1:
            raise ValueError(f"{at}: {name} has other numbers of steps by its parts: {counts}; pack it again")
    return Split(utterances, steps, class_counts, statistics, shards)


def _parse_statistics(record: Any, modality: Modality, at: str) -> SplitStatistics:
    statistics = SplitStatistics(
        _field(record, "count", int, at),
        _list(record, "mean", float, at),
        _list(record, "std", float, at),
    )
    if not len(statistics.mean) == len(statistics.std) == modality.dim:
        raise ValueError(
            f"{at}: {len(statistics.mean)} means and {len(statistics.std)} deviations of {modality.dim} "
            "features per step; pack it again"
        )
    # Mean and deviation cannot exceed the largest value of the dtype, except by rounding.
    wide = np.float32 if modality.dtype == INT8 else modality.dtype
    largest = float(np.finfo(wide).max) * 1.0001
    for name, values, least in (("mean", statistics.mean, -largest), ("std", statistics.std, 0.0)):
        for i, value in enumerate(values):
            if not least <= value <= largest:  # written so that NaN is refused too
                raise ValueError(
                    f"{at}: {name}[{i}] is {value!s:.40}, which {modality.dtype} values cannot have; "
                    "pack it again"
                )
    return statistics


# --- Checks --------------------------------------------------------------------------------------


def _check_names(found: Iterable[str], pattern: Any, at: str) -> None:
    for name in found:
        if not pattern.fullmatch(name) or len(name) > 100:
            raise ValueError(f"{at}: {_shown(name)} cannot be a name there; pack it again")


def _check_classes(classes: list[str], at: str) -> None:
    seen: set[str] = set()
    for i, name in enumerate(classes):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{at}: classes[{i}] {_shown(name)} is not valid text; pack it again") from None
        if not name or name in seen:
            cause = f"{_shown(name)} is there twice" if name else "is empty"
            raise ValueError(f"{at}: classes[{i}] {cause}; classes are distinct names, pack it again")
        seen.add(name)


def _check_steps(steps: dict[str, int], modalities: dict[str, Modality], at: str) -> None:
    for name in steps:
        if name not in modalities:
            raise ValueError(f"{at}: steps of {_shown(name)}, which is not a modality; pack it again")


def _check_files(shards: list[ShardEntry], at: str) -> None:
    """Check that no file is named twice: its utterances could be trained on and tested on."""
    seen: set[str] = set()
    for shard in shards:
        for name in (shard.name, shard.index):
            if name in seen:
                raise ValueError(f"{at}: {name} is named twice; every shard is in one split, pack it again")
            seen.add(name)
    size = sum(shard.bytes for shard in shards)
    if size >= COUNT_LIMIT:
        raise ValueError(f"{at}: its shards have {size} bytes, which is more than is possible; pack it again")


# --- Fields --------------------------------------------------------------------------------------


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
        _check_kind(value, kind, f"{at}: {name}.{key if key.isidentifier() else _shown(key)}")
    return found


def _check_kind(value: Any, kind: type, at: str) -> None:
    """Raise ValueError unless `value` is of the kind. Integers of a manifest are counts: not negative."""
    fits = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if not fits or (kind is int and not 0 <= value < COUNT_LIMIT):
        found = type(value).__name__ if kind in (dict, list) else _shown(value)
        wanted = f"a count below {COUNT_LIMIT}" if fits and value > 0 else "a count"
        raise ValueError(
            f"{at} must be {wanted if kind is int else kind.__name__}, not {found}; pack it again"
        )


def _shown(value: Any) -> str:
    """A value of the manifest for an error message: short, and with control characters escaped."""
    return f"{value!r:.60}"
