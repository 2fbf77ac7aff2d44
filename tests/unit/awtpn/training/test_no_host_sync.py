"""An optimizer step never waits for the device: it runs through on one that has no values to give.

On the meta device tensors have shapes alone, so a step that needs a value of one fails there. What would wait
without needing a value (a copy that blocks) is refused by `NoWaiting`. Every device but a CPU takes the same
ways through the model; tests/gpu asks CUDA itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from allocations import autocast_ignores_meta
from step_support import make_run
from support import CLASSES, DIMS, batch, utterances
from torch import Tensor
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from awtpn.config.schema import Config
from awtpn.config.settings import TrainConfig
from awtpn.distributed.engines import ENGINES
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import LossConfig, OptimConfig, PrototypesConfig
from awtpn.metrics.classification import count_confusion
from awtpn.model import attention
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.training.run_state import Run
from awtpn.training.setup import measure_norms
from awtpn.training.step import train_step

META = torch.device("meta")
LENGTHS = [(5, 3), (4, 0), (2, 2), (7, 1), (0, 3), (30, 12), (6, 6), (3, 5)]
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


class Waits(AssertionError):
    """The host waited for the device."""


class _Operations(TorchDispatchMode):
    """Operations that read values back, or copy between host and device and wait for it."""

    READS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        on_device = any(t.device == META for t in tensors)
        if on_device and name in self.READS:
            raise Waits(f"{func} reads a value")
        if on_device and name.startswith("index") and any(t.dtype == torch.bool for t in tensors[1:]):
            raise Waits(f"{func} counts the places of a mask")
        if name == "_to_copy" and kwargs.get("device", args[0].device) != args[0].device:
            if args[0].device == META or not kwargs.get("non_blocking"):
                raise Waits(f"{func} waits for a copy from {args[0].device} to {kwargs['device']}")
        elif name == "copy_" and args[0].device != args[1].device and not (args[2:] and args[2]):
            raise Waits(f"{func} waits for a copy from {args[1].device} to {args[0].device}")
        return func(*args, **kwargs)


class _Factories(TorchFunctionMode):
    """Tensors made on the device from numbers of the host: CUDA copies those and waits."""

    FROM_NUMBERS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.FROM_NUMBERS and result.device == META:
            given = args[-1] if func is not Tensor.new_tensor else args[1]
            if not (isinstance(given, Tensor) and given.device == META):
                raise Waits(f"{func} copies numbers to the device")
        return result


def no_waiting() -> ExitStack:
    """Within it, waiting for the meta device raises Waits."""
    stack = ExitStack()
    stack.enter_context(autocast_ignores_meta())
    stack.enter_context(_Operations())
    stack.enter_context(_Factories())
    return stack


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: bool(x[0] > 0),
        lambda x: float(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.where(x > 0),
        lambda x: torch.bincount(x.long(), minlength=9),
        lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
        lambda x: torch.zeros(3).to(META),
        lambda x: torch.tensor([1.0, 2.0], device=META),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: torch.as_tensor(np.zeros(3), device=META),
    ],
)
def test_waiting_is_noticed(wait: Callable[[Tensor], Any]) -> None:
    x = torch.empty(3, device=META)
    with no_waiting(), pytest.raises((Waits, RuntimeError, TypeError, NotImplementedError)):
        wait(x)


def test_what_does_not_wait_passes() -> None:
    host = torch.ones(3)
    with no_waiting():
        device = host.to(META, non_blocking=True).requires_grad_()
        (device * 2 + torch.where(device > 0, device, 0.0))[torch.ones_like(device).long()].sum().backward()
        assert torch.tensor([1.0])[0].item() == host[0].item() == 1.0


@pytest.fixture(autouse=True)
def fused_optimizer_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW's fused step has shapes for the meta device, but its list of devices leaves that out."""
    supported = optimizer._get_fused_kernels_supported_devices()
    monkeypatch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported, "meta"])


STEPS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "fused attention": {"form": "fused"},
    "bfloat16 weights": {"dtype": torch.bfloat16},
    "bfloat16 weights, fused attention": {"dtype": torch.bfloat16, "form": "fused"},
    "negatives of the whole batch": {"loss": LossConfig(negatives="global")},
    "published forms": {
        "loss": LossConfig(negatives="reference", align_form="reference", inter_form="reference")
    },
    "moving class means": {"prototypes": PrototypesConfig(update="ema")},
    "several prototypes": {
        "model": ModelConfig(prototypes_per_class=2),
        "prototypes": PrototypesConfig(update="ema"),
    },
    "balanced classes": {"loss": LossConfig(class_weights="balanced")},
    "accumulation": {"accumulation": 2, "loss": LossConfig(negative_group=4)},
    "small micro-batches": {"accumulation": 4},
    "one modality": {"model": ModelConfig(modalities=["audio"])},
    "hidden modalities": {"model": ModelConfig(modality_dropout=0.5)},
    "plain averages": {"model": ModelConfig(awm="uniform")},
    "wide": {"model": ModelConfig(shared_dim=1024, distance_scale_audio=1e-3, distance_scale_video=1e-3)},
    "no clipping": {"optim": OptimConfig(grad_clip=0.0)},
    "averaged weights": {"train": TrainConfig(ema_decay=0.99)},
}


@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS.keys())
def test_a_step_never_waits_for_the_device(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dict(settings)
    dtype, form = settings.pop("dtype", torch.float32), settings.pop("form", "bucketed")
    launched = replace_launches(monkeypatch, form)
    run = meta_run(dtype, settings.pop("accumulation", 1), **settings)
    of = batch(utterances(LENGTHS, dtype=torch.float16), LABELS)
    with no_waiting():
        train_step(run, of.to(META, non_blocking=True), data_wait=0.0)
        train_step(run, of.to(META, non_blocking=True), data_wait=0.0)
    assert [figures["terms"].device for figures in run.pending] == [META, META]
    assert run.pending[0]["grad_norm"].device == run.pending[0]["nonfinite"].device == META
    # Forward and both halves of backward, for two modalities and two steps.
    assert len(launched) == (12 if form == "fused" else 0)


def test_norms_of_parts_never_wait() -> None:
    run = meta_run(torch.float32, 1)
    run.norms = measure_norms(ENGINES["none"], run.model, run.optimizer)
    run.config.track.norms_every = 2
    of = batch(utterances(LENGTHS, dtype=torch.float16), LABELS)
    with no_waiting():
        for _ in range(2):
            train_step(run, of.to(META, non_blocking=True), data_wait=0.0)
            run.position.step += 1
    first, second = (figures["squares"] for figures in run.pending)
    assert first is None
    assert (second.device, second.shape) == (META, (2, len(run.norms.parts)))


def test_a_batch_without_utterances_never_waits() -> None:
    run = meta_run(torch.float32, 1)
    of = batch([], [], num_places=8)
    with no_waiting():
        train_step(run, of.to(META, non_blocking=True), data_wait=0.0)
    for name, parameter in run.model.named_parameters():
        assert run.optimizer.state[parameter], f"{name} has no gradient, though it has one on other ranks"


def test_an_evaluated_batch_is_counted_without_waiting() -> None:
    label, predicted = (torch.tensor(LABELS).to(META, non_blocking=True) for _ in range(2))
    with no_waiting():
        counts = count_confusion(label, predicted, len(CLASSES))
    assert (counts.shape, counts.dtype) == ((3, 3), torch.int64)


def replace_launches(monkeypatch: pytest.MonkeyPatch, form: str) -> list[str]:
    """Have the model take `form`, and note what it launches: kernels need a GPU."""
    launched: list[str] = []
    monkeypatch.setattr(attention, "choose_form", lambda *_, **__: form)
    if form == "fused":
        fused = pytest.importorskip("awtpn.model.compute.attention_triton")
        monkeypatch.setattr(fused, "launch", lambda kernel, *_: launched.append(kernel.fn.__name__))
    return launched


def meta_run(dtype: torch.dtype, accumulation: int, **settings: Any) -> Run:
    """A run on the meta device, whose engine does what Accelerate does for one process."""
    config = Config(**settings)
    model = AWTPN(config.model, DIMS, CLASSES, config.prototypes.update == "gradient").to(dtype).to(META)
    accelerator = SimpleNamespace(
        backward=lambda loss: loss.backward(),
        unscale_gradients=lambda: None,
        no_sync=lambda model: ExitStack(),
        sync_gradients=True,
    )
    optimizer = make_optimizer(model, config.optim, config.train.ema_decay)
    return make_run(config, model, optimizer, accelerator, META, len(LENGTHS), accumulation)
