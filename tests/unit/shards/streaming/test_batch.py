"""Packed batches: cutting, moving, fingerprints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from shards_support import corpus, pack, utterances

from shards import FeatureBatch, FeatureStream


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> list[FeatureBatch]:
    """Steps of 12 places: three full, and a last one with four utterances."""
    folder = tmp_path_factory.mktemp("dataset")
    pack(corpus(), folder)
    return list(FeatureStream(str(folder), global_batch_size=12).epoch(0))


def test_lengths(batches: list[FeatureBatch]) -> None:
    for ragged in batches[0].features.values():
        assert len(ragged) == len(ragged.lengths) == 12
        assert int(ragged.lengths.sum()) == len(ragged.values)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 12])
def test_split_preserves_everything(batches: list[FeatureBatch], n: int) -> None:
    for batch in batches:
        parts = batch.split(n)
        assert [part.first_place for part in parts] == [i * 12 // n for i in range(n)]
        assert {part.num_places for part in parts} == {12 // n}
        whole = list(utterances(batch))
        pieces = [u for part in parts for u in utterances(part)]
        assert [u[:3] for u in pieces] == [u[:3] for u in whole]
        for (_, _, _, one), (_, _, _, other) in zip(pieces, whole, strict=True):
            assert all((one[name] == other[name]).all() for name in other)
        assert sum(part.fingerprint() for part in parts) % 2**64 == batch.fingerprint()
        storage = batch.features["audio"].values.untyped_storage().data_ptr()
        assert {part.features["audio"].values.untyped_storage().data_ptr() for part in parts} == {storage}


def test_split_of_a_part_keeps_global_places(batches: list[FeatureBatch]) -> None:
    quarter = batches[0].split(2)[1].split(2)[0]
    assert quarter.place.tolist() == [6, 7, 8]


def test_empty_micro_batches(batches: list[FeatureBatch]) -> None:
    assert len(batches[-1]) == 4
    assert [len(part) for part in batches[-1].split(3)] == [2, 2, 0]


def test_uneven_split_is_refused(batches: list[FeatureBatch]) -> None:
    with pytest.raises(ValueError, match="12 places cannot be cut into 5"):
        batches[0].split(5)


def test_fingerprint_tells_places_and_keys(batches: list[FeatureBatch]) -> None:
    batch = batches[0]
    swapped = replace(batch, key=[batch.key[1], batch.key[0], *batch.key[2:]])
    assert swapped.fingerprint() != batch.fingerprint()
    assert 0 <= batch.fingerprint() < 2**64


def test_to_another_device(batches: list[FeatureBatch]) -> None:
    """The meta device stands for an accelerator: what the host needs stays readable."""
    moved = batches[0].to("meta")
    assert moved.label.device.type == moved.features["audio"].values.device.type == "meta"
    assert moved.features["audio"].lengths.device.type == "meta"
    assert moved.place.device.type == moved.features["audio"].host_offsets.device.type == "cpu"
    assert torch.equal(torch.cat([part.host_label for part in moved.split(3)]), batches[0].label)
    assert [len(part) for part in moved.split(3)] == [4, 4, 4]
    assert moved.fingerprint() == batches[0].fingerprint()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pin(batches: list[FeatureBatch]) -> None:
    pinned = batches[0].pin()
    assert pinned.features["audio"].values.is_pinned()
    assert torch.equal(pinned.to("cuda", non_blocking=True).label.cpu(), batches[0].label)
