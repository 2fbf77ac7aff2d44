"""A dataset that `awtpn extract MEDIA OUT --audio waveform --video frames` made: features without the media.

SOURCE is its folder or any fsspec URL of it (`s3://bucket/clips`), also its manifest.json, with `#train` one
split alone. Every rank reads the manifest and the indexes. A rank reads, or downloads, only the shards of the
clips that it decodes.

    awtpn extract recordings data/clips --audio waveform --video frames
    awtpn extract data/clips data/features --audio logmel --video descriptor

Keys, splits, labels, targets and metadata are those of the dataset. A modality that no encoder is asked for
is left out. One that holds features cannot be encoded, and there are no texts.
`shards.extraction.stored_media` says what an encoder is given.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.format.class_checks import WrongManifest
from shards.format.feature_space import CONSTANT, ROUNDED, recorded_constant, recorded_spaces
from shards.format.recording import KIND_OF, Recording
from shards.format.schema import (
    DECODED,
    INDEXED,
    LABEL_FIELD,
    MANIFEST,
    BadSample,
    Manifest,
    Modality,
    choose_split,
)
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.printable import listed, plural
from shards.sources.base import TRANSCRIPTS, Clip, ClipSource, StoredRecording
from shards.sources.reading.packed_row import PackedRow, PackedSplit

if TYPE_CHECKING:
    from shards.format.index import ShardIndex
    from shards.storage.store import Store
    from shards.streaming.reader import ShardReader

FIELDS = {"schema_version", "modalities", "splits"}  # of every manifest
# Shards that a reader keeps open: clips are decoded in order, by a few threads.
OPEN_SHARDS = 8
# Provenance that says how the recordings were made; all else is of the corpus, and of its features, too.
MADE = (
    *("features", "extracted", "packed", "versions", "command", "extraction", "warning", "recordings"),
    *(CONSTANT, ROUNDED, INDEXED, DECODED, LABEL_FIELD, TRANSCRIPTS),
)


def read(
    source: str | Path,
    modalities: Collection[str] = ("audio", "video"),
    cache_dir: str | Path | None = None,
    cache_limit: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> ClipSource:
    """List the rows of a dataset of recordings.

    Args:
        source: the dataset, a folder or any fsspec URL.
        modalities: of which features are to be made.
        cache_dir: where the shards of a remote dataset are kept (default: as to train).
        cache_limit: bytes that this folder may hold, such as 200GB.
        storage_options: for the fsspec file system of `source`.

    Returns:
        A clip for each row, in the dataset's order. The rows of a damaged index are `BadSample`s.

    Raises:
        ValueError: there is no dataset, or it has no recordings of any of the modalities.
        OSError: the store cannot be reached.
    """
    from shards.storage.store import open_dataset

    store, manifest, split = open_dataset(str(source), cache_dir, storage_options, cache_limit)
    recorded = {name: modality.recording for name, modality in manifest.modalities.items()}
    if not any(recorded.values()):
        raise ValueError(
            f"{store.url}: holds features, not recordings, so no other features can be made of it: give the "
            "media, or a dataset of `awtpn extract MEDIA OUT --audio waveform --video frames`"
        )
    missing = _missing(manifest, store.url)
    usable = {name: of for name, of in recorded.items() if of and name in KIND_OF and name not in missing}
    wanted = [name for name in usable if name in modalities]
    if modalities and not wanted and not missing.keys() & set(modalities):
        raise ValueError(
            f"{store.url}: holds recordings of {listed(list(usable) or list(recorded))}, and none of "
            f"{listed(list(modalities))}: name an encoder of a modality that it has"
        )
    splits = [choose_split(manifest, split, store.url)] if split else list(manifest.splits)
    readers: list[ShardReader] = []
    remarks = []
    if manifest.skipped:
        remarks.append(
            f"{store.url}: {plural(manifest.skipped, 'clip')} could not be stored in it (skipped.jsonl)"
        )
    return ClipSource(
        clips=[clip for name in splits if wanted for clip in _clips(store, manifest, name, wanted, readers)],
        classes=manifest.classes,
        provenance=_provenance(manifest, store.url),
        remarks=remarks,
        missing=missing,
        target=manifest.target,
        targets=manifest.targets,
        stored={name: _stored(name, of, manifest, store.url) for name, of in usable.items()},
    )


def recognize(folder: Path) -> bool:
    """Whether it is a dataset of shards; of one without recordings, `read` says why it cannot be used."""
    path = folder if folder.suffix == ".json" else folder / MANIFEST
    try:
        found = parse_json(path.read_bytes(), str(path)) if path.is_file() else None
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.keys() >= FIELDS


def _missing(manifest: Manifest, url: str) -> dict[str, str]:
    """Error messages for the modalities that cannot be encoded."""
    found = {
        "text": f"{url}: holds no texts, of which features of text are made: make them of the corpus itself "
        "(awtpn extract CORPUS OUT --audio none --video none --text ENCODER), and here give --text none"
    }
    for name, kind in KIND_OF.items():
        modality = manifest.modalities.get(name)
        if modality is not None and (modality.recording is None or modality.recording.kind != kind):
            what = f"{modality.recording}" if modality.recording else "features, not recordings"
            found[name] = f"{url}: its modality {name} holds {what}: leave it out (--{name} none)"
    return found


def _stored(name: str, recording: Recording, manifest: Manifest, url: str) -> StoredRecording:
    known = recorded_spaces(manifest.provenance).get(name)
    jpeg = {"jpeg": recording.jpeg_quality} if recording.jpeg_quality else {}
    form = {"shape": recording.shape, **jpeg}
    rate = {"rate": recording.rate} if recording.is_sound else {"fps": recording.rate, **form}
    settings = known["settings"] if known else {"id": recording.kind, **rate}
    rounded = manifest.provenance.get(ROUNDED)
    # Sound of which nobody counted the rounded clips is not known to be exact.
    is_exact = isinstance(rounded, dict) and type(rounded.get(name)) is int and rounded[name] == 0
    return StoredRecording(url, recording, settings, is_exact)


def _provenance(manifest: Manifest, url: str) -> dict[str, Any]:
    """The corpus' provenance, and under "recordings" how and where its recordings are stored."""
    given = manifest.provenance
    forms = {name: str(of.recording) for name, of in manifest.modalities.items() if of.recording}
    made = {name: given[name] for name in MADE if given.get(name)}
    kept = {name: value for name, value in given.items() if name not in MADE}
    return {
        **kept,
        "recordings": {"dataset": url, "stored": forms, "skipped": manifest.skipped, "made": made},
    }


def _clips(
    store: Store, manifest: Manifest, split: str, wanted: list[str], of_dataset: list[ShardReader]
) -> list[Clip | BadSample]:
    """The rows of a split, in order; of their metadata only the values of targets.

    Args:
        of_dataset: the readers of all splits; those of this one are added.
    """
    from shards.streaming.buffer_pool import BufferPool
    from shards.streaming.reader import ShardReader

    def reader_of(modality: Modality, name: str) -> ShardReader:
        return ShardReader(
            store, manifest, split, {name: modality}, pool, check_crc=True, open_shards=OPEN_SHARDS
        )

    pool = BufferPool()
    readers = {name: reader_of(manifest.modalities[name], name) for name in wanted}
    of_dataset += readers.values()
    packed = PackedSplit(readers, recorded_constant(manifest.provenance)[0], of_dataset)
    columns = {name for target in (manifest.target, *manifest.targets.values()) for name in target.columns}

    def rows(shard: int) -> list[Clip | BadSample]:
        entry = packed.reader.shards[shard]
        try:
            index = packed.reader.index(shard)
        except WrongManifest:
            raise
        except (ValueError, FileNotFoundError) as error:
            return [BadSample(f"{entry.name}#{row}", str(error)) for row in range(entry.utterances)]
        return _rows(index, packed, shard, split, sorted(columns))

    return list(chain.from_iterable(packed.reader.map(rows, range(len(packed.reader.shards)))))


def _rows(
    index: ShardIndex, packed: PackedSplit, shard: int, split: str, columns: list[str]
) -> list[Clip | BadSample]:
    classes = packed.reader.manifest.classes
    label = index.label.tolist()
    values = {name: index.columns[name].tolist() for name in columns if name in index.columns}
    steps = {name: index.steps[name] for name in packed.readers}
    return [
        Clip(
            key=key,
            split=split,
            label=classes[label[row]] if classes else None,
            audio=None,
            video=None,
            meta={name: _known(of[row]) for name, of in values.items()},
            packed=PackedRow(
                packed, shard, row, key, frozenset(name for name, of in steps.items() if of[row])
            ),
        )
        for row, key in enumerate(index.key.tolist())
    ]


def _known(value: Any) -> Any:
    """None in place of NaN, by which an index stores a missing number."""
    return None if isinstance(value, float) and np.isnan(value) else value
