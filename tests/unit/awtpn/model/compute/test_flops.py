"""FLOPs and parameters beside hand-counted figures, and beside what torch itself counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from awtpn.bench.step import packed_loss
from awtpn.inference.predictor import pack_arrays
from awtpn.learning.settings import LossConfig
from awtpn.model.compute.flops import PARTS, parameter_count, step_flops
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig

DIMS = {"audio": 24, "video": 12}


def test_parameters_are_those_of_the_model() -> None:
    for config, learnable in (
        (ModelConfig(shared_dim=16, prototypes_per_class=3), True),
        (ModelConfig(shared_dim=16, awm="uniform", statistics=False), False),
        (ModelConfig(shared_dim=8, modalities=["video"]), True),
    ):
        dims = {m: DIMS[m] for m in config.modalities}
        model = AWTPN(config, dims, list("abcd"), learnable)
        counted = parameter_count(
            dims,
            config.shared_dim,
            4,
            config.prototypes_per_class,
            config.awm == "adaptive",
            learnable,
            config.statistics,
        )
        assert counted == sum(p.numel() for p in model.parameters())


def test_a_step_counted_by_hand() -> None:
    flops = step_flops({"audio": [3, 0, 5]}, {"audio": 10}, dim=4, classes=2)
    assert list(flops) == list(PARTS)
    # 8 steps of 10 features to 4: products forward and for the weights; standardize; bias and ReLU.
    assert flops["ses"] == 4 * 8 * 10 * 4 + 2 * 8 * 10 + 4 * 32
    # The merged map serves 8 steps at D = 4: 6 * 8 * 16 + 6 * 64; scores of 9 + 25.
    assert flops["attention"] == 6 * 8 * 16 + 6 * 64 + 6 * 34 * 4 + 12 * 34
    assert flops["optimizer"] == 18 * ((40 + 4) + 2 * 16 + 8 + (8 + 2))


@pytest.mark.parametrize("used", [["text"], ["audio", "video"], ["audio", "video", "text"]])
def test_the_products_are_what_torch_counts(used: list[str]) -> None:
    """The FLOPs of matrix products in a whole forward and backward, as counted by torch's dispatcher."""
    every = {"audio": [120, 40, 266], "video": [60, 130, 1], "text": [200, 0, 30]}
    dim, classes, lengths = 256, 5, {m: every[m] for m in used}
    wide = {m: {"audio": 96, "video": 64, "text": 128}[m] for m in used}
    torch.manual_seed(0)
    config = ModelConfig(shared_dim=dim, dropout=0.0, modalities=used)  # type: ignore[arg-type]
    model = AWTPN(config, wide, [str(c) for c in range(classes)])
    features = {
        m: pack_arrays([torch.randn(n, wide[m]).numpy() for n in of], wide[m]) for m, of in lengths.items()
    }
    with FlopCounterMode(display=False) as counter:
        output = model(features)
        packed_loss(output, torch.tensor([1, 2, 0]), LossConfig()).backward()
    flops = step_flops(lengths, wide, dim, classes)
    ours = sum(flops[part] for part in ("ses", "distances", "attention", "losses"))
    # Ours also counts element-wise work; a form may recompute or pad scores, or add up in place unseen.
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.1)


def test_each_pair_of_modalities_is_compared() -> None:
    """What the losses cost beyond the modalities' own terms: nothing, one pair, three, six."""
    of_pair = 54 * 3 * 8
    losses = []
    for count in range(1, 5):
        names = [f"m{i}" for i in range(count)]
        flops = step_flops({name: [4, 5, 6] for name in names}, dict.fromkeys(names, 10), dim=8, classes=2)
        losses.append(flops["losses"])
    own = [losses[0] + (n - 1) * (10 * 15 * 8 + 15 * 15 * 2) for n in range(1, 5)]
    assert [a - b for a, b in zip(losses, own, strict=True)] == [0, of_pair, 3 * of_pair, 6 * of_pair]


def test_what_recomputation_and_few_steps_change() -> None:
    arguments = {"audio": [100, 50]}, {"audio": 64}, 256, 7
    plain, again = step_flops(*arguments), step_flops(*arguments, recompute=True)
    assert again["attention"] - plain["attention"] == 2 * (100**2 + 50**2) * 256
    assert step_flops(*arguments, adaptive=False)["attention"] == 0
    # Few steps, wide model: the maps stay apart.
    few = step_flops({"audio": [4]}, {"audio": 64}, 256, 7)["attention"]
    assert few == 12 * 4 * 256**2 + 6 * 16 * 256 + 12 * 16
