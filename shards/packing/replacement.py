"""How a dataset replaces another one in the same folder. The old dataset stays complete until the new one is.

Object stores cannot rename, so the names of the new shards carry a generation, one higher than that of the
shards there (`train-000000-g1.tar`; the first dataset of a folder has plain names). The new manifest replaces
the old one at the end, and only then are the old shards removed. Meanwhile the file `.packing-replaces` lists
the files of the old dataset and the new generation. From it a later packing knows which files an interrupted
one left behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from shards.format.schema import PLAIN_NAME, Manifest
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import json_text
from shards.storage.store import Store, call_store

REPLACES = ".packing-replaces"
GENERATION = re.compile(r".+-\d{6,}-g(\d+)\.(?:tar|index\.npz|part\.json)")


@dataclass(frozen=True)
class Replacement:
    """A replacement under way.

    Attributes:
        generation: of the new shards.
        old: names of the old dataset's shards and indexes.
    """

    generation: int
    old: frozenset[str]

    def accounts_for(self, name: str) -> bool:
        """Whether a file that no manifest names is here because of this replacement."""
        return name in self.old or generation_of(name) == self.generation


def generation_of(name: str) -> int:
    """The generation in a file's name; 0 for a plain name."""
    found = GENERATION.fullmatch(name)
    return int(found[1]) if found else 0


def newest_generation(names: Iterable[str]) -> int:
    return max(map(generation_of, names), default=0)


def named_files(manifest: Manifest) -> frozenset[str]:
    """Names of the shards and indexes that a manifest names."""
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    return frozenset(name for entry in entries for name in (entry.name, entry.index))


def begin_replacement(store: Store, manifest: Manifest) -> Replacement:
    """Record that the dataset of `manifest` is being replaced.

    Raises:
        OSError: the store cannot be reached.
    """
    old = named_files(manifest)
    replacement = Replacement(newest_generation(old) + 1, old)
    text = json_text({"generation": replacement.generation, "old": sorted(old)})
    path = f"{store.root}/{REPLACES}"
    call_store(store, lambda: store.fs.pipe_file(path, text.encode()), f"{store.url}/{REPLACES}")
    return replacement


def read_replacement(store: Store) -> Replacement | None:
    """The replacement that began in this folder; None where there is none.

    Raises:
        OSError: the store cannot be reached.
    """
    path = f"{store.root}/{REPLACES}"
    try:
        text = call_store(store, lambda: store.fs.cat_file(path), f"{store.url}/{REPLACES}")
        record = parse_json(text, REPLACES)
        old = frozenset(map(str, record["old"]))
        # These files are removed later. Packing wrote no name that leads out of the folder.
        if not all(PLAIN_NAME.fullmatch(name) for name in old):
            return None
        replacement = Replacement(int(record["generation"]), old)
        return replacement if replacement.generation > newest_generation(old) >= 0 else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, OverflowError):
        return None  # a kill cut it short, before any new shard was there


def is_unfinished(replacement: Replacement | None, manifest: Manifest) -> bool:
    """Whether the manifest is still the old dataset's."""
    return replacement is not None and newest_generation(named_files(manifest)) < replacement.generation
