"""The published code's figures, reproduced in float64 to 1e-9 from packed input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import REPO, ragged

from awtpn.learning.losses import LossNormalizers, NegativePool, loss_terms, total_loss
from awtpn.learning.settings import TERMS, LossConfig
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.model.sharing.published_weights import REFERENCE_KEYS
from shards import Ragged

Golden = dict[str, np.ndarray]
FILES = sorted((REPO / "tests" / "golden").glob("*.npz"))
STREAMS = {"audio": "a", "video": "v"}
PAIR = ("audio", "video")


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    with np.load(request.param, allow_pickle=False) as file:
        return dict(file)


def test_there_are_three_files() -> None:
    assert [f.stem for f in FILES] == ["awtpn_scaled", "awtpn_single_step", "awtpn_small"]


def state_dict(golden: Golden) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix("state."): torch.from_numpy(v) for k, v in golden.items() if k.startswith("state.")
    }


def make_model(golden: Golden) -> AWTPN:
    config = ModelConfig(
        dropout=float(golden["cfg.ses_dropout"]),
        alpha_audio=float(golden["cfg.fusion_alpha_audio"]),
        beta_video=float(golden["cfg.fusion_beta_video"]),
        distance_scale_audio=float(golden["cfg.distance_scale_audio"]),
        distance_scale_video=float(golden["cfg.distance_scale_video"]),
    )
    return AWTPN.from_reference(state_dict(golden), config)


def packed(golden: Golden) -> dict[str, Ragged]:
    return {
        name: ragged(list(torch.from_numpy(golden[f"in.{name}"])), golden[f"in.{name}"].shape[-1])
        for name in STREAMS
    }


def close(ours: torch.Tensor, published: np.ndarray, what: str) -> None:
    torch.testing.assert_close(
        ours, torch.from_numpy(np.asarray(published)), rtol=1e-9, atol=1e-9, msg=lambda m: f"{what}: {m}"
    )


def test_outputs(golden: Golden) -> None:
    output = make_model(golden)(packed(golden))
    close(output.logits, golden["out.logits"], "logits")
    for name, letter in STREAMS.items():
        stream, shape = output.streams[name], golden[f"in.{name}"].shape[:2]
        close(stream.h.unflatten(0, shape), golden[f"out.{letter}_proj"], f"{name} projection")
        close(stream.distances.unflatten(0, shape), golden[f"out.dists_{letter}"], f"{name} distances")
        close(stream.weights.unflatten(0, shape), golden[f"out.w_{letter}"], f"{name} weights")


def test_loss_terms_and_gradients(golden: Golden) -> None:
    model = make_model(golden)
    output = model(packed(golden))
    size = len(golden["in.label"])
    published = {term: weight for term, weight in TERMS.items() if f"loss.{term}" in golden}
    assert len(published) == 6
    weights = dict.fromkeys(TERMS.values(), 0.0)  # a term that is not published counts nothing here
    weights |= {weight: float(golden[f"cfg.{weight}"]) for weight in published.values()}
    config = LossConfig(align_form="reference", inter_form="reference", **weights)
    draws = {name: torch.from_numpy(golden[f"in.negative_{name}"]) for name in ("inter", "contrast")}
    everyone = LossNormalizers(
        utterances=size,
        present=dict.fromkeys(STREAMS, size),
        both={PAIR: size},
        negative={PAIR: dict.fromkeys(draws, float(size))},
        class_weight=size,
    )
    pools = {PAIR: NegativePool(output.streams["video"].mean, draws)}
    terms = loss_terms(output, torch.from_numpy(golden["in.label"]), pools, everyone, config)
    for name, term in zip(TERMS, terms, strict=True):
        if name in published:
            close(term, golden[f"loss.{name}"], name)
    total = total_loss(terms, config)
    close(total, golden["loss.total"], "total")

    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == set(REFERENCE_KEYS.values())
    for theirs, ours in REFERENCE_KEYS.items():
        close(gradients[ours], golden[f"grad.{theirs}"], f"gradient of {ours}")


def cut(golden: Golden, utterance: int) -> dict[str, torch.Tensor]:
    """An utterance of the file, cut to a length of its own."""
    return {
        name: torch.from_numpy(
            golden[f"in.{name}"][utterance][: 1 + (utterance * step) % golden[f"in.{name}"].shape[1]]
        )
        for name, step in (("audio", 3), ("video", 2))
    }


def test_utterances_of_different_lengths_do_not_touch_each_other(golden: Golden) -> None:
    model, size = make_model(golden), len(golden["in.label"])
    cuts = [cut(golden, u) for u in range(size)]
    if golden["in.audio"].shape[1] > 1:
        assert len({len(c["audio"]) for c in cuts}) > 1, "the lengths are meant to differ"
    dims = {name: golden[f"in.{name}"].shape[-1] for name in STREAMS}

    def forward(some: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        output = model({name: ragged([c[name] for c in some], dims[name]) for name in STREAMS})
        steps = {
            name: list(output.streams[name].weights.split([len(c[name]) for c in some])) for name in STREAMS
        }
        return output.logits, steps

    together, steps_together = forward(cuts)
    for u in range(size):
        alone, steps_alone = forward([cuts[u]])
        # To the rounding of float64: a product over a batch may sum in another order than one over a row.
        torch.testing.assert_close(together[u], alone[0], rtol=1e-13, atol=1e-13)
        for name in STREAMS:
            torch.testing.assert_close(steps_together[name][u], steps_alone[name][0], rtol=1e-13, atol=1e-13)

    # What is not a number in one utterance cannot reach another, not even times zero.
    cuts[1] = {name: torch.full_like(values, float("nan")) for name, values in cuts[1].items()}
    poisoned, _ = forward(cuts)
    assert poisoned[1].isnan().all()
    others = [u for u in range(size) if u != 1]
    torch.testing.assert_close(poisoned[others], together[others], rtol=1e-13, atol=1e-13)


def test_a_published_checkpoint_file_loads(golden: Golden, tmp_path: Path) -> None:
    torch.save(state_dict(golden), tmp_path / "awtpn_best.pth")
    loaded = torch.load(tmp_path / "awtpn_best.pth", map_location="cpu", weights_only=True)
    model = AWTPN.from_reference(
        loaded, classes=[f"e{i}" for i in range(len(golden["state.tpn.prototypes"]))]
    )
    assert not model.training
    assert model.classes[0] == "e0"
    for theirs, ours in REFERENCE_KEYS.items():
        assert torch.equal(model.get_parameter(ours), loaded[theirs])


def test_what_is_no_published_checkpoint_is_refused_by_name(golden: Golden) -> None:
    state = state_dict(golden)
    bias = state.pop("classifier.bias")
    state["classifier.offset"] = bias
    told = r"missing keys \['classifier.bias'\], unknown keys \['classifier.offset'\]"
    with pytest.raises(ValueError, match=told):
        AWTPN.from_reference(state)
    with pytest.raises(ValueError, match="classes, but 2 names"):
        AWTPN.from_reference(state_dict(golden), classes=["a", "b"])
