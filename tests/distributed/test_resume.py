"""A run that was stopped goes on as if it had not been: to the bit where the layout is the same.

Dropout is on, and SIGTERM reaches one rank only, in the middle of an epoch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks_support import run_ranks
from safetensors.torch import load_file
from support import (
    arguments,
    assert_like_runs,
    assert_same_results,
    assert_same_run,
    metrics,
    pack_corpus,
    status,
)

from awtpn.model.files import OPTIMIZER_FILE, STATE_FILE, WEIGHTS_FILE
from awtpn.run.position import load_position

BASE = {
    "model.shared_dim": 16,
    "model.dropout": 0.2,
    "loss.negative_group": 4,
    "optim.lr": 3e-3,
    "optim.warmup_steps": 2,
    "train.epochs": 3,
    "train.pictures": "never",
    "train.global_batch_size": 16,
    "train.log_every": 4,
}
STOP_AT, STEPS = 6, 12  # two steps into the second of three epochs

# Stopped and resumed at the same layout: ranks, settings.
SAME: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {"train.micro_batch_size": 8}),
    "ddp": (2, {}),
    "ddp, ema": (2, {"prototypes.update": "ema"}),
    "zero0, bf16": (1, {"train.zero_stage": 0, "train.precision": "bf16"}),
    "zero2, bf16, averages": (
        2,
        {"train.zero_stage": 2, "train.precision": "bf16", "train.ema_decay": 0.9},
    ),
    "zero3, averages": (2, {"train.zero_stage": 3, "train.micro_batch_size": 4, "train.ema_decay": 0.9}),
    "values, zero3": (2, {"train.zero_stage": 3, "data.target": "va", "train.best_by": "CCC"}),
    "labels, ddp, ema": (2, {"data.target": "labels", "prototypes.update": "ema"}),
}
# Parameters without a gradient: class means move these.
UNLEARNT = {name: {"tpn.prototypes"} if "ema" in name else set() for name in SAME}
# Stopped outside of the steps, and gone on with: the trainer's function in which it was, and at which step.
ELSEWHERE = {
    "ddp, making ready": ("initialize", 0),
    "ddp, validating": ("validate_epoch", STEPS),
    "ddp, testing": ("test", STEPS),
}
# Stopped under one engine, without dropout, and resumed under another: from, ranks, settings.
EXACT = {"model.dropout": 0.0, "train.ema_decay": 0.9}
STARTS: dict[str, tuple[int, dict[str, Any]]] = {
    "from ddp": (2, {}),
    "from zero2": (2, {"train.zero_stage": 2}),
}
OTHER: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ddp to zero1": ("from ddp", 2, {"train.zero_stage": 1}),
    "ddp to zero3": ("from ddp", 2, {"train.zero_stage": 3}),
    "ddp to one": ("from ddp", 1, {"train.micro_batch_size": 8}),
    "zero2 to ddp": ("from zero2", 2, {}),
    "zero2 to zero3": ("from zero2", 2, {"train.zero_stage": 3}),
    "zero2 to one": ("from zero2", 1, {}),
}

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def runs(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    targets = pack_corpus(root / "targets", targets=True)

    def job(run: str, settings: dict[str, Any], **extra: Any) -> dict[str, Any]:
        data = targets if "data.target" in settings else corpus
        whole = BASE | settings | {"data.train": data, "run.dir": root / run}
        return {"train": arguments(whole), **extra}

    # Two ranks first: what they leave, one rank takes up.
    for ranks in (2, 1):
        last = ranks - 1  # the main rank learns of the signal from another, where there is one
        stop = {"rank": last, "step": STOP_AT}
        jobs = []
        for name, (its_ranks, settings) in SAME.items():
            if its_ranks == ranks:
                jobs += [
                    job(f"{name}, undisturbed", settings),
                    job(name, settings, sigterm=stop),
                    # What a reader finds between the two.
                    job(name, settings, copy=[str(root / name), str(root / f"{name}, stopped")]),
                ]
        for name, (function, step) in ELSEWHERE.items() if ranks == 2 else ():
            jobs += [
                job(name, {}, sigterm={"rank": last, "step": step, "during": function}),
                job(name, {}, copy=[str(root / name), str(root / f"{name}, stopped")]),
            ]
        for name, (its_ranks, settings) in STARTS.items():
            if its_ranks == ranks:
                jobs.append(job(name, EXACT | settings, sigterm=stop))
        if ranks == 2:
            jobs.append(job("exact", EXACT))
        for name, (start, its_ranks, settings) in OTHER.items():
            if its_ranks == ranks:
                jobs.append(job(name, EXACT | settings, copy=[str(root / start), str(root / name)]))
        run_ranks(jobs, ranks, root)
    return root


@pytest.mark.parametrize("name", SAME)
def test_sigterm_leaves_a_checkpoint_and_says_so(runs: Path, name: str) -> None:
    stopped = runs / f"{name}, stopped"
    assert status(stopped)["status"] == "preempted"
    assert status(stopped)["step"] == STOP_AT
    position = load_position((stopped / "checkpoints" / "latest").resolve())
    assert (position.step, position.epoch, position.epoch_step) == (STOP_AT, 1, 2)
    assert [x["step"] for x in metrics(stopped)] == list(range(1, STOP_AT + 1))
    assert not (stopped / "results.json").exists()
    latest = stopped / "checkpoints" / "latest"
    weights, moments = load_file(latest / WEIGHTS_FILE), load_file(latest / OPTIMIZER_FILE)
    learnt = {name.rpartition(".")[0] for name in moments}
    assert (
        learnt
        == {name for name in weights if not name.endswith((".mean", ".std", ".spread"))} - UNLEARNT[name]
    )
    assert json.loads((latest / STATE_FILE).read_text())["adam_step"] == STOP_AT


@pytest.mark.parametrize("name", SAME)
def test_at_the_same_layout_it_goes_on_to_the_bit(runs: Path, name: str) -> None:
    assert status(runs / name)["status"] == "done"
    assert_same_run(runs / name, runs / f"{name}, undisturbed")
    assert_same_results(runs / name / "results.json", runs / f"{name}, undisturbed" / "results.json")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_signal_is_heeded_while_making_ready_validating_and_testing(runs: Path, name: str) -> None:
    stopped, (_, step) = runs / f"{name}, stopped", ELSEWHERE[name]
    assert (status(stopped)["status"], status(stopped)["step"]) == ("preempted", step)
    assert not (stopped / "results.json").exists()
    assert status(runs / name)["status"] == "done"
    assert_same_run(runs / name, runs / "ddp, undisturbed")
    assert_same_results(runs / name / "results.json", runs / "ddp, undisturbed" / "results.json")


@pytest.mark.parametrize("name", OTHER)
def test_on_another_engine_or_number_of_ranks_it_goes_on_to_rounding(runs: Path, name: str) -> None:
    assert status(runs / name)["status"] == "done"
    assert_like_runs(runs / name, runs / "exact")
    first = OTHER[name][0]
    assert metrics(runs / name)[:STOP_AT] == metrics(runs / first), "what was done is not done again"
