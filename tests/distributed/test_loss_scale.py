"""Half precision's loss scale is part of a run: stopped in the midst of its search, fp16 goes on to the bit.

DeepSpeed computes fp16 on CPUs that multiply half floats. Its first scale here is far too large, so that
steps overflow, and after two good steps it doubles; both happen before and after the stop.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks_support import run_ranks
from support import arguments, assert_same_run, metrics, status

from awtpn.distributed.engines import ENGINES
from awtpn.model.files import STATE_FILE

SETTINGS = {
    "model.shared_dim": 16,
    "model.dropout": 0.2,
    "loss.negative_group": 4,
    "train.precision": "fp16",
    "train.epochs": 4,
    "train.pictures": "never",
    "train.global_batch_size": 16,
    "train.log_every": 4,
}
STOP_AT = 7
STAGES = (2, 3)
SEARCH = {
    "enabled": True,
    "initial_scale_power": 20,
    "loss_scale_window": 2,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
}
needs_half = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="DeepSpeed computes no fp16 on this CPU"
)

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def runs(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loss-scale")
    jobs = []
    for stage in STAGES:
        file = root / f"zero{stage}.json"
        file.write_text(json.dumps({"fp16": SEARCH, "zero_optimization": {"stage": stage}}))

        def job(run: str, file: Path = file, **extra: Any) -> dict[str, Any]:
            settings = SETTINGS | {"data.train": corpus, "run.dir": root / run, "deepspeed": file}
            return {"train": arguments(settings), **extra}

        jobs += [
            job(f"zero{stage}, undisturbed"),
            job(f"zero{stage}", sigterm={"rank": 1, "step": STOP_AT}),
            job(f"zero{stage}", copy=[str(root / f"zero{stage}"), str(root / f"zero{stage}, stopped")]),
        ]
    run_ranks(jobs, 2, root)
    return root


def saved_scale(run: Path) -> dict[str, float]:
    state = json.loads((run / "checkpoints" / "latest" / STATE_FILE).read_text())
    return state["loss_scale"]  # type: ignore[no-any-return]


@needs_half
@pytest.mark.parametrize("stage", STAGES)
def test_fp16_goes_on_to_the_bit(runs: Path, stage: int) -> None:
    assert status(runs / f"zero{stage}, stopped")["step"] == STOP_AT
    assert_same_run(runs / f"zero{stage}", runs / f"zero{stage}, undisturbed")
    skipped = [line["step"] for line in metrics(runs / f"zero{stage}") if line["skipped"]]
    assert min(skipped) <= STOP_AT < max(skipped), "the scale must still be on its way when the run stops"
    assert saved_scale(runs / f"zero{stage}, stopped")["scale"] < 2**20
    end = saved_scale(runs / f"zero{stage}")
    assert end == saved_scale(runs / f"zero{stage}, undisturbed")
    assert end != saved_scale(runs / f"zero{stage}, stopped")


def test_a_scale_moves_between_torch_and_deepspeed() -> None:
    """torch.amp's scaler, as Accelerate holds it, and that of DeepSpeed's stages 1 to 3."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    single, zero2 = ENGINES["none"], ENGINES["zero2"]
    ours = torch.nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    accelerated: Any = SimpleNamespace(scaler=scaler)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    for poison in (1.0, float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(ours(torch.full((1, 1), poison)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    found = single.loss_scale(ours, accelerated)
    assert found == {"scale": 512.0, "steady": 2}, "halved once, then two good steps"

    search = DynamicLossScaler(2.0**16, 1000, 1, delayed_shift=2, consecutive_hysteresis=False)
    wrapped: Any = SimpleNamespace(optimizer=SimpleNamespace(loss_scaler=search))
    unscaled: Any = SimpleNamespace(scaler=None)
    zero2.set_loss_scale(wrapped, unscaled, found)
    assert zero2.loss_scale(wrapped, unscaled) == found | {"hysteresis": 2}

    fresh: Any = SimpleNamespace(scaler=torch.amp.GradScaler("cpu", growth_interval=3))
    single.set_loss_scale(ours, fresh, zero2.loss_scale(wrapped, unscaled))
    assert single.loss_scale(ours, fresh) == found
    fresh.scaler.scale(torch.ones(()))
    assert fresh.scaler.get_scale() == 512.0, "the scale that losses are multiplied by"

    # Precisions without a scale neither save nor take one.
    for engine in (single, zero2):
        assert engine.loss_scale(ours, optimizer) == {}
        engine.set_loss_scale(ours, optimizer, found)
