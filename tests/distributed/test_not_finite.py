"""A NaN in one rank's batch: every engine leaves the step out on all ranks, and goes on as the others do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks_support import run_ranks
from support import arguments, metrics, status, weights

STEP = 5
BASE: dict[str, Any] = {
    "model.shared_dim": 16,
    "model.dropout": 0.0,
    "loss.negative_group": 4,
    "optim.lr": 3e-3,
    "train.epochs": 2,
    "train.pictures": "never",
    "train.global_batch_size": 16,
}
BF16 = {"train.precision": "bf16"}
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero2": {"train.zero_stage": 2},
    "zero3": {"train.zero_stage": 3},
    "ddp, bf16": BF16,
    "zero2, bf16": {"train.zero_stage": 2} | BF16,
    "zero3, bf16": {"train.zero_stage": 3} | BF16,
}

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def runs(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("not-finite")
    run_ranks(
        [
            {
                "train": arguments(BASE | settings | {"data.train": corpus, "run.dir": root / name}),
                "nan": {"rank": 1, "step": STEP},
            }
            for name, settings in ENGINES.items()
        ],
        2,
        root,
    )
    return root


@pytest.mark.parametrize("name", ENGINES)
def test_the_step_is_left_out_on_all_ranks(runs: Path, name: str) -> None:
    assert status(runs / name)["status"] == "done"
    assert [line["step"] for line in metrics(runs / name) if line["skipped"]] == [STEP]
    assert all(tensor.isfinite().all() for tensor in weights(runs / name).values())


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_what_follows_is_the_same_under_every_engine(runs: Path, name: str) -> None:
    learnt = [line for line in metrics(runs / name) if not line["skipped"]]
    expected = [line for line in metrics(runs / "ddp") if not line["skipped"]]
    assert [line["loss"] for line in learnt] == pytest.approx([line["loss"] for line in expected], rel=1e-5)
    ours, theirs = weights(runs / name), weights(runs / "ddp")
    for tensor in ours:
        assert ours[tensor] == pytest.approx(theirs[tensor], abs=1e-4), tensor
