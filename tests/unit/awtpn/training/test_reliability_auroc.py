"""The AUROC of reliability weights, where utterances lack a modality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support import ALONE, CLASSES, DIMS, small_model

import shards
from awtpn.training.evaluate import reliability_auroc
from shards import FeatureStream, Sample


def test_a_missing_modality_counts_no_step(tmp_path: Path) -> None:
    """Metadata may list informative steps of a modality that the utterance lacks."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(6):
        made = {name: rng.normal(0, 1, (4, dim)).astype(np.float32) for name, dim in DIMS.items()}
        features: dict[str, np.ndarray | None] = made | ({"video": None} if i % 2 else {})  # type: ignore[dict-item]
        meta = {f"informative_{name}": [1, 2] for name in DIMS}
        samples.append(Sample(f"u{i}", "test", CLASSES[i % 3], features, meta))
    shards.pack(samples, str(tmp_path / "d"), classes=CLASSES, progress=False)
    stream = FeatureStream(str(tmp_path / "d"), split="test", global_batch_size=4, shuffle=False)
    found = reliability_auroc(small_model(dtype=torch.float32), stream, ALONE)
    assert found.keys() == {"audio", "video"}
    assert all(0 <= value <= 1 for value in found.values())
