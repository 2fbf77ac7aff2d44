"""The roofline model: bytes counted by hand, and floors."""

from __future__ import annotations

import torch

from awtpn.bench.roofline.floor import Cost, Peak, bound_by, floor_s, step_cost, total
from awtpn.model.compute.flops import PARTS


def test_a_step_counted_by_hand() -> None:
    cost = step_cost({"audio": [3, 0, 5]}, {"audio": 10}, dim=4, classes=2, feature_bytes=2)
    assert list(cost) == list(PARTS)
    assert cost["ses"].bytes == 2 * 8 * 10 * 2 + 3 * 32 * 4 + 40 * 8
    assert cost["distances"].bytes == 3 * 32 * 4 + 2 * 8 * 2 * 4 + 2 * 2 * 4 * 4
    assert cost["attention"].bytes == 11 * 32 * 4 + 10 * 8 * 4 + 2 * 16 * 12
    parameters = (40 + 4) + 2 * 16 + 8 + (8 + 2)
    assert cost["optimizer"] == Cost(18 * parameters, 32 * parameters)
    assert total(cost) == Cost(sum(c.flops for c in cost.values()), sum(c.bytes for c in cost.values()))


def test_what_recomputation_and_half_precision_change() -> None:
    arguments = {"audio": [100, 50]}, {"audio": 64}, 256, 7
    plain, again = step_cost(*arguments), step_cost(*arguments, recompute=True)
    assert again["attention"].flops > plain["attention"].flops
    assert again["attention"].bytes == plain["attention"].bytes
    half = step_cost(*arguments, dtype=torch.bfloat16)
    assert half["attention"].flops == plain["attention"].flops
    assert half["attention"].bytes < plain["attention"].bytes
    assert half["optimizer"] == plain["optimizer"]  # the master weights stay float32


def test_the_floor_is_the_larger_time() -> None:
    peak = Peak(flops_per_s=100.0, bytes_per_s=10.0)
    assert floor_s(Cost(200, 10), peak) == 2.0
    assert bound_by(Cost(200, 10), peak) == "compute"
    assert floor_s(Cost(200, 50), peak) == 5.0
    assert bound_by(Cost(200, 50), peak) == "memory"
