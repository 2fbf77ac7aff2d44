"""Benchmark of models that miss a modality at test time, with and without modality dropout in training.

    awtpn cross-validate --config configs/ravdess.yaml --by fold --no-baseline --dir runs/plain
    awtpn cross-validate --config configs/ravdess.yaml --by fold --no-baseline --dir runs/dropout \\
        --model.modality_dropout 0.3
    python tests/benchmarks/missing_modalities.py runs/plain runs/dropout

For each folder of runs, and for every modality, the test utterances of each run lose that modality. The table
has the mean w-F1 over runs; "sum kept" multiplies the weights of the present modalities so that they keep the
sum of all weights, instead of the sum 1 that the model uses.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from awtpn.bench.machine import describe
from awtpn.learning.modality_dropout import without_rows
from awtpn.metrics.classification import count_confusion, summarize
from awtpn.model import network
from awtpn.model.blocks import fusion_weights
from awtpn.model.network import AWTPN
from awtpn.training.evaluate import trained_on
from shards import FeatureStream
from shards.safe_io.markdown import table


def keep_sum(given: Sequence[float], present: Tensor, dtype: torch.dtype) -> Tensor:
    """`fusion_weights`, but the weights of the present modalities keep the sum of all weights."""
    weights = fusion_weights(given, present, dtype)
    return torch.where(present.all(0), weights, weights * sum(given))


@torch.no_grad()
def w_f1(model: AWTPN, stream: FeatureStream, hidden: str | None) -> float:
    """w-F1 over the utterances that have more than the hidden modality."""
    classes = len(stream.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for batch in stream.epoch(0):
        features = dict(batch.features)
        if hidden:
            features[hidden] = without_rows(features[hidden], np.ones(len(batch), dtype=bool))
        logits = model(features).logits
        left = torch.stack([f.lengths > 0 for name, f in features.items()]).any(0)
        confusion += count_confusion(batch.label[left], logits[left].argmax(-1), classes)
    return float(summarize(confusion.numpy(), stream.classes)["w-F1"])


def of_run(run: Path) -> dict[str, float]:
    """w-F1 by what is missing."""
    model = AWTPN.from_pretrained(run)
    options = argparse.Namespace(split="test", select=None, cache_dir=None, storage_options=None)
    names = list(model.config.modalities)
    stream = FeatureStream(**trained_on(run, options), shuffle=False, modalities=names, global_batch_size=256)
    found = {"nothing missing": w_f1(model, stream, None)}
    for name in names:
        found[f"without {name}"] = w_f1(model, stream, name)
    network.fusion_weights = keep_sum
    try:
        for name in names:
            found[f"without {name}, sum kept"] = w_f1(model, stream, name)
    finally:
        network.fusion_weights = fusion_weights
    return found


def main(folders: Sequence[Path]) -> None:
    """Print the table of the folders of runs."""
    columns: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        for results in sorted(folder.glob("**/results.json")):
            for what, value in of_run(results.parent).items():
                columns.setdefault(folder.name, {}).setdefault(what, []).append(value)
    rows = list(next(iter(columns.values())))
    cells = [
        [what, *(f"{100 * statistics.mean(of_folder[what]):.1f}" for of_folder in columns.values())]
        for what in rows
    ]
    print(f"{describe('cpu', 2)}\n\nMean w-F1 over {len(next(iter(columns.values()))[rows[0]])} runs\n")
    print(table(["missing at test", *columns], cells))


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
