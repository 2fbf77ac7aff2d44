"""Small models, each saved once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from encoders_support import AUDIO, VIDEO


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Saves a model of a modality by name."""
    made: dict[str, Path] = {}

    def folder(modality: str, name: str) -> Path:
        if name not in made:
            make = AUDIO[name] if modality == "audio" else VIDEO[name]
            made[name] = make(tmp_path_factory.mktemp("models") / name.replace(" ", "_"))
        return made[name]

    return folder
