"""A run goes on with the base models that it began with, wherever their files are now."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from training_encoders_support import model_of_recordings, small_encoders

from awtpn.model.files import CARD_FILE
from awtpn.run.checkpoint import check_base_models
from shards.safe_io.json_text import json_text

FROZEN = {"tune": "frozen"}  # nothing of it is in a checkpoint, so no shape could tell


def test_another_base_model_is_refused(tmp_path: Path) -> None:
    began = small_encoders(tmp_path / "first")
    (tmp_path / CARD_FILE).write_text(json_text(model_of_recordings(began, FROZEN).card()))
    check_base_models(tmp_path, model_of_recordings(began, FROZEN))

    moved = {name: str(shutil.copytree(of, tmp_path / name)) for name, of in began.items()}
    check_base_models(tmp_path, model_of_recordings(moved, FROZEN))

    other = small_encoders(tmp_path / "second", layer_norm_eps=1e-4)
    with pytest.raises(
        ValueError, match=r"encoder\.audio\.model names other files \(audio, another sha256\)"
    ):
        check_base_models(tmp_path, model_of_recordings(other, FROZEN))
