"""What a step works on: counted by hand, and beside what torch's dispatcher counts."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch
from support import CLASSES, DIMS, batch, utterances
from torch.utils.flop_counter import FlopCounterMode

from awtpn.model import blocks
from awtpn.model.attention import plain
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.tracking.throughput import WORK, batch_cost, memory, throughput


def attention(h: Any, query: Any, key: Any, r: Any, host_offsets: Any) -> Any:
    """The definition, with nothing saved or computed twice."""
    return plain(h @ query.T, h @ key.T, r, host_offsets.diff().tolist())


@pytest.mark.parametrize("settings", [{}, {"awm": "uniform"}, {"prototypes_per_class": 3}])
def test_flops_are_about_those_of_the_plain_form(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "reliability_attention", attention)
    for modality in DIMS:  # of a usual width: beside narrow ones elementwise work would count
        monkeypatch.setitem(DIMS, modality, 200)
    config = ModelConfig(**({"shared_dim": 256, "dropout": 0.0} | settings))
    model = AWTPN(config, DIMS, CLASSES)
    # Fewer steps than D, for which the account of the best form keeps both maps as the plain form does.
    made = batch(utterances([(120, 60), (90, 100), (0, 50)], dtype=torch.float32), [0, 1, 2])
    with FlopCounterMode(display=False) as counter:
        output = model(made.features)
        distances = sum(stream.distances.sum() for stream in output.streams.values())
        (output.logits.sum() + distances).backward()
    flops, *_ = batch_cost(made, model)
    # Ours counts elementwise work, too, and the optimizer's: 18 per parameter.
    optimizer = 18 * sum(p.numel() for p in model.parameters())
    assert flops - optimizer == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_steps_and_bytes_are_counted_by_hand() -> None:
    model = AWTPN(ModelConfig(shared_dim=8), DIMS, CLASSES)
    made = batch(utterances([(2, 4), (6, 0), (1, 5)], dtype=torch.float32), [0, 1, 2])
    of = dict(zip(WORK, batch_cost(made, model).tolist(), strict=True))
    assert of["steps"] == 9 + 9
    assert of["bytes"] == 4 * (9 * 6 + 9 * 5)
    assert of["padded_bytes"] == 4 * (3 * 6 * 6 + 3 * 5 * 5)
    empty = batch([], [], num_places=4)
    assert batch_cost(empty, model).tolist()[1:] == [0, 0, 0]


def test_pace() -> None:
    figures = throughput(2.0, 64, 0.5, [4e12, 6_000, 60.0, 80.0])
    assert figures == {
        "system/utterances_per_s": 32,
        "system/segments_and_frames_per_s": 3_000,
        "system/teraflop_per_s": 2,
        "data/wait_share": 0.25,
        "data/padding_avoided": 0.25,
    }
    assert throughput(0.0, 0, 0.0, [0, 0, 0, 0])["data/padding_avoided"] == 0


def test_memory_is_that_of_the_process() -> None:
    before = memory(torch.device("cpu"))["system/memory_gib"]
    # From the kernel: the C library may hold what tensors of other tests left.
    with mmap.mmap(-1, 1 << 27) as kept:
        for page in range(0, 1 << 27, mmap.PAGESIZE):
            kept[page] = 1
        after = memory(torch.device("cpu"))["system/memory_gib"]
    assert before + 0.1 < after < before + 0.2
