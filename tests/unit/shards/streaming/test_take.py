"""`FeatureBatch.take`: some utterances in any order, with all that belongs to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recordings_support import rows_of

from shards import FeatureBatch, Ragged

PER_STEP = 4


def recordings(samples: list[int], pictures: list[int]) -> FeatureBatch:
    """A batch of 2 places more than utterances, the first of which are empty."""
    count, draws = len(samples), np.random.default_rng(0)
    steps = [-(-n // PER_STEP) for n in samples]
    sound = torch.from_numpy(draws.integers(-9, 9, (sum(steps), PER_STEP)).astype(np.int16))
    shown = torch.from_numpy(draws.integers(0, 256, (sum(pictures), 2, 2, 3), np.uint8))
    label = torch.arange(count) % 3
    target = torch.from_numpy(draws.normal(size=(count, 2)))
    return FeatureBatch(
        features={
            "audio": Ragged(sound, *[offsets(steps)] * 2, torch.tensor(samples)),
            "video": Ragged(shown, *[offsets(pictures)] * 2),
        },
        label=label,
        host_label=label,
        target=target,
        host_target=target,
        key=[f"u{i}" for i in range(count)],
        place=torch.arange(count) + 8 + 2,
        first_place=8,
        num_places=count + 2,
        epoch=1,
        step=2,
        damaged={"x": "cut short"},
    )


def offsets(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)


BATCH = recordings([5, 0, 8, 1, 12], [2, 3, 0, 1, 4])


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [4, 0, 2], [3], [1], [2, 1]], ids=str)
def test_each_utterance_is_as_it_was(rows: list[int]) -> None:
    taken, all_rows = BATCH.take(rows), rows_of(BATCH)
    assert rows_of(taken) == [all_rows[row] for row in rows]
    assert taken.target.tolist() == taken.host_target.tolist() == [BATCH.target[row].tolist() for row in rows]
    assert taken.host_label.tolist() == taken.label.tolist()
    for name, ragged in taken.features.items():
        assert torch.equal(ragged.offsets, ragged.host_offsets)
        assert ragged.offsets.dtype == ragged.host_offsets.dtype == torch.int32
        assert ragged.values.dtype == BATCH.features[name].values.dtype
        assert sum(ragged.host_lengths) == len(ragged.values)
    assert taken.features["video"].samples is None


def test_none_at_all_keeps_shapes_and_types() -> None:
    taken = BATCH.take([])
    assert len(taken) == 0
    assert taken.place.dtype == torch.int64
    for name, ragged in taken.features.items():
        assert ragged.values.shape == (0, *BATCH.features[name].values.shape[1:])
        assert ragged.host_lengths == []
    assert taken.samples["audio"].tolist() == []


def test_parts_make_the_whole() -> None:
    parts = [BATCH.take(rows) for rows in ([4, 1], [0], [], [2, 3])]
    assert sum(part.fingerprint() for part in parts) % 2**64 == BATCH.fingerprint()
    for part in parts:
        assert (part.epoch, part.step, part.damaged) == (1, 2, {"x": "cut short"})
        assert (part.first_place, part.num_places) == (8, 7), "places stay those of the global batch"
    again = BATCH.take([4, 1, 0, 2, 3]).take([2, 1, 3, 4, 0])
    assert rows_of(again) == rows_of(BATCH)


def test_cut_keeps_the_samples() -> None:
    low, high = BATCH.cut([8, 12, 15])
    assert low.samples["audio"].tolist() == [5, 0]
    assert high.samples["audio"].tolist() == [8, 1, 12]
    assert high.take([2, 0]).samples["audio"].tolist() == [12, 8]


def test_a_taken_batch_moves_to_a_device_with_its_samples() -> None:
    moved = BATCH.take([4, 0]).to("meta")
    assert moved.features["audio"].values.device.type == "meta"
    assert moved.samples["audio"].tolist() == [12, 5], "on the host"
