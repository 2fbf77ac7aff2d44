"""The benchmark of training end to end: `Trainer` computes the same losses from padded batches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from awtpn.bench import finetune
from awtpn.bench.step import Setting

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}


def test_both_train_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "SIZES", {"cpu": SMALL})
    monkeypatch.setattr(finetune, "BATCH", 16)
    text = finetune.run(Setting("cpu", "fp32", 1), tmp_path, 1, 32)
    found = re.search(r"differ by at most (\S+) \(relative\)", text)
    assert found is not None
    assert float(found[1]) < 1e-5
    rows = [line.split("|")[1:] for line in text.splitlines() if line.startswith("| ") and "%" in line]
    assert [row[0].strip() for row in rows] == [
        "this trainer",
        "Trainer, padded",
        "Trainer, grouped by length",
    ]
    ours, padded, _ = (float(row[2].strip(" %")) for row in rows)
    assert ours < padded  # padding
