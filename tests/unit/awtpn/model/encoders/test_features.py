"""Encoders within the model give the features of `awtpn extract`, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders_in_models_support import MODELS, extracted, features, opened, recordings_of

from shards.extraction.encoders import windows

LENGTHS = {"audio": (20800, 0, 9920, 41120, 64, 0, 1600), "video": (9, 0, 1, 4, 0, 6)}


@pytest.mark.parametrize("options", [{}, {"layer": 1}, {"layer": 0, "step_seconds": 0.25}], ids=str)
@pytest.mark.parametrize(("modality", "name"), MODELS)
def test_features_are_those_of_extraction(
    modality: str,
    name: str,
    options: dict[str, Any],
    folder_of: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "LONGEST_WINDOW_S", 1.0)
    folder = folder_of(modality, name)
    recordings = recordings_of(modality, *LENGTHS[modality])
    encoder = opened(modality, folder, **options)
    expected = extracted(modality, folder, recordings, **options)
    found = features(encoder, recordings)
    assert [x.shape for x in found] == [x.shape for x in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.ptp(np.concatenate(found)) > 0.01
    if options:
        return
    for recording, together in zip(recordings, found, strict=True):
        np.testing.assert_allclose(features(encoder, [recording])[0], together, atol=1e-5)
