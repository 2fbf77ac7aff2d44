"""Runs that train encoders, stopped, killed and disturbed: they go on as if nothing had happened.

Dropout and augmentation are on, where runs are compared to the bit. Signals reach one rank in the middle of
an epoch.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks_support import run_ranks
from safetensors.torch import load_file
from support import arguments, assert_like_runs, assert_same_results, assert_same_run, metrics, status
from training_encoders_support import BATCH, encoder_words

from awtpn.model.files import OPTIMIZER_FILE, STATE_FILE, WEIGHTS_FILE
from awtpn.run.position import load_position
from shards import FeatureStream

BASE: dict[str, Any] = {
    "data.streams": 1,
    "model.shared_dim": 16,
    "model.dropout": 0.2,
    "loss.negative_group": 4,
    "optim.lr": 3e-3,
    "optim.warmup_steps": 1,
    "train.epochs": 2,
    "train.global_batch_size": BATCH,
    "train.log_every": 1,
    "train.pictures": "never",
    "augment.noise_snr": "[5, 20]",
    "augment.flip": 0.5,
}
STOP_AT = 4  # of 6, one step into the second epoch
KILLED_AT = 6  # after a checkpoint of two steps before
FULL = {"tune": "full", "freeze_features": False, "checkpointing": True, "dropout": 0.1, "lr": 1e-3}
# Several groups of the optimizer, of which each engine keeps the moments in its own way.
LORA = {"audio_tune": "lora", "video_tune": "full", "video_lr_decay": 0.7, "dropout": 0.1, "lr": 1e-3}
AVERAGES = {"train.ema_decay": 0.9}
EXACT, NO_DROPOUT = LORA | {"dropout": 0.0}, {"model.dropout": 0.0} | AVERAGES

# Stopped and resumed at the same layout: settings of the encoders, and others.
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddp": (FULL, {}),
    "zero3, averages": (LORA, {"train.zero_stage": 3} | AVERAGES),
}
# Without dropout, stopped under ZeRO-2 and resumed elsewhere: ranks, settings.
OTHER: dict[str, tuple[int, dict[str, Any]]] = {
    "zero2 to zero3": (2, {"train.zero_stage": 3}),
    "zero2 to one": (1, {"train.micro_batch_size": 8}),
}
NAN_AT = 2
# On sound that is recorded and features of pictures, one of which is NaN.
NAN: dict[str, dict[str, Any]] = {"ddp": {}, "zero2": {"train.zero_stage": 2}}
SHORT = {"train.epochs": 1, "train.max_steps": 3}

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them; two ranks first: what they leave, one rank takes up."""
    root = tmp_path_factory.mktemp("resume")
    run_ranks([{"check": "make_recordings_and_encoders", "folder": str(root)}], 1, root)
    lost = cut_short(root / "shards")

    def job(run: str, encoders: dict[str, Any], settings: dict[str, Any], **extra: Any) -> dict[str, Any]:
        folders = {m: str(root / m) for m in ("audio", "video")[: 1 if run.startswith("nan") else 2]}
        words = encoder_words(folders, pass_seconds=8.0, pass_pictures=40, **encoders)
        whole = BASE | words | {"data.train": root / "both", "run.dir": root / run} | settings
        return {"train": arguments(whole)} | extra

    stop = {"rank": 1, "step": STOP_AT}
    jobs = [job("exact", EXACT, NO_DROPOUT)]
    jobs.append(job("from zero2", EXACT, NO_DROPOUT | {"train.zero_stage": 2}, sigterm=stop))
    for name, of in SAME.items():
        jobs += [
            job(f"{name}, undisturbed", *of),
            job(name, *of, sigterm=stop),
            # What a reader finds between the two.
            job(name, *of, copy=[str(root / name), str(root / f"{name}, stopped")]),
        ]
    often = {"train.checkpoint_every": 2}
    jobs.append(job("killed", FULL, often, sigkill={"rank": 1, "step": KILLED_AT}))
    jobs.append(job("killed", FULL, often, copy=[str(root / "killed"), str(root / "killed, then")]))
    poison = {"rank": 1, "step": NAN_AT}
    mixed = {"data.train": root / "mixed", **SHORT, "augment.flip": 0.0}
    jobs += [job(f"nan, {name}", FULL, mixed | of, nan=poison) for name, of in NAN.items()]
    damaged = {"data.train": root / "shards", "data.damaged_budget": len(lost), **SHORT}
    jobs.append(job("damaged, 2 ranks", EXACT, NO_DROPOUT | damaged))
    for ranks in (2, 1):
        jobs += [
            job(name, EXACT, NO_DROPOUT | settings, copy=[str(root / "from zero2"), str(root / name)])
            for name, (its_ranks, settings) in OTHER.items()
            if its_ranks == ranks
        ]
        if ranks == 1:
            jobs.append(job("damaged, 1 ranks", EXACT, NO_DROPOUT | damaged))
        run_ranks(jobs, ranks, root)
        jobs = []
    return root


def cut_short(dataset: Path) -> list[str]:
    """Damage a shard of the training data; the names of its utterances."""
    entry = FeatureStream(str(dataset)).manifest.splits["train"].shards[1]
    os.truncate(dataset / entry.name, 1000)
    with np.load(dataset / entry.index) as index:
        return sorted(index["key"].tolist())


@pytest.mark.parametrize("name", SAME)
def test_a_signal_leaves_a_checkpoint_of_what_is_trained(runs: Path, name: str) -> None:
    stopped = runs / f"{name}, stopped"
    assert (status(stopped)["status"], status(stopped)["step"]) == ("preempted", STOP_AT)
    latest = (stopped / "checkpoints" / "latest").resolve()
    assert load_position(latest).step == STOP_AT
    weights, moments = load_file(latest / WEIGHTS_FILE), load_file(latest / OPTIMIZER_FILE)
    learnt = {n.rpartition(".")[0] for n in moments}
    assert learnt == {n for n in weights if not n.endswith((".mean", ".std", ".spread"))}
    of_audio = [n for n in learnt if n.startswith("encoders.audio.")]
    assert of_audio
    assert all("lora_" in n for n in of_audio) == (name != "ddp"), "not its base model"
    assert json.loads((latest / STATE_FILE).read_text())["adam_step"] == STOP_AT


@pytest.mark.parametrize("name", SAME)
def test_at_the_same_layout_it_goes_on_to_the_bit(runs: Path, name: str) -> None:
    assert status(runs / name)["status"] == "done"
    assert_same_run(runs / name, runs / f"{name}, undisturbed")
    assert_same_results(runs / name / "results.json", runs / f"{name}, undisturbed" / "results.json")


@pytest.mark.parametrize("name", OTHER)
def test_on_another_engine_it_goes_on_to_rounding(runs: Path, name: str) -> None:
    assert status(runs / name)["status"] == "done"
    assert_like_runs(runs / name, runs / "exact")


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(runs: Path) -> None:
    left = runs / "killed, then"
    # The other rank says that it failed, if it lives until its connection breaks.
    assert status(left)["status"] in ("running", "failed")
    assert load_position((left / "checkpoints" / "latest").resolve()).step == KILLED_AT - 2
    assert status(runs / "killed")["status"] == "done"
    assert_same_run(runs / "killed", runs / "ddp, undisturbed")


@pytest.mark.parametrize("name", NAN)
def test_a_nan_of_one_utterance_is_left_out_and_named(runs: Path, name: str) -> None:
    """Each engine leaves the step out on all ranks; the others learn as without it."""
    lines = metrics(runs / f"nan, {name}")
    assert [x["step"] for x in lines if x["skipped"]] == [NAN_AT]
    batches = FeatureStream(str(runs / "mixed"), global_batch_size=BATCH, rank=1, world_size=2, streams=1)
    poisoned = list(batches.epoch(0))[NAN_AT - 1]
    there = poisoned.features["video"].host_lengths
    key = next(key for key, steps in zip(poisoned.key, there, strict=True) if steps)
    assert re.findall(r"because of: (.*)", (runs / "rank-0-of-2.log").read_text()) == [
        f"{key} (rank 1)"
    ] * len(NAN)
    ours, theirs = (
        [x["loss"] for x in metrics(runs / f"nan, {of}") if not x["skipped"]] for of in (name, "ddp")
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_damaged_shard_is_left_out_alike_by_any_ranks(runs: Path) -> None:
    one, two = (runs / f"damaged, {ranks} ranks" for ranks in (1, 2))
    assert_like_runs(two, one)
    with np.load(
        runs / "shards" / FeatureStream(str(runs / "shards")).manifest.splits["train"].shards[1].index
    ) as index:
        assert status(two)["damaged"] == status(one)["damaged"] == len(index["key"]) > 0
