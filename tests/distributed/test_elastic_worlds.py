"""Elastic torchrun may start ranks that do not divide the global batch: they learn what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ranks_support import run_ranks
from support import arguments, assert_like_runs, free_port, run, status

TRAIN = "launch/train.py"
LAST_CALL_S = 1  # torchrun waits this long for further nodes, once there are enough
SETTINGS: dict[str, Any] = {
    "model.shared_dim": 16,
    "model.dropout": 0.0,
    "train.global_batch_size": 32,
    "train.max_steps": 6,
    "train.log_every": 1,
    "data.streams": 1,
}

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def alone(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    settings = SETTINGS | {"data.train": corpus, "run.dir": folder / "run"}
    run_ranks([{"train": arguments(settings)}], 1, folder)
    return folder / "run"


def elastic(ranks: int, nodes: str) -> list[str]:
    rendezvous = [
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{free_port()}",
        "--local-addr",
        "127.0.0.1",
    ]
    soon = ["--rdzv-conf", f"last_call_timeout={LAST_CALL_S}"]
    return ["torchrun", "--nnodes", nodes, "--nproc-per-node", str(ranks), *rendezvous, *soon, TRAIN]


@pytest.mark.parametrize(
    ("ranks", "changes", "told"),
    [
        (3, {}, "3 ranks x micro-batch of at most 11 x accumulation 1 for 32 utterances a step"),
        (
            3,
            {"train.micro_batch_size": 4, "train.zero_stage": 2},
            "3 ranks x micro-batch of at most 4 x accumulation 3 for 32",
        ),
    ],
    ids=["three ranks", "small micro-batches, ZeRO 2"],
)
def test_three_ranks_share_a_batch_of_32(
    ranks: int, changes: dict[str, Any], told: str, corpus: str, alone: Path, tmp_path: Path
) -> None:
    settings = arguments(SETTINGS | changes | {"data.train": corpus, "run.dir": tmp_path / "run"})
    code, log = run([*elastic(ranks, "1:2"), *settings], tmp_path / "log")
    assert code == 0, log
    assert told in log
    assert status(tmp_path / "run")["status"] == "done"
    assert_like_runs(tmp_path / "run", alone)


def test_a_fixed_number_of_nodes_is_refused(corpus: str, tmp_path: Path) -> None:
    settings = arguments(SETTINGS | {"data.train": corpus, "run.dir": tmp_path / "run"})
    code, log = run(["torchrun", "--standalone", "--nproc-per-node", "3", TRAIN, *settings], tmp_path / "log")
    assert code != 0
    assert "train.global_batch_size 32 does not divide over 3 ranks" in log
