"""How a dataset takes the place of another one in the same folder, which stays whole until then.

Object stores cannot rename, so the new shards get names of their own: they carry a generation, one higher
than that of the shards there (`train-000000-g1.tar`; a folder's first dataset has plain names). The new
manifest replaces the old one at the end, and only then are the old shards removed. Meanwhile a file,
`.packing-replaces`, says which files are those of the old dataset and which generation is being made: a later
packing tells by it what an interrupted one has left behind.
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

    def has_left(self, name: str) -> bool:
        """Whether a file that no manifest names is here because of this replacement."""
        return name in self.old or generation_of(name) == self.generation


def generation_of(name: str) -> int:
    """The generation in a file's name; 0 for a plain one."""
    found = GENERATION.fullmatch(name)
    return int(found[1]) if found else 0


def newest_generation(names: Iterable[str]) -> int:
    return max(map(generation_of, names), default=0)


def named_files(manifest: Manifest) -> frozenset[str]:
    """Names of the shards and indexes that a manifest names."""
    entries = [entry for split in manifest.splits.values() for entry in split.shards]
    return frozenset(name for entry in entries for name in (entry.name, entry.index))


def begin_replacement(store: Store, manifest: Manifest) -> Replacement:
    """Write down that the dataset of `manifest` is being replaced.

    Raises:
        OSError: the store cannot be reached.
    """
    old = named_files(manifest)
    made = Replacement(newest_generation(old) + 1, old)
    text = json_text({"generation": made.generation, "old": sorted(old)})
    path = f"{store.root}/{REPLACES}"
    call_store(store, lambda: store.fs.pipe_file(path, text.encode()), f"{store.url}/{REPLACES}")
    return made


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
        # They are removed later: a name that leads out of the folder is none that packing wrote.
        if not all(PLAIN_NAME.fullmatch(name) for name in old):
            return None
        made = Replacement(int(record["generation"]), old)
        return made if made.generation > newest_generation(old) >= 0 else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, OverflowError):
        return None  # cut short by a kill, before any new shard was there


def is_unfinished(replacement: Replacement | None, manifest: Manifest) -> bool:
    """Whether the manifest is still the old dataset's."""
    return replacement is not None and newest_generation(named_files(manifest)) < replacement.generation
