"""Modality dropout: hide modalities of utterances in training, so that the model also serves without them.

An utterance whose modality is hidden is the same as one that lacks it, in every loss term and count. What is
hidden depends on (seed, step, place in the global batch), as negatives do: the same for every layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from awtpn.learning.negatives import Ints, uniform
from awtpn.model.device import to_device_async
from shards import FeatureBatch, Ragged

# Numbers of draws; the negatives have those from 0 on.
FIRST_DRAW = 1 << 20


def drop_modalities(batch: FeatureBatch, odds: Mapping[str, float], seed: int, step: int) -> FeatureBatch:
    """The batch without the modalities that this step hides; each utterance keeps at least one.

    Args:
        batch: of this rank; it does not change.
        odds: the probability to hide it, by modality of the model, in its order.
        seed, step: of the draw.
    """
    if not any(odds.values()):
        return batch
    lengths = {m: batch.features[m].host_offsets.diff().numpy() for m in odds}
    present = np.stack([n > 0 for n in lengths.values()])
    hidden = draw_hidden(batch.place.numpy(), present, list(odds.values()), seed, step)
    features = dict(batch.features)
    for modality, of_modality in zip(odds, hidden, strict=True):
        if of_modality.any():
            features[modality] = without_rows(features[modality], of_modality)
    return replace(batch, features=features)


def draw_hidden(
    place: Ints, present: NDArray[np.bool_], odds: list[float], seed: int, step: int
) -> NDArray[np.bool_]:
    """[M, B] which modalities of which utterances are hidden.

    If all modalities that an utterance has are drawn, the one with the largest number stays.

    Args:
        place: [B] places in the global batch.
        present: [M, B] whether an utterance has modality m.
        odds: [M] probabilities.
    """
    numbers = np.stack([uniform(seed, step, FIRST_DRAW + m, place) for m in range(len(odds))])
    hidden: NDArray[np.bool_] = present & (numbers < np.array(odds)[:, None])
    largest = np.where(present, numbers, -1.0).argmax(0)
    all_hidden = np.flatnonzero((hidden == present).all(0))
    hidden[largest[all_hidden], all_hidden] = False
    return hidden


def without_rows(ragged: Ragged, hidden: NDArray[np.bool_]) -> Ragged:
    """The sequences, with those empty where `hidden` [B]."""
    lengths = ragged.host_offsets.diff().numpy()
    kept = np.flatnonzero(np.repeat(~hidden, lengths))
    offsets = np.zeros_like(ragged.host_offsets.numpy())
    np.cumsum(np.where(hidden, 0, lengths), out=offsets[1:])
    device = ragged.values.device
    return replace(
        ragged,
        values=ragged.values.index_select(0, to_device_async(kept, device)),
        offsets=to_device_async(offsets, device),
        host_offsets=torch.from_numpy(offsets),
        samples=None if ragged.samples is None else ragged.samples.masked_fill(torch.from_numpy(hidden), 0),
    )
