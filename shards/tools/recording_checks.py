"""Compare recordings with their index, and decode every picture that is stored as JPEG.

`verify` calls this. A hash proves that a shard is the one that the manifest names. It does not prove that a
picture in it can be decoded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.format.index import ShardIndex, first_pictures
from shards.format.jpeg import decode_jpeg_into
from shards.format.schema import Modality


def parts_of(
    index: ShardIndex, modalities: Mapping[str, Modality]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Where the bytes of each part of utterances are: of the JSON member, and of each modality.

    Returns:
        By part, for each utterance the offsets and sizes of the pieces that its CRC-32 is over, [N] each.
        Pictures as JPEG are a piece each; others have one. A part that an utterance lacks has none.
    """
    parts = {"json": _one_piece(index.json_offset, index.json_size)}
    for name, modality in modalities.items():
        if modality.is_jpeg:
            first = first_pictures(index, name)
            of_rows = [slice(a, b) for a, b in zip(first, first + index.steps[name], strict=True)]
            offset, size = index.picture_offset[name], index.picture_size[name]
            parts[name] = [(offset[row], size[row]) for row in of_rows]
        else:
            sizes = index.steps[name].astype(np.int64) * modality.step_bytes
            parts[name] = _one_piece(index.offset[name], sizes)
    return parts


def _one_piece(offset: np.ndarray, size: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    pieces = size > 0
    return [
        (o[there], s[there])
        for o, s, there in zip(offset[:, None], size[:, None], pieces[:, None], strict=True)
    ]


def part_fault(file: BinaryIO, offset: np.ndarray, size: np.ndarray, crc: int) -> str | None:
    """Whether a part of an utterance "is cut short" or "is damaged"; None if its CRC-32 is right."""
    found = 0
    for start, wanted in zip(offset.tolist(), size.tolist(), strict=True):
        file.seek(start)
        data = file.read(wanted)
        if len(data) < wanted:
            return "is cut short"
        found = zlib.crc32(data, found)
    return None if found == crc else "is damaged"


def recording_differences(
    index: ShardIndex, now: ShardIndex, modalities: Mapping[str, Modality]
) -> Iterator[tuple[str, np.ndarray]]:
    """What an index says of recordings, compared with the shard's own.

    Args:
        index: the one to check.
        now: made of the shard just now; with the same utterances.
        modalities: of the dataset.

    Returns:
        Names of what was compared, and for each utterance whether it differs, [U] bool. Places of pictures
        are compared only where both have the same numbers of pictures.
    """
    for name, modality in modalities.items():
        if modality.is_sound:
            yield f"samples of {name}", index.samples[name] != now.samples[name]
        if modality.is_jpeg and np.array_equal(index.steps[name], now.steps[name]):
            row = np.repeat(np.arange(len(index.key)), index.steps[name])
            for what, ours, found in (
                ("places", index.picture_offset[name], now.picture_offset[name]),
                ("sizes", index.picture_size[name], now.picture_size[name]),
            ):
                yield (
                    f"{what} of pictures of {name}",
                    np.bincount(row[ours != found], minlength=len(index.key)) > 0,
                )


def undecodable(
    path: Path, index: ShardIndex, modalities: Mapping[str, Modality]
) -> Iterator[tuple[str, str]]:
    """Decode all pictures of a shard that are stored as JPEG.

    Returns:
        The key of each utterance with a picture that cannot be decoded or has another size, and the first
        cause.
    """
    jpeg = {name: modality for name, modality in modalities.items() if modality.is_jpeg}
    parts = parts_of(index, jpeg)
    with open(path, "rb") as file:
        for name, modality in jpeg.items():
            picture = np.empty(modality.shape, np.uint8)
            for key, (offset, size) in zip(index.key.tolist(), parts[name], strict=True):
                for number, (start, count) in enumerate(zip(offset.tolist(), size.tolist(), strict=True)):
                    file.seek(start)
                    try:
                        decode_jpeg_into(file.read(count), picture)
                    except ValueError as error:
                        yield key, f"{name}: picture {number} {error}; extract it again"
                        break
