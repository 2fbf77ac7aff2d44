"""The prototype table: class means, k-means, checksums; drift over ranks is tested under distributed/."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import CLASSES, batch, features, same_bits_or_close, small_model, utterances
from torch import Tensor

from awtpn.distributed.replicas import checksum
from awtpn.learning.prototypes import class_sums, initialize_from_data, k_means, move_to_class_means

LENGTHS = [(4, 3), (1, 6), (5, 0), (2, 2), (0, 4), (3, 3)]
LABEL = [0, 1, 1, 0, 0, 1]  # nobody is of class 2


def one_hot(label: list[int] | Tensor) -> Tensor:
    return F.one_hot(torch.as_tensor(label, dtype=torch.int64), len(CLASSES)).float()


@pytest.mark.parametrize("per_class", [1, 3])
def test_class_means_are_those_of_a_plain_loop(per_class: int) -> None:
    model = small_model(prototypes_per_class=per_class, learnable=False, dtype=torch.float32)
    table, decay = model.tpn.prototypes, 0.9
    output = model(features(utterances(LENGTHS)))
    sums = class_sums(output, one_hot(LABEL), table, per_class)

    came: dict[int, list[Tensor]] = {}
    for u, label in enumerate(LABEL):
        for stream in output.streams.values():
            if stream.present[u]:
                own = range(label * per_class, (label + 1) * per_class)
                distances = (stream.pooled[u].detach() - table[own.start : own.stop]).square().sum(1)
                nearest = own[int(distances.argmin())]
                came.setdefault(nearest, []).append(stream.pooled[u].detach())
    expected = table.clone()
    for p, vectors in came.items():
        expected[p] = decay * table[p] + (1 - decay) * torch.stack(vectors).mean(0)
        assert sums[p, -1] == len(vectors)
    assert sums[:, -1].sum() == 10, "two streams of six utterances, two of them missing"
    untouched = [p for p in range(len(table)) if p not in came]
    assert set(range(2 * per_class, 3 * per_class)) <= set(untouched)

    before = table.clone()
    move_to_class_means(table, sums, decay)
    torch.testing.assert_close(table, expected)
    assert torch.equal(table[untouched], before[untouched]), "absent classes stay, to the bit"


def test_micro_batches_add_up_to_one_move() -> None:
    model = small_model(learnable=False, dtype=torch.float32)
    whole = batch(utterances(LENGTHS), LABEL)
    table = model.tpn.prototypes
    together = class_sums(model(whole.features), one_hot(whole.label), table, 1)
    parts = [class_sums(model(m.features), one_hot(m.label), table, 1) for m in whole.split(3)]
    torch.testing.assert_close(torch.stack(parts).sum(0), together)
    assert not class_sums(model(features([])), one_hot([]), table, 1).any()


def test_shares_below_one_utterance_move_a_prototype_less() -> None:
    """A level that has a quarter of an utterance moves a quarter of the way, and never towards zero."""
    table, decay = torch.tensor([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0]]), 0.6
    vector = torch.tensor([3.0, 4.0])
    # Shares of a quarter; three quarters and a half of the same vector; nothing.
    sums = torch.tensor([0.25, 1.25, 0.0])[:, None] * torch.tensor([3.0, 4.0, 1.0])
    expected = torch.stack(
        [
            decay * table[0] + (1 - decay) * (vector / 4 + 3 * table[0] / 4),
            decay * table[1] + (1 - decay) * vector,
            table[2],
        ]
    )
    move_to_class_means(table, sums, decay)
    torch.testing.assert_close(table, expected)


def test_class_sums_are_float32_under_autocast() -> None:
    model = small_model(learnable=False, dtype=torch.float32)
    of, label = model(features(utterances(LENGTHS))), one_hot(LABEL)
    with torch.autocast("cpu", torch.bfloat16):
        within = class_sums(of, label, model.tpn.prototypes, 1)
    assert same_bits_or_close(within, class_sums(of, label, model.tpn.prototypes, 1))


def test_k_means_finds_separate_clouds_and_is_the_mean_for_one() -> None:
    generator = torch.Generator().manual_seed(0)
    clouds = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    points = torch.cat([c + torch.randn(30, 2, generator=generator) for c in clouds])
    centres = k_means(points, 3, torch.Generator().manual_seed(1))
    expected = torch.stack([points[i * 30 : (i + 1) * 30].mean(0) for i in range(3)])
    order = torch.cdist(expected, centres).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(centres[order], expected)
    torch.testing.assert_close(k_means(points, 1, torch.Generator())[0], points.mean(0))
    again = k_means(points, 3, torch.Generator().manual_seed(1))
    assert same_bits_or_close(again, centres)


def test_k_means_of_fewer_points_than_centres_is_finite() -> None:
    points = torch.tensor([[1.0, 2.0]]).repeat(2, 1)
    centres = k_means(points, 4, torch.Generator().manual_seed(0))
    assert torch.equal(centres, points[:1].expand(4, 2))


def test_initialisation_sets_class_means_and_leaves_absent_classes() -> None:
    model = small_model(dtype=torch.float32, dropout=0.5).train()
    of = utterances(LENGTHS, dtype=torch.float32)
    before = model.tpn.prototypes.detach().clone()
    initialize_from_data(model, [batch(of, LABEL, 8)], 1, 8, torch.device("cpu"), seed=0)
    assert model.training, "the mode is given back"
    output = model.eval()(features(of))
    for c in (0, 1):
        vectors = [
            s.mean[u]
            for u in range(len(of))
            for s in output.streams.values()
            if LABEL[u] == c and s.present[u]
        ]
        torch.testing.assert_close(model.tpn.prototypes[c], torch.stack(vectors).mean(0))
    assert torch.equal(model.tpn.prototypes[CLASSES.index("sad")], before[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_single_bit_changes_the_checksum(dtype: torch.dtype) -> None:
    tensor = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[1, 1] = float("nan")
    whole = checksum(tensor)
    assert whole == checksum(tensor.clone())
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for bit in range(8 * dtype.itemsize):
        altered = tensor.clone()
        mask = torch.tensor(1 << bit if bit < 8 * dtype.itemsize - 1 else torch.iinfo(kind).min, dtype=kind)
        altered.view(kind)[2, 1] ^= mask
        assert checksum(altered) != whole, f"bit {bit}"
        altered = tensor.clone()
        altered.view(kind)[1, 1] ^= mask
        assert checksum(altered) != whole, f"bit {bit} of a NaN"
