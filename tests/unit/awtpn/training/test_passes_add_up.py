"""With encoders, the gradients and terms of a step do not depend on how it is cut into passes.

`tests/distributed/test_encoders_agree.py` shows the same of ranks and engines.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from step_support import make_run
from support import same_bits_or_close
from torch import Tensor
from training_encoders_support import batch_of_recordings, model_of_recordings, small_encoders

from awtpn.config.schema import Config
from awtpn.learning.optimizer import make_optimizer
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.training import step

# Seconds of 12 utterances; some lack one.
AUDIO = (0.4, 1.2, 0.5, 0.3, 0, 0.7, 0.2, 2.1, 0.6, 0, 0.5, 0.9)
VIDEO = (0.6, 1.2, 0, 0.2, 1.0, 0.4, 1.6, 0.2, 0, 0.4, 0.6, 1.0)
BATCH = batch_of_recordings(list(zip(AUDIO, VIDEO, strict=True)), num_places=16)
ONE_PASS = {"pass_seconds": 1e4, "pass_pictures": 10**6, "max_padding": 1.0}
SMALL_PASSES = {"pass_seconds": 1.5, "pass_pictures": 6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return small_encoders(tmp_path_factory.mktemp("encoders"))


class OneStep:
    """The gradients and terms of one step of training, and the means of each forward pass."""

    def __init__(
        self,
        folders: dict[str, str],
        encoder: dict[str, Any],
        accumulation: int = 1,
        model: dict[str, Any] | None = None,
        **losses: Any,
    ) -> None:
        config = Config()
        config.optim.grad_clip = 0
        config.loss.margin_contrast = 5.0
        for name, value in {"negative_group": 16, **losses}.items():
            setattr(config.loss, name, value)
        settings = {"tune": "full", "dropout": 0.0, "freeze_features": False} | encoder
        config.encoder = {name: EncoderSettings(folder, **settings) for name, folder in folders.items()}
        made = model_of_recordings(folders, settings, **(model or {}))
        config.model = made.config
        self.gradients: dict[str, Tensor] = {}
        self.means: list[tuple[bool, list[Tensor]]] = []
        self.passes = 0
        optimizer = make_optimizer(made, config.optim)
        optimizer.register_step_pre_hook(
            lambda *_: self.gradients.update({n: p.grad.clone() for n, p in trained(made)})
        )
        made.register_forward_hook(self.keep)
        accelerator = SimpleNamespace(
            backward=lambda loss: loss.backward(),
            unscale_gradients=lambda: None,
            no_sync=lambda _: nullcontext(),
        )
        run = make_run(config, made, optimizer, accelerator, torch.device("cpu"), 16, accumulation)
        step.train_step(run, BATCH, data_wait=0.0)
        self.terms = run.pending[0]["terms"]
        assert not run.pending[0]["nonfinite"].any()

    def keep(self, module: Any, given: Any, output: Any) -> None:
        self.passes += torch.is_grad_enabled()
        means = [stream.mean.detach() for stream in output.streams.values()]
        self.means.append((torch.is_grad_enabled(), means))


def trained(model: torch.nn.Module) -> list[tuple[str, Any]]:
    return [(name, p) for name, p in model.named_parameters() if p.grad is not None]


def assert_same(one: OneStep, other: OneStep) -> None:
    assert one.gradients.keys() == other.gradients.keys()
    # Sound is normalized in float32. Some gradients are 0 but for rounding: a softmax ignores a constant.
    least = 1e-7 * max(float(gradient.abs().max()) for gradient in one.gradients.values())
    for name, gradient in one.gradients.items():
        apart = float((other.gradients[name] - gradient).abs().max())
        assert apart <= 1e-5 * float(gradient.abs().max()) + least, name
    torch.testing.assert_close(other.terms, one.terms, rtol=1e-5, atol=1e-7)  # terms are added in float32


@pytest.mark.parametrize(
    ("encoder", "losses", "accumulation"),
    [
        ({}, {}, 1),
        ({"tune": "lora"}, {"negatives": "global"}, 4),
        ({"tune": "last-1-layers", "layer": 1, "checkpointing": True}, {"negative_group": 4}, 2),
        ({"checkpointing": True}, {"model": {"name": "gru"}}, 4),
    ],
    ids=["full", "LoRA", "last layer", "a baseline"],
)
def test_gradients_and_terms_are_those_of_one_pass(
    folders: dict[str, str], encoder: dict[str, Any], losses: dict[str, Any], accumulation: int
) -> None:
    together = OneStep(folders, encoder | ONE_PASS, **losses)
    apart = OneStep(folders, encoder | SMALL_PASSES, accumulation, **losses)
    assert together.passes == 1
    assert apart.passes >= 6
    assert_same(together, apart)
    for modality in folders:
        assert any(g.any() for n, g in apart.gradients.items() if n.startswith(f"encoders.{modality}."))
    assert all(term > 0 for term in together.terms)


def test_one_modality_needs_one_forward_per_pass(folders: dict[str, str]) -> None:
    alone = {"audio": folders["audio"]}
    together, apart = (OneStep(alone, passes) for passes in (ONE_PASS, SMALL_PASSES))
    assert len(apart.means) == apart.passes > 4
    assert_same(together, apart)


def test_empty_passes_add_nothing(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a rank that needs fewer than another."""
    expected = OneStep(folders, SMALL_PASSES)
    divide: Callable[..., list[list[int]]] = step.divide
    monkeypatch.setattr(step, "divide", lambda *given: [*divide(*given), [], []])
    more = OneStep(folders, SMALL_PASSES)
    assert more.passes == expected.passes + 2
    assert_same(expected, more)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed again"])
def test_both_forwards_of_a_pass_draw_the_same_dropout(folders: dict[str, str], checkpointing: bool) -> None:
    """Else the gradients of the cross-modal terms would be taken at other means than the terms."""
    random = {"dropout": 0.3, "checkpointing": checkpointing, **SMALL_PASSES}
    made = OneStep(folders, random, model={"dropout": 0.3})
    first = [means for with_gradient, means in made.means if not with_gradient]
    second = [means for with_gradient, means in made.means if with_gradient]
    assert len(first) == len(second) == made.passes
    assert all(same_bits_or_close(x, y) for x, y in zip(first, second, strict=True))
    plain = OneStep(folders, SMALL_PASSES)
    assert not torch.allclose(plain.means[0][1][0], first[0][0]), "there is dropout"
    if checkpointing:  # the backward pass draws it again
        kept = OneStep(folders, random | {"checkpointing": False}, model={"dropout": 0.3})
        assert_same(kept, made)
