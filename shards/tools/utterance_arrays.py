"""Read the arrays of one utterance by its index, and say in a line what they are.

`awtpn shards preview` uses it. It reads the bytes of the utterance alone, not whole shards.
"""

from __future__ import annotations

import numpy as np

from shards.format.index import ShardIndex, first_pictures
from shards.format.jpeg import decode_jpeg_into
from shards.format.recording import FULL_SCALE, Recording
from shards.format.schema import Modality, ShardEntry
from shards.format.tar_members import BLOCK
from shards.safe_io.printable import plural
from shards.storage.store import Store, read_range

FIRST_VALUES = 4  # shown of a first step
# In a tar, the bytes between a picture and the next one: the end of its block and a header; twice as much if
# its name is long.
MOST_BETWEEN = 4 * BLOCK


def read_array(
    store: Store, entry: ShardEntry, index: ShardIndex, row: int, name: str, modality: Modality
) -> np.ndarray:
    """An utterance's array of a modality as it is stored; without steps if it is missing.

    Returns:
        [T, D] of features; of recordings int16 [samples], without the zeros of the last step, or uint8 RGB
        [N, H, W, 3].

    Raises:
        ValueError: the shard ends before the array does, or a picture is damaged; names the shard and the
            key.
        OSError: the store cannot be reached.
    """
    at = f"{store.url}/{entry.name}: {str(index.key[row])!r:.80}: {name}"
    steps = int(index.steps[name][row])
    if modality.is_jpeg:
        return _read_pictures(store, entry, index, row, name, modality, at)
    data = (
        _read(store, entry, int(index.offset[name][row]), steps * modality.step_bytes, at) if steps else b""
    )
    values = np.frombuffer(data, modality.dtype).reshape(-1, *modality.shape)
    return values.reshape(-1)[: int(index.samples[name][row])] if modality.is_sound else values


def _read_pictures(
    store: Store, entry: ShardEntry, index: ShardIndex, row: int, name: str, modality: Modality, at: str
) -> np.ndarray:
    begin = int(first_pictures(index, name)[row])
    of_row = slice(begin, begin + int(index.steps[name][row]))
    offset, size = index.picture_offset[name][of_row].tolist(), index.picture_size[name][of_row].tolist()
    if not offset:
        return np.zeros((0, *modality.shape), np.uint8)
    start, total = offset[0], offset[-1] + size[-1] - offset[0]
    if offset == sorted(offset) and total <= sum(size) + len(size) * MOST_BETWEEN:
        # One request to a remote store, where each takes a while.
        data = _read(store, entry, start, total, at)
        files = [data[o - start : o - start + s] for o, s in zip(offset, size, strict=True)]
    else:
        files = [_read(store, entry, o, s, at) for o, s in zip(offset, size, strict=True)]
    pictures = []
    for number, content in enumerate(files):
        picture = np.empty(modality.shape, np.uint8)
        try:
            decode_jpeg_into(content, picture)
        except ValueError as error:
            raise ValueError(f"{at}: picture {number} {error}: damaged; extract it again") from None
        pictures.append(picture)
    return np.stack(pictures)


def _read(store: Store, entry: ShardEntry, start: int, size: int, at: str) -> bytes:
    data = read_range(store, entry.name, start, start + size)
    if len(data) != size:
        raise ValueError(f"{at}: its shard is cut short; fetch or write it again")
    return data


def array_line(name: str, values: np.ndarray, recording: Recording | None) -> str:
    """What an array of `read_array` is, in a line."""
    if not len(values):
        return f"{name}: missing"
    if recording is None:
        wide = values.astype(np.float32)
        first = ", ".join(f"{value:.4g}" for value in wide[0, :FIRST_VALUES])
        return (
            f"{name}: {values.dtype} [{len(values)}, {values.shape[1]}], "
            f"{wide.min():.4g} to {wide.max():.4g}, mean {wide.mean():.4g}; first step {first}, ..."
        )
    if recording.is_sound:
        # As Python's numbers: -32768 has no absolute value in int16.
        peak = max(-int(values.min()), int(values.max())) / FULL_SCALE
        return (
            f"{name}: {values.dtype} [{len(values)}], {len(values) / recording.rate:.4g} s of sound at "
            f"{recording.rate:g} Hz, peak {peak:.3g} of full scale"
        )
    count, height, width, _ = values.shape
    return (
        f"{name}: {values.dtype} {list(values.shape)}, {plural(count, 'picture')} of {width} x {height} at "
        f"{recording.rate:g} per second, {values.min()} to {values.max()}, mean {values.mean():.4g}"
    )
