"""A row of a dataset of recordings, from which its sound, its pictures and its metadata are read.

Of a remote dataset, the shard is downloaded when its first row is read. So a rank downloads only the shards
of the clips that it decodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.format.class_checks import WrongManifest
from shards.format.recording import NUM_SAMPLES

if TYPE_CHECKING:
    from shards.streaming.reader import ShardReader


@dataclass(frozen=True, eq=False)
class PackedSplit:
    """A split of a dataset of recordings.

    Attributes:
        readers: by modality; each reads its modality alone, so that damaged pictures do not cost the sound.
        keeps_constant: streams that never change are stored, too.
        of_dataset: the readers of all of its splits.
        unusable: by shard why none of its rows can be read. A shard that is damaged in the store is not
            downloaded again for each row.
    """

    readers: Mapping[str, ShardReader]
    keeps_constant: bool
    of_dataset: list[ShardReader]
    unusable: dict[int, str] = field(default_factory=dict)

    @property
    def reader(self) -> ShardReader:
        """One of the readers: all read the same shards."""
        return next(iter(self.readers.values()))

    def make_room(self, shard: int) -> None:
        """Close the shards that are far from this one, so that a cache with a limit can remove their files.

        Clips are decoded in order, by a few threads, so the shards beside it may be in use.
        """
        own = list(self.readers.values())
        for reader in self.of_dataset:
            reader.close_all_but(range(shard - 1, shard + 2) if reader in own else ())


@dataclass(frozen=True, eq=False)
class PackedRow:
    """An utterance in a shard of recordings. Safe to use from several threads.

    Attributes:
        split: that it belongs to.
        shard: position of its shard in the split.
        row: in the shard.
        key: of the utterance.
        has: its modalities.
        constant: its modalities that are not stored, because they never change; known when its metadata are.
    """

    split: PackedSplit
    shard: int
    row: int
    key: str
    has: frozenset[str]
    constant: frozenset[str] = frozenset()

    @property
    def at(self) -> str:
        """Where it is, for error messages."""
        reader = self.split.reader
        return f"{reader.store.url}/{reader.shards[self.shard].name}: {self.key!r}"

    @property
    def place(self) -> tuple[str, int]:
        """The SHA-256 of its shard, and its row: what it is, wherever the dataset lies."""
        return self.split.reader.shards[self.shard].sha256, self.row

    def metadata(self) -> dict[str, Any]:
        """Its metadata as they were given: without label, and without the number of samples.

        Raises:
            ValueError: its shard or its metadata are damaged or missing.
            WrongManifest: the manifest contradicts its files.
            OSError: the store cannot be reached.
        """
        if cause := self.split.unusable.get(self.shard):
            raise ValueError(cause)
        self.split.make_room(self.shard)
        try:
            self.split.reader.open(self.shard)
        except WrongManifest:
            raise
        except (ValueError, FileNotFoundError) as error:
            self.split.unusable[self.shard] = str(error)
            raise ValueError(str(error)) from None
        [(_, meta)] = self.split.reader.metadata(self.shard, [self.row])
        manifest = self.split.reader.manifest
        has_sound = any(modality.is_sound for modality in manifest.modalities.values())
        left_out = {"label", NUM_SAMPLES} if has_sound else {"label"}
        return {name: value for name, value in meta.items() if name not in left_out}

    def read(self, modality: str) -> np.ndarray:
        """Sound int16 [samples], or pictures uint8 [N, height, width, 3].

        Raises:
            ValueError: it is damaged or missing.
            WrongManifest: the manifest contradicts its files.
            OSError: the store cannot be reached.
        """
        reader = self.split.readers[modality]
        try:
            found = reader.features(np.array([self.shard]), np.array([self.row]))
        except FileNotFoundError as error:
            raise ValueError(str(error)) from None
        read = found.features[modality]
        values = read.values.numpy()
        if read.samples is None:
            return values
        return values.reshape(-1)[: int(read.samples[0])]  # the last step is filled up
