"""What a model with encoders takes from its data at the start: the same for any ranks and any passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import ALONE
from training_encoders_support import batch_of_recordings, model_of_recordings, small_encoders

from awtpn.config.schema import Config
from awtpn.learning.data_scales import encode_batches, set_scales_from_data, set_statistics_of_encoders
from awtpn.model.base import EmotionModel
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.network import AWTPN
from awtpn.training.setup import initialize
from shards import FeatureBatch

AUDIO = (0.4, 1.2, 0, 0.3, 0.7, 0.2, 2.1, 0.6)
VIDEO = (0.6, 1.2, 0.4, 0, 0.4, 1.6, 0.2, 1.0)
BATCH = batch_of_recordings(list(zip(AUDIO, VIDEO, strict=True)), num_places=12)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return small_encoders(tmp_path_factory.mktemp("encoders"))


def encoded(
    folders: dict[str, str], parts: list[FeatureBatch], **passes: Any
) -> tuple[AWTPN, list[FeatureBatch]]:
    """A model, and `parts` with the features that its encoders make."""
    settings = {"tune": "full", "dropout": 0.5} | passes
    model = model_of_recordings(folders, settings, statistics=True, distances="relative").eval()
    assert isinstance(model, AWTPN)
    return model, list(encode_batches(model, parts, CPU))


def features(parts: list[FeatureBatch], modality: str) -> dict[str, torch.Tensor]:
    """The features of each utterance, by its key."""
    found = {}
    for part in parts:
        ragged = part.features[modality]
        found |= dict(zip(part.key, ragged.values.split(ragged.host_lengths), strict=True))
    return found


def scales(model: EmotionModel) -> dict[str, torch.Tensor]:
    return {name: b for name, b in model.named_buffers() if name.endswith((".mean", ".std", ".spread"))}


@pytest.mark.parametrize("ranks", [1, 3, 12])
@pytest.mark.parametrize("passes", [{}, {"pass_seconds": 1.0, "pass_pictures": 4}], ids=["long", "short"])
def test_no_layout_changes_them(folders: dict[str, str], ranks: int, passes: dict[str, Any]) -> None:
    whole, expected = encoded(folders, [BATCH], pass_seconds=1e4, max_padding=1.0)
    model, parts = encoded(folders, BATCH.split(ranks), **passes)
    assert len(expected) == 1
    assert len(parts) >= min(ranks, 8)
    assert sorted(key for part in parts for key in part.key) == sorted(BATCH.key)
    for of, data in ((whole, expected), (model, parts)):
        set_statistics_of_encoders(of, list(folders), data)
        set_scales_from_data(of, data, CPU)
    for modality in folders:
        ours, theirs = features(parts, modality), features(expected, modality)
        for key in BATCH.key:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-8, atol=1e-10, msg=key)
    ours, theirs = scales(model), scales(whole)
    assert len(ours) == 2 * 5
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_features_come_out_with_mean_0_and_deviation_1(folders: dict[str, str]) -> None:
    model, parts = encoded(folders, [BATCH])
    set_statistics_of_encoders(model, ["audio"], parts)
    for modality in folders:
        rows = torch.cat(list(features(parts, modality).values()))
        made = model.standardise[modality](rows).double()
        if modality == "audio":
            torch.testing.assert_close(made.mean(0), torch.zeros(16, dtype=made.dtype), atol=1e-5, rtol=0)
            torch.testing.assert_close(made.std(0, correction=0), torch.ones(16, dtype=made.dtype))
        else:
            torch.testing.assert_close(made, rows.double())  # not named, so it stays as it is


def test_a_rank_without_utterances_starts_as_well(folders: dict[str, str]) -> None:
    config = Config()
    config.encoder = {name: EncoderSettings(folder) for name, folder in folders.items()}
    model = model_of_recordings(folders, {"tune": "lora"}, statistics=True)
    empty = BATCH.split(12)[-1]
    assert len(empty) == 0
    stream: Any = SimpleNamespace(epoch=lambda _: [empty], steps_per_epoch=1, statistics=dict)
    assert not initialize(model, config, stream, ALONE)
    assert all(value.isfinite().all() for value in scales(model).values())


def test_encoded_batches_are_not_encoded_again(folders: dict[str, str]) -> None:
    model, parts = encoded(folders, [BATCH])
    order = [BATCH.key.index(key) for part in parts for key in part.key]
    with torch.no_grad():
        of_recordings = model(BATCH.take(order).features).logits
        of_features = torch.cat([model(part.features).logits for part in parts])
    torch.testing.assert_close(of_features, of_recordings, rtol=1e-8, atol=1e-10)
    assert all(part.features["audio"].samples is None for part in parts)
