"""`awtpn shards index`: make a dataset of tars of other programs, by indexing them in place or decoding them.

Tars whose arrays the reader can use as they are get an index each, and a manifest. Other tars (compressed
ones, `.npz` members, other dtypes) are decoded once, into shards of our own.

Indexes and manifest are put beside the tars, or into the cache if that place is read-only. Decoded shards are
put into the cache. `open_dataset` finds either by the URL of the tars.

Keys stay as they are if they are unique. If several tars have the same keys, as those of webdataset often do,
each key gets the name of its tar as a prefix: `train-000000/000017`, decoded `train-000000_000017`.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.index import Row
from shards.format.labels import found_classes, given_classes, label_name
from shards.format.schema import DECODED, INDEXED, LABEL_FIELD, MANIFEST, PLAIN_NAME, Manifest, Sample
from shards.packing.pack import pack
from shards.progress import progress_bar
from shards.safe_io.file_names import is_text
from shards.safe_io.printable import get_logger, printable
from shards.storage.credentials import redact_url
from shards.storage.store import (
    NoManifest,
    Store,
    call_store,
    fetch_new,
    open_store,
    read_manifest,
    split_url,
)
from shards.tools.index_in_place import (
    ScannedTar,
    forms_of,
    index_in_place,
    index_name,
    new_index_folder,
    put_in_place,
    split_of,
)
from shards.tools.scan_tar import read_array, scan_tar, uncompressed

# Members that are not features, as `scan_tar` counts them.
PICTURES = ("*.jpg", ".jpg")
TAR = re.compile(r".+\.(tar|tar\.gz|tgz|tar\.bz2|tar\.xz)")

logger = get_logger(__name__)


@dataclass(frozen=True)
class Indexed:
    """Result of indexing.

    Attributes:
        url: of the dataset, for streaming.
        folder: where indexes and manifest are.
        manifest: of the dataset.
        decoded: why the tars were decoded; None if they are read in place.
        ignored: number of members that were left out, by extension.
        without_arrays: keys of utterances that were left out because they have a label or metadata, but no
            array.
    """

    url: str
    folder: str
    manifest: Manifest
    decoded: str | None
    ignored: dict[str, int]
    without_arrays: list[str]


def index_url(
    url: str,
    *,
    classes: list[str] | None = None,
    label: str = "label",
    label_member: str | None = None,
    dtype: str | None = None,
    out: str | None = None,
    cache_dir: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    progress: bool = True,
) -> Indexed:
    """Make the tars of a folder a dataset that `FeatureStream` reads.

    Args:
        url: any fsspec URL of a folder of tars. Words like "train" or "test" in a tar's name give its split.
        classes: class names; labels that are numbers are positions in it. Default: all labels found, sorted.
        label: JSON field that holds the label. Utterances without it need a `.cls` member.
        label_member: ending of the members whose text is the label instead, such as "txt". Without it, `.txt`
            members count as transcripts and are left out.
        dtype: "float16" or "float32" (or "fp16", "fp32") for decoded shards; default: float16 if all arrays
            are, else float32.
        out: URL of a new folder; the tars are decoded into it even if they could be read in place, for
            example for many nodes to read. Default: decode into the cache of this machine, only if needed.
        cache_dir: for remote tars, decoded shards, and indexes of read-only places.
        storage_options: for the fsspec file system.
        progress: show it on stderr: a bar on a terminal, lines in a log.

    Raises:
        ValueError: there are no tars; a tar is damaged or holds pickles; an utterance has no label or two, no
            time steps, occurs twice, or its features differ in size from others'; names the tar and the
            member or key.
        OSError: the store cannot be reached.
    """
    if classes is not None:
        classes = given_classes(classes)
    if label_member is not None:
        label_member = label_member.removeprefix(".").lower()
    store = open_store(split_url(url)[0], cache_dir, storage_options)
    indexed_before = _indexed_before(store)
    tars = []
    found = _tar_names(store)
    with progress_bar("index", "tar", len(found), show=progress) as bar:
        for name in found:
            path, size, sha256 = fetch_new(store, name)
            at = f"{store.url}/{name}"
            tars.append(ScannedTar(name, at, path, size, sha256, scan_tar(path, at, label, label_member)))
            bar.update()
    _warn_dotted_keys(tars)
    _make_keys_unique(tars)
    labels = _labels(tars, classes)
    _check_utterances(tars)
    names = classes or found_classes(labels.values(), store.url)
    reason = f"to be written to {redact_url(out)}" if out else _decode_reason(tars)
    # The key INDEXED marks a manifest that may be replaced by indexing again; that of a packing may not.
    provenance: dict[str, Any] = {INDEXED: datetime.now(UTC).isoformat(timespec="seconds"), DECODED: reason}
    if label_member is None:
        provenance[LABEL_FIELD] = label
    if reason is None:
        folder, manifest = index_in_place(store, tars, labels, names, provenance)
    else:
        folder = out or str(store.indexed)
        logger.info("%s; decoding all shards into %s", reason, folder)
        # An earlier decoding in the cache stays in use until the new one is complete.
        new = None if out else new_index_folder(store)
        try:
            manifest = pack(
                _decoded(tars, labels, names),
                out or str(new),
                classes=names,
                provenance=provenance,
                dtype=dtype or _dtype(tars),
                storage_options=storage_options if out else None,
                progress=progress,
            )
        except BaseException:
            if new is not None:
                shutil.rmtree(new, ignore_errors=True)
            raise
        if new is not None:
            put_in_place(new, store.indexed)
            if indexed_before:
                # A manifest beside the tars is found before that in the cache.
                manifest_url = f"{store.url}/{MANIFEST}"
                call_store(store, lambda: store.fs.rm_file(f"{store.root}/{MANIFEST}"), manifest_url)
    ignored = sum((tar.scan.ignored for tar in tars), Counter[str]())
    if ignored:
        logger.warning("%s: members left out, by extension: %s", store.url, dict(ignored))
    without = [key for tar in tars for key in tar.scan.without_arrays]
    if without:
        logger.warning(
            "%s: %d utterances have no array; the first is %s", store.url, len(without), without[0]
        )
    return Indexed(out or store.url, folder, manifest, reason, dict(ignored), without)


def _indexed_before(store: Store) -> bool:
    """Whether there is a manifest of an earlier indexing beside the tars.

    Raises:
        ValueError: it is the manifest of a packing.
    """
    try:
        manifest = read_manifest(store)
    except NoManifest:
        return False
    if INDEXED not in manifest.provenance:
        raise ValueError(f"{store.url}: is a packed dataset already; it needs no indexing")
    return True


def _tar_names(store: Store) -> list[str]:
    if TAR.fullmatch(store.root.rpartition("/")[2]) and call_store(
        store, lambda: store.fs.isfile(store.root), store.url
    ):
        raise ValueError(f"{store.url}: is a tar; give the URL of the folder that holds it")
    try:
        found = call_store(store, lambda: store.fs.ls(store.root, detail=False), store.url)
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
        if not PLAIN_NAME.fullmatch(index_name(name)):
            raise ValueError(f"{store.url}/{name}: its index's name would be too long; rename it, shorter")
    return names


def _warn_dotted_keys(tars: list[ScannedTar]) -> None:
    """Warn once if keys hold dots, since webdataset itself would end them at the first dot."""
    for tar in tars:
        for utterance in tar.scan.utterances:
            key = utterance.row.key
            if "." in (base := key.rpartition("/")[2]):
                logger.warning(
                    "%s: keys hold dots, such as %s: webdataset itself ends a key at the first dot, and "
                    "takes all members of %s for one utterance's",
                    tar.url,
                    key,
                    key.removesuffix(base) + base.partition(".")[0],
                )
                return


def _make_keys_unique(tars: list[ScannedTar]) -> None:
    """Prefix every key with the name of its tar, if keys are unique only within tars.

    Raises:
        ValueError: two tars have the same utterance, with the same content, and not only the same key.
    """
    seen: dict[str, tuple[Row, ScannedTar]] = {}
    repeated = False
    for tar in tars:
        for utterance in tar.scan.utterances:
            row = utterance.row
            first, where = seen.setdefault(row.key, (row, tar))
            if first is row:
                continue
            repeated = True
            if row.arrays and _contents(row) == _contents(first):
                raise ValueError(
                    f"{tar.url}: {printable(row.key)}: this utterance is in the dataset twice, also in "
                    f"{where.name}; remove one"
                )
    if not repeated:
        return
    logger.warning("several tars have the same keys: each key gets its tar's name as a prefix, TAR/KEY")
    for tar in tars:
        for utterance in tar.scan.utterances:
            utterance.row.key = f"{tar.name.partition('.tar')[0]}/{utterance.row.key}"


def _contents(row: Row) -> tuple[int, dict[str, int]]:
    return row.json[2], {name: array.crc for name, array in row.arrays.items()}


def _labels(tars: list[ScannedTar], classes: list[str] | None) -> dict[str, str | int]:
    """Label of each utterance by key: a name, or a number if no classes are given.

    Raises:
        ValueError: an utterance has no label, an unknown one or two that differ, or two have the same key.
    """
    labels: dict[str, str | int] = {}
    # A .cls member beside a JSON label may be the number of the class. Then each number must always stand for
    # one label: this maps the content of .cls members to the label beside it, and to where it was found
    # first.
    cls_meaning: dict[str | int, tuple[str | int, str]] = {}
    for tar in tars:
        for utterance in tar.scan.utterances:
            key, value, cls_label = utterance.row.key, utterance.label, utterance.cls_label
            at = f"{tar.url}: {printable(key)}"
            if key in labels:
                raise ValueError(f"{at}: this key is in the dataset twice; rename one")
            try:
                value = value if isinstance(value, int) else label_name(value, classes or ())
            except ValueError:
                value = None
            if isinstance(value, bool) or value is None:
                raise ValueError(
                    f"{at}: no label ({utterance.label!r}); name the JSON field that holds it "
                    "(--label_field), or the members whose text it is (--label_member cls, or txt where "
                    "those are no transcripts), or add .cls members"
                )
            if isinstance(value, str) and not is_text(value):
                raise ValueError(f"{at}: label {value!r} is not in UTF-8; write it again")
            if cls_label is not None:
                other, where = cls_meaning.setdefault(cls_label, (value, at))
                if (type(cls_label) is type(value) and cls_label != value) or other != value:
                    elsewhere = f", and {where} {other!r} beside the same" if other != value else ""
                    raise ValueError(
                        f"{at}: two labels, {value!r} and in its .cls member {cls_label!r}{elsewhere}; "
                        "remove one, or tell which with --label_member cls"
                    )
            if classes is not None and isinstance(value, int):
                if not 0 <= value < len(classes):
                    raise ValueError(f"{at}: label {value} is not a position in the classes {classes}")
                value = classes[value]
            if classes is not None and value not in classes:
                raise ValueError(f"{at}: label {value!r} is unknown; the classes are {classes}")
            labels[key] = value
    return labels


def _check_utterances(tars: list[ScannedTar]) -> None:
    """Refuse a dataset without features, or with a modality that has arrays of different sizes."""
    forms = forms_of(tars)
    if not forms:
        pictures = sum(tar.scan.ignored[ending] for tar in tars for ending in PICTURES)
        recorded = "; pictures are not features: `awtpn extract` makes datasets of recordings"
        raise ValueError(
            f"{tars[0].url}: no arrays; features are members <key>.<modality>.npy, [steps, features per step]"
            f"{recorded if pictures else ''}"
        )
    for name, found in forms.items():
        dims = sorted({dim for dim, _ in found})
        if len(dims) > 1:
            where = {
                dim: tar.url
                for tar in reversed(tars)
                for dim, _ in tar.scan.forms.get(name, ())
                if dim in dims
            }
            raise ValueError(f"{name} has {dims} features per step ({where}); make all with the same encoder")


def _decode_reason(tars: list[ScannedTar]) -> str | None:
    """Why the tars cannot be read in place; None if they can."""
    for tar in tars:
        if tar.scan.decode_reason:
            return tar.scan.decode_reason
    for name, found in forms_of(tars).items():
        if len(found) > 1:
            return f"{name} is of several dtypes: {sorted(dtype for _, dtype in found)}"
    return None


def _dtype(tars: list[ScannedTar]) -> str:
    half = all(np.dtype(dtype).itemsize == 2 for found in forms_of(tars).values() for _, dtype in found)
    return "float16" if half else "float32"


def _decoded(tars: list[ScannedTar], labels: dict[str, str | int], classes: list[str]) -> Iterator[Sample]:
    """The utterances as samples for packing; characters that packing does not allow in keys become "_"."""
    splits = split_of(tars)
    for tar in tars:
        with uncompressed(tar.path) as plain:
            for utterance in tar.scan.utterances:
                key = utterance.row.key
                yield Sample(
                    key=re.sub(r"[\s./\\]+", "_", key),
                    split=splits[tar.name],
                    label=str(labels[key]),
                    features={name: read_array(plain, array) for name, array in utterance.arrays.items()},
                    meta={name: value for name, value in utterance.row.meta.items() if name != "label"},
                    source=tar.url,
                )
