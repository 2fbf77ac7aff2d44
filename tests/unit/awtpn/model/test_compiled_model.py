"""train.compile: one compiled model serves batches of all lengths and sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from support import features, small_model, utterances
from torch import Tensor

from awtpn.model.network import AWTPN


def lengths_of_step(step: int) -> list[tuple[int, int]]:
    """Two to nine utterances, of which some miss a modality."""
    rng = np.random.default_rng(step)
    lengths = [(int(rng.integers(2, 60)), int(rng.integers(2, 30))) for _ in range(rng.integers(2, 10))]
    return [(0, n) if i % 5 == 4 else (m, n) for i, (m, n) in enumerate(lengths)]


def counted(model: AWTPN) -> list[str]:
    """Have `model` traced for a compiler that compiles nothing; the list gets what it is given."""
    given: list[str] = []

    def compile(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
        given.append(str(graph.graph))
        return graph.forward

    torch._dynamo.reset()
    model.compile(dynamic=True, backend=compile)
    return given


def test_lengths_and_sizes_of_batches_compile_nothing_anew() -> None:
    # A width that no batch has by chance: sizes that are equal at first are taken to be the same one.
    eager, model = small_model(shared_dim=20), small_model(shared_dim=20)
    graphs, counts = counted(model), []
    for step in range(6):
        given = features(utterances(lengths_of_step(step)))
        one, other = eager(given), model(given)
        torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=1e-12)
        for name in one.streams:
            torch.testing.assert_close(other.streams[name].weights, one.streams[name].weights)
        other.logits.sum().backward()
        counts.append(len(graphs))
    assert counts[0] > 0
    assert counts == counts[:1] * 6
