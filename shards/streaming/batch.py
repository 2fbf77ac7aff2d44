"""What a rank gets per step: utterances of different lengths, packed without padding.

Example: a global batch of 8, the first of two ranks, so four places. The utterances "a" and "c" have 3 and 2
time steps, the one at place 1 is damaged, and place 3 is empty, as in an epoch's last step:

    features["audio"]  values [5, D], offsets [0, 3, 5]
    key                ["a", "c"]
    place              [0, 2]         first_place 0, num_places 4

`FeatureStream` makes a `FeatureBatch` per step; the trainer cuts it into micro-batches and moves it to a
device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True)
class Ragged:
    """B sequences of different lengths, one after the other.

    Attributes:
        values: [sum T, D], in the stored dtype; of pictures uint8 [sum T, height, width, 3]. What int8
            features stand for, `dequantized` gives.
        offsets: [B + 1] int32; sequence i is `values[offsets[i]:offsets[i + 1]]`, and may be empty.
        host_offsets: `offsets` on the host, so that lengths are known there without waiting for a device.
        samples: of recorded sound, int16 [sum T, samples]: the true number of samples of each sequence, [B]
            int64 on the host; the rest of its last time step is zeros. None of all else.
        quantization: of int8 features, [2, D] float32: scale and offset, by which a value is
            `q * scale + offset`; where `values` are. None of all else.
    """

    values: torch.Tensor
    offsets: torch.Tensor
    host_offsets: torch.Tensor
    samples: torch.Tensor | None = None
    quantization: torch.Tensor | None = None

    @property
    def lengths(self) -> torch.Tensor:
        """Time steps per sequence, [B] int32, on the device of `offsets`."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def host_lengths(self) -> list[int]:
        """Time steps per sequence, known without waiting for a device."""
        lengths: list[int] = self.host_offsets.diff().tolist()
        return lengths

    def __len__(self) -> int:
        return len(self.host_offsets) - 1

    def dequantized(self) -> torch.Tensor:
        """The values that int8 features stand for, [sum T, D] float32; all others as they are."""
        if self.quantization is None:
            return self.values
        scale, offset = self.quantization
        return self.values.to(scale.dtype).mul_(scale).add_(offset)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        """With values and offsets on `device`; attributes for the host stay there."""
        move: dict[str, Any] = {"device": device, "non_blocking": non_blocking}
        quantization = None if self.quantization is None else self.quantization.to(**move)
        return replace(
            self, values=self.values.to(**move), offsets=self.offsets.to(**move), quantization=quantization
        )

    def take(self, rows: Sequence[int]) -> Ragged:
        """Some of the sequences, in the order of `rows`."""
        return _take(self, torch.tensor(rows, dtype=torch.int64))


@dataclass(frozen=True)
class FeatureBatch:
    """A rank's share of a step, or a micro-batch of it.

    Attributes:
        features: per modality the features of all B utterances; a missing modality is an empty sequence.
        label: [B] int64, positions in the stream's classes; 0 where the target is not one class.
        host_label: `label` on the host, so that it is known there without waiting for a device.
        target: [B, K] float64, values of the target's columns, NaN where one is missing; [B, 0] where the
            target is one class.
        host_target: `target` on the host.
        key: [B] names of the utterances.
        place: [B] int64, ascending: each utterance's place in the global batch. Stays on the host.
        first_place, num_places: the range of places of this batch; in an epoch's last step some are empty.
        epoch, step: 0-based.
        damaged: cause by name of each utterance that was skipped because it is damaged (its place is empty);
            see `FeatureStream`. Each micro-batch has those of the complete batch.
    """

    features: dict[str, Ragged]
    label: torch.Tensor
    host_label: torch.Tensor
    target: torch.Tensor
    host_target: torch.Tensor
    key: list[str]
    place: torch.Tensor
    first_place: int
    num_places: int
    epoch: int
    step: int
    damaged: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of utterances B; 0 if all places are empty."""
        return len(self.key)

    @property
    def samples(self) -> dict[str, torch.Tensor]:
        """By modality of recorded sound the true number of samples [B] int64; 0 where it is missing."""
        return {name: of.samples for name, of in self.features.items() if of.samples is not None}

    @property
    def num_bytes(self) -> int:
        """Bytes of the features."""
        return sum(ragged.values.nbytes for ragged in self.features.values())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FeatureBatch:
        """The batch with features, label and target on `device`; attributes for the host stay there."""
        move: dict[str, Any] = {"device": device, "non_blocking": non_blocking}
        features = {name: ragged.to(**move) for name, ragged in self.features.items()}
        return replace(self, features=features, label=self.label.to(**move), target=self.target.to(**move))

    def pin(self) -> FeatureBatch:
        """The batch in page-locked memory, from which copies to a GPU are asynchronous."""
        features = {
            name: replace(ragged, values=ragged.values.pin_memory(), offsets=ragged.offsets.pin_memory())
            for name, ragged in self.features.items()
        }
        label = self.label.pin_memory()
        target = self.target.pin_memory() if self.target.numel() else self.target
        return replace(self, features=features, label=label, target=target)

    def split(self, n: int) -> list[FeatureBatch]:
        """Cut into n micro-batches of equally many places; see `cut`.

        Raises:
            ValueError: n does not divide the places.
        """
        if n < 1 or self.num_places % n:
            raise ValueError(f"{self.num_places} places cannot be cut into {n} equal micro-batches")
        share = self.num_places // n
        return self.cut([self.first_place + i * share for i in range(n + 1)])

    def cut(self, edges: Sequence[int]) -> list[FeatureBatch]:
        """Cut at places: part i holds the places from `edges[i]` to `edges[i + 1] - 1`.

        The features are views. Places stay those of the global batch. A part whose places are all empty has
        no utterances.

        Args:
            edges: ascending, from `first_place` to `first_place + num_places`.
        """
        rows = torch.searchsorted(self.place, torch.tensor(edges)).tolist()
        return [
            replace(
                self,
                features={name: _cut(ragged, low, high) for name, ragged in self.features.items()},
                label=self.label[low:high],
                host_label=self.host_label[low:high],
                target=self.target[low:high],
                host_target=self.host_target[low:high],
                key=self.key[low:high],
                place=self.place[low:high],
                first_place=first,
                num_places=last - first,
            )
            for (low, high), (first, last) in zip(pairwise(rows), pairwise(edges), strict=True)
        ]

    def take(self, rows: Sequence[int]) -> FeatureBatch:
        """Some of the utterances, in the order of `rows`; the places, then, need not ascend.

        Args:
            rows: positions in this batch.
        """
        chosen = torch.tensor(rows, dtype=torch.int64)
        on_device = chosen.to(self.label.device)
        return replace(
            self,
            features={name: _take(ragged, chosen) for name, ragged in self.features.items()},
            label=self.label[on_device],
            host_label=self.host_label[chosen],
            target=self.target[on_device],
            host_target=self.host_target[chosen],
            key=[self.key[row] for row in rows],
            place=self.place[chosen],
        )

    def fingerprint(self) -> int:
        """Sum modulo 2^64 of a 64-bit hash of every (place, key).

        Summed modulo 2^64 over ranks and micro-batches, it is the same for every layout.
        """
        total = 0
        for place, key in zip(self.place.tolist(), self.key, strict=True):
            digest = hashlib.blake2b(f"{place}:{key}".encode(), digest_size=8).digest()
            total += int.from_bytes(digest, "little")
        return total % 2**64


def _cut(ragged: Ragged, low: int, high: int) -> Ragged:
    first, last = ragged.host_offsets[low].item(), ragged.host_offsets[high].item()
    return replace(
        ragged,
        values=ragged.values[first:last],
        offsets=ragged.offsets[low : high + 1] - first,
        host_offsets=ragged.host_offsets[low : high + 1] - first,
        samples=None if ragged.samples is None else ragged.samples[low:high],
    )


def _take(ragged: Ragged, rows: torch.Tensor) -> Ragged:
    parts = ragged.values.split(ragged.host_lengths)
    lengths = ragged.host_offsets.diff()[rows]
    host_offsets = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return replace(
        ragged,
        values=torch.cat([parts[row] for row in rows.tolist()] or [ragged.values[:0]]),
        offsets=host_offsets.to(ragged.offsets.device),
        host_offsets=host_offsets,
        samples=None if ragged.samples is None else ragged.samples[rows],
    )
