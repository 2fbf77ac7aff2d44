"""Modality dropout hides what it says, never the last modality, and the same for every layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import THREE_DIMS, batch, utterances
from training_encoders_support import batch_of_recordings

from awtpn.learning.modality_dropout import draw_hidden, drop_modalities
from shards import FeatureBatch

LENGTHS = st.lists(st.tuples(*[st.integers(0, 3)] * 3).filter(any), min_size=1, max_size=12)
ODDS = st.lists(st.sampled_from([0.0, 0.3, 0.9]), min_size=3, max_size=3)


def whole_batch(lengths: list[tuple[int, ...]]) -> FeatureBatch:
    return batch(utterances(lengths, dims=THREE_DIMS), [0] * len(lengths), 12, THREE_DIMS)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, odds=ODDS, seed=st.integers(0, 9), step=st.integers(0, 99))
def test_what_stays_is_unchanged_and_never_nothing(
    lengths: list[tuple[int, ...]], odds: list[float], seed: int, step: int
) -> None:
    before = whole_batch(lengths)
    after = drop_modalities(before, dict(zip(THREE_DIMS, odds, strict=True)), seed, step)
    left = np.zeros(len(lengths), int)
    for m, (name, ragged) in enumerate(after.features.items()):
        assert torch.equal(ragged.offsets, ragged.host_offsets)
        assert ragged.offsets.dtype == before.features[name].offsets.dtype
        for i, of_utterance in enumerate(lengths):
            low, high = ragged.host_offsets[i : i + 2].tolist()
            first, last = before.features[name].host_offsets[i : i + 2].tolist()
            assert high - low in (0, of_utterance[m])
            if high > low:
                assert torch.equal(ragged.values[low:high], before.features[name].values[first:last])
                left[i] += 1
            elif of_utterance[m]:
                assert odds[m] > 0
    assert (left > 0).all()
    assert after.key == before.key


@pytest.mark.parametrize("ranks", [2, 3])
def test_no_layout_changes_what_is_hidden(ranks: int) -> None:
    odds = {"audio": 0.4, "video": 0.4, "text": 0.4}
    before = whole_batch([(1, 1, 1)] * 12)
    whole = drop_modalities(before, odds, 1, 5)
    for part, of_rank in zip(whole.split(ranks), before.split(ranks), strict=True):
        own = drop_modalities(of_rank, odds, 1, 5)
        for name in odds:
            assert torch.equal(own.features[name].host_offsets, part.features[name].host_offsets)


def test_the_probabilities_are_those_asked_for() -> None:
    place, present = np.arange(20_000), np.ones((3, 20_000), bool)
    hidden = draw_hidden(place, present, [0.0, 0.2, 0.5], 3, 4)
    # Four standard deviations; with a modality that is never hidden, no draw is taken back.
    for share, odds in zip(hidden.mean(1), (0.0, 0.2, 0.5), strict=True):
        assert abs(share - odds) <= 4 * np.sqrt(odds * (1 - odds) / 20_000)
    assert not np.array_equal(hidden, draw_hidden(place, present, [0.0, 0.2, 0.5], 3, 5))
    alone = draw_hidden(place, np.array([[True], [False], [False]]) & present, [0.9, 0.9, 0.9], 3, 4)
    assert not alone.any(), "the only modality stays"


def test_what_is_hidden_of_a_recording_has_no_samples() -> None:
    seconds = [(0.5, 0.6), (1.23, 0.4), (0.31, 1.0), (0.77, 0.2)] * 3
    before = batch_of_recordings(seconds)
    after = drop_modalities(before, {"audio": 0.5, "video": 0.4}, 0, 1)
    audio, samples = after.features["audio"], before.features["audio"].samples
    assert audio.samples is not None
    assert samples is not None
    there = audio.host_offsets.diff() > 0
    assert 0 < there.sum() < len(seconds)
    assert audio.samples.tolist() == torch.where(there, samples, 0).tolist()
    assert audio.host_lengths == [-(-n // audio.values.shape[1]) for n in audio.samples.tolist()]
    assert after.features["video"].samples is None


def test_without_it_the_batch_is_the_same_object() -> None:
    before = whole_batch([(1, 2, 1)])
    assert drop_modalities(before, dict.fromkeys(THREE_DIMS, 0.0), 0, 0) is before
