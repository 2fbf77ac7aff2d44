"""A trained encoder as a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_in_models_support import MODELS, SHORT, extracted, features, opened, recordings_of

from awtpn.model.encoders.merging import save_merged

LOW: list[tuple[str, str]] = [("audio", "wavlm"), ("audio", "whisper"), ("video", "videomae")]
CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    *((*model, "lora", {}) for model in MODELS),
    *((*model, "full", {"layer": 1}) for model in LOW),
]


@pytest.mark.parametrize(("modality", "name", "tune", "options"), CASES)
def test_a_merged_folder_gives_the_same_features(
    modality: str,
    name: str,
    tune: str,
    options: dict[str, Any],
    folder_of: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    folder, recordings = folder_of(modality, name), recordings_of(modality, *SHORT[modality])
    encoder = opened(modality, folder, tune, dropout=0.3, **options)
    before = np.concatenate(features(encoder, recordings))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    live = np.concatenate(features(encoder, recordings))
    state = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    assert np.abs(live - before).max() > 1e-3

    save_merged(encoder, tmp_path / "merged")
    np.testing.assert_array_equal(np.concatenate(features(encoder, recordings)), live)
    after = encoder.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], weight) for name, weight in state.items())

    again = opened(modality, tmp_path / "merged", **options)
    np.testing.assert_allclose(np.concatenate(features(again, recordings)), live, atol=1e-5)
    made = np.concatenate(extracted(modality, tmp_path / "merged", recordings, **options))
    np.testing.assert_allclose(made, live, atol=1e-5)
    # The layers above are those of the model, and its own settings are kept.
    assert len(again.above) == (2 if options else 0)
    own, merged = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "merged"))
    for key in ("hidden_dropout", "layerdrop", "attention_dropout", "encoder_layers", "num_hidden_layers"):
        assert merged.get(key) == own.get("vision_config", own).get(key)
