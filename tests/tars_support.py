"""Tars that other programs wrote: ten utterances in two tars, and a check of what is read from them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shards import FeatureStream
from shards.tools.index_tars import Indexed, index_url

DIMS = {"audio": 6, "video": 4}
LABELS = ["happy", "calm"]


def arrays(i: int, dtype: str = "<f2") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(i)
    return {name: (rng.integers(-50, 50, (2 + i % 5, dim)) / 4).astype(dtype) for name, dim in DIMS.items()}


def npy(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, **options)
    return buffer.getvalue()


def members_of(i: int, key: str | None = None, dtype: str = "<f2") -> list[tuple[str, bytes]]:
    key = key or f"u{i}"
    record = {"label": LABELS[i % 2], "speaker": f"s{i % 3}"}
    files = [(f"{key}.{name}.npy", npy(values)) for name, values in arrays(i, dtype).items()]
    return [*files, (f"{key}.json", json.dumps(record).encode())]


def write_tar(path: Path, files: list[tuple[str, bytes]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def plain(folder: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]] = list) -> Path:
    """Two tars of five utterances each."""
    for part in range(2):
        files = [file for i in range(part * 5, part * 5 + 5) for file in members_of(i)]
        write_tar(folder / f"part-{part}.tar", change(files))
    return folder


def index(folder: Path | str, cache: Path, **options: Any) -> Indexed:
    return index_url(str(folder), cache_dir=cache, progress=False, **options)


def assert_streams(
    url: Path | str, cache: Path, keys: Callable[[int], str] = lambda i: f"u{i}", n: int = 10
) -> None:
    """Assert that a stream yields all utterances, each with its features and its label's name."""
    stream = FeatureStream(str(url), global_batch_size=2, cache_dir=cache)
    wanted = {keys(i): i for i in range(n)}
    seen = []
    for batch in stream.epoch(0):
        for at, key in enumerate(batch.key):
            seen.append(key)
            assert stream.classes[int(batch.label[at])] == LABELS[wanted[key] % 2]
            for name, values in arrays(wanted[key]).items():
                ragged = batch.features[name]
                got = ragged.values[ragged.offsets[at] : ragged.offsets[at + 1]].numpy()
                np.testing.assert_array_equal(got, values)
    assert sorted(seen) == sorted(wanted)
    assert {meta["label"] for _, meta in stream.metadata()} <= set(LABELS)


def relabelled(
    extension: str, label: Callable[[int], str], files: list[tuple[str, bytes]]
) -> list[tuple[str, bytes]]:
    """Put the label into a text member instead of the JSON."""
    found = []
    for name, content in files:
        key, _, kind = name.partition(".")
        found.append(
            (f"{key}.{extension}", label(int(key[1:])).encode()) if kind == "json" else (name, content)
        )
    return found


def with_member(name: str, content: bytes, files: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [*files, (name, content)]
