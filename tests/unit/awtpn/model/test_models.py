"""Models by `model.name`: built, saved, loaded, and refused where another network is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from support import CLASSES, DIMS, features, utterances

from awtpn.config.schema import Config
from awtpn.experiments.variants import expand, of_task
from awtpn.inference.export import export
from awtpn.learning.settings import LossConfig, PrototypesConfig
from awtpn.model.base import EmotionModel
from awtpn.model.baselines import NETWORKS
from awtpn.model.files import CARD_FILE, CHECKSUMS_FILE
from awtpn.model.models import Baseline, build_model, load_model, model_of_card
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.model.sharing.model_card import render_card
from awtpn.model.task import Task
from awtpn.run.init_from import init_from

OTHERS = ["angry", "bored"]


def built(name: str, classes: list[str] = CLASSES, **settings: Any) -> EmotionModel:
    config = ModelConfig(name=name, shared_dim=8, dropout=0.0, **settings)
    return build_model(config, DIMS, classes).eval()


def test_every_name_of_the_configuration_is_a_network() -> None:
    assert set(get_args(get_type_hints(ModelConfig)["name"])) == {"awtpn", *NETWORKS}
    assert isinstance(built("awtpn"), AWTPN)
    assert all(isinstance(built(name), Baseline) for name in NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_baseline_is_loaded_by_its_name(name: str, tmp_path: Path) -> None:
    model, batch = built(name), features(utterances([(3, 5), (0, 2), (4, 0)], dtype=torch.float32))
    model.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded(batch).logits, model(batch).logits)
    assert loaded(batch).streams == {}
    assert model_of_card(model.card()).card() == model.card()
    with pytest.raises(
        ValueError, match=rf"this is a {name} model, not an AWTPN: load it with awtpn.load_model"
    ):
        AWTPN.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"is a {name} model, and only AWTPN has a graph"):
        export(tmp_path / "model", tmp_path / "export", graph=True)
    assert not list(tmp_path.glob("*export*"))

    readme = (tmp_path / "model" / "README.md").read_text()
    assert f"# {name}\n\nA {name} model for multimodal emotion recognition: {NETWORKS[name].about}" in readme
    assert "no prototypes and no reliability weights" in readme
    for word in ("Adaptive Weighted", "answer.weights", "- prototypes", "weights, prototypes", "check them"):
        assert word not in readme
    assert "paper" not in render_card(model.card() | {"dataset": "meld"})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lstm", r"config\.json: the card's model: name cannot be 'lstm'|name.*lstm"),
        (["gru"], "name"),
        ("cross-modal", "describes another network than model.safetensors holds"),
        ("awtpn", "describes another network than model.safetensors holds"),
    ],
)
def test_a_forged_name_is_refused(name: Any, told: str, tmp_path: Path) -> None:
    built("gru").save_pretrained(tmp_path)
    (tmp_path / CHECKSUMS_FILE).unlink()
    card = json.loads((tmp_path / CARD_FILE).read_text())
    card["model"]["name"] = name
    (tmp_path / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=told) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_starts_from_weights_of_the_same_network(name: str, tmp_path: Path) -> None:
    """The weights of its classifier are new where other classes are told apart."""
    built(name).save_pretrained(tmp_path / "model")
    same, other = built(name), built(name, OTHERS)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    assert init_from(tmp_path / "model", same).line.endswith(": audio, video, classifier")
    assert init_from(tmp_path / "model", other).line.endswith("audio, video; random ones: classifier")
    saved = load_model(tmp_path / "model").state_dict()
    for key, value in other.state_dict().items():
        if not key.startswith("standardise."):
            assert torch.equal(value, before[key] if key.startswith(other.heads) else saved[key]), key
    assert any(key.startswith(other.heads) for key in before)
    with pytest.raises(ValueError, match=rf"a model of model.name {name}, and this run has awtpn"):
        init_from(tmp_path / "model", built("awtpn"))


def test_a_baseline_takes_the_settings_of_awtpn_that_it_does_not_use() -> None:
    ema = PrototypesConfig(update="ema")
    loss = LossConfig(lambda_align=0.0, pair_weights={"audio-video": 0.0})
    Config(model=ModelConfig(name="gru"), prototypes=ema, loss=loss).validate()
    with pytest.raises(ValueError, match=r"prototypes\.update=ema with loss.lambda_align=0"):
        Config(prototypes=ema, loss=LossConfig(lambda_align=0.0)).validate()
    with pytest.raises(ValueError, match=r"loss\.eta_ce=0 with model\.name=gru"):
        Config(model=ModelConfig(name="gru"), loss=LossConfig(eta_ce=0.0)).validate()
    task = Task("regression", ["x"], ranges=[[0.0, 1.0]], levels=7, head="linear")
    with pytest.raises(ValueError, match=r"gru is trained by cross-entropy: set task\.head to levels"):
        build_model(ModelConfig(name="gru"), DIMS, [], task=task)


def test_ablations_of_a_baseline_leave_out_what_it_lacks() -> None:
    base = Config(model=ModelConfig(name="gru"))
    lines = {
        "{term} off": {"loss.{weight}": 0.0},
        "AWM off": {"model.awm": "uniform"},
        "{modality} alone": {"model.modalities": ["{modality}"]},
        "slow": {"optim.lr": 1e-4},
        "AWTPN": {"model.name": "awtpn", "model.awm": "uniform"},
    }
    kept, left_out = of_task(expand(lines, base), base, "classification")
    assert list(kept) == ["audio alone", "video alone", "slow", "AWTPN"]
    assert left_out["AWM off"] == left_out["align off"] == "gru has none of it"
    assert left_out["cross-entropy off"] == "gru has no other loss"
