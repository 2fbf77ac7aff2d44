"""What the page says of the model, from its card: name, task, classes and training data; without paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from awtpn.inference.predictor import Predictor
from awtpn.metrics.multilabel import THRESHOLD
from awtpn.model.modality_colors import modality_colors
from awtpn.model.sharing.hub import HUB_ID
from awtpn.model.sharing.model_card import TASK_NAMES
from awtpn.model.sharing.privacy import public_card
from shards.format.feature_space import recorded_spaces
from shards.safe_io.printable import printable
from shards.storage.local_path import local_path


def facts_of(predictor: Predictor, model: str, most_bytes: int, most_seconds: float) -> dict[str, Any]:
    """Plain JSON for the page.

    Args:
        predictor: of the model.
        model: as it was given: a folder or a hub id; only its last part is shown.
        most_bytes, most_seconds: the limits of a clip.
    """
    card, task = public_card(predictor.model.card()), predictor.model.task
    spaces = recorded_spaces(card.get("provenance") or {})
    modalities = list(predictor.model.feature_dims)
    return {
        "name": printable(short_name(model)),
        "network": predictor.model.config.name,
        "has_weights": predictor.model.config.name == "awtpn",
        "task": task.type,
        "task_name": TASK_NAMES[task.type],
        "names": [printable(name) for name in task.names],
        "ranges": task.ranges if task.type == "regression" else None,
        "threshold": THRESHOLD,
        "trained_on": printable(card["dataset"]) if card.get("dataset") else None,
        "encoders": {m: printable(spaces[m]["settings"]["id"]) for m in modalities if m in spaces},
        "modalities": modalities,
        "colors": modality_colors(modalities),
        "most_bytes": most_bytes,
        "most_seconds": most_seconds,
    }


def short_name(model: str) -> str:
    """The name of a model's folder without the folders above it; a hub id as it is."""
    path = Path(local_path(model))
    if not path.exists() and HUB_ID.fullmatch(model):
        return model
    return path.resolve().name
