"""Small files in a cache, with a record of which are fetched; also for processes that tests start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

from shards.storage.cache import Cache, open_cached


def name(i: int) -> str:
    return f"{i:016x}-shard-{i}.tar"


def content(i: int, size: int) -> bytes:
    return bytes([i % 256]) * size


class Fetches:
    """Opens files through a cache; records which of them were fetched."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.asked: list[int] = []
        self.pause_s = pause_s

    def open(self, cache: Cache, i: int, size: int = 100, wait_s: float = 0.0) -> BinaryIO:
        def fetch(path: Path) -> None:
            self.asked.append(i)
            time.sleep(self.pause_s)
            path.write_bytes(content(i, size))

        return open_cached(cache, name(i), size, fetch, wait_s)


def cache_of(tmp_path: Path, limit: int | None = None, dataset: str = "d") -> Cache:
    return Cache(tmp_path, tmp_path / dataset, limit)
