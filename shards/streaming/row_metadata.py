"""Metadata of the utterances of an open shard: their JSON members."""

from __future__ import annotations

from typing import Any

import numpy as np

from shards.format.class_checks import WrongManifest, parse_metadata
from shards.format.schema import Manifest
from shards.streaming.scattered_reads import read_into
from shards.streaming.shard_handle import ShardHandle


def read_metadata(handle: ShardHandle, row: int, manifest: Manifest) -> dict[str, Any]:
    """The JSON member of a row, as it is stored.

    Raises:
        ValueError: it is damaged, or has another label than the index (`WrongManifest`).
    """
    index = handle.index
    member = bytearray(int(index.json_size[row]))
    read_into(handle.fd, memoryview(member), int(index.json_offset[row]), handle.path)
    key, label = str(index.key[row]), int(index.label[row])
    return parse_metadata(bytes(member), key, label, manifest, str(handle.path))


def key_and_metadata(handle: ShardHandle, row: int, manifest: Manifest) -> tuple[str, dict[str, Any]]:
    """The key of a row, and its metadata with the label's name; raises as `read_metadata` does."""
    meta = read_metadata(handle, row, manifest)
    # Tars of other programs may have no label there, or in another form.
    label = {"label": manifest.classes[handle.index.label[row]]} if manifest.classes else {}
    return str(handle.index.key[row]), meta | label


def check_labels(handle: ShardHandle, manifest: Manifest) -> None:
    """Compare the metadata of one utterance per class with the index, for an early index without classes.

    Raises:
        WrongManifest: the metadata name another class.
    """
    for row in np.unique(handle.index.label, return_index=True)[1].tolist():
        try:
            read_metadata(handle, row, manifest)
        except WrongManifest:
            raise
        except ValueError:
            # Damaged metadata prove nothing about the classes, and training does not need them.
            continue
