"""Layout equivalence: ranks, accumulation and engine change nothing that a run sees or learns.

One small corpus, trained in float32 without dropout. Its last batch of an epoch has 4 utterances for 16
places, all of which belong to the first rank, and some utterances miss a modality.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks_support import run_ranks
from safetensors.torch import load_file
from support import THREE_DIMS, arguments, assert_like_runs, metrics, pack_corpus, status
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awtpn.model.files import OPTIMIZER_FILE, STATE_FILE, WEIGHTS_FILE
from shards import FeatureStream

EPOCHS = 2  # so that the partial batch, the validation and the checkpoint come in the middle, too
BASE = {
    "data.streams": 1,  # the empty places come last, so the second rank has nothing in the last step
    "model.shared_dim": 16,
    "model.dropout": 0.0,
    "loss.negative_group": 2,  # divides the smallest micro-batch
    "loss.margin_contrast": 5.0,
    "optim.lr": 3e-3,
    "optim.warmup_steps": 2,
    "train.epochs": EPOCHS,
    "train.pictures": "never",
    "train.global_batch_size": 16,
    "train.log_every": 5,
    "prototypes.check_every": 3,
}

# What is trained: changes to BASE.
LESSONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"prototypes.update": "ema", "prototypes.init": "data", "prototypes.ema_decay": 0.8},
    "clusters": {
        "loss.negative_group": 4,
        "prototypes.init": "data",
        "model.prototypes_per_class": 2,
        "loss.class_weights": "balanced",
        "data.select.train": "{fold: [0, 1, 2]}",  # statistics are then summed over ranks
        "train.ema_decay": 0.8,
    },
    "global negatives": {"loss.negatives": "global"},
    "global, accumulated": {"loss.negatives": "global"},
    "groups across": {"loss.negative_group": 8, "train.ema_decay": 0.8},  # micro-batches are smaller
    "published": {"loss.align_form": "reference", "loss.inter_form": "reference", "optim.grad_clip": 0},
    "video alone": {"model.modalities": "[video]", "model.awm": "uniform"},
    "three modalities": {"model.modalities": "[audio, text, video]", "model.modality_dropout": 0.2},
    "three, global": {
        "model.modalities": "[audio, text, video]",
        "loss.negatives": "global",
        "loss.pair_weights": "{audio-text: 2}",
        "prototypes.update": "ema",
    },
    "values": {"data.target": "va", "loss.value_error": "absolute", "prototypes.init": "data"},
    "values, linear": {"data.target": "valence", "task.head": "linear", "model.prototypes_per_class": 2},
    "values, ema": {"data.target": "va", "prototypes.update": "ema", "loss.negatives": "global"},
    "labels": {
        "data.target": "labels",
        "loss.class_weights": "balanced",
        "loss.focal_gamma": 2.0,
        "loss.label_smoothing": 0.1,
    },
    "labels, ema": {"data.target": "loud,bright", "task.type": "multilabel", "prototypes.update": "ema"},
    "focal": {"loss.class_weights": "balanced", "loss.focal_gamma": 2.0, "loss.label_smoothing": 0.1},
    "gru": {"model.name": "gru", "prototypes.init": "data"},  # a baseline ignores the settings of prototypes
    "int8": {"prototypes.init": "data", "model.modality_dropout": 0.2},
    "damage": {"prototypes.init": "data"},  # of a corpus with a shard cut short, within the budget
}

# How: (ranks, accumulation, ZeRO stage or None).
Layout = tuple[int, int, int | None]
ALONE: Layout = (1, 1, None)
LAYOUTS: dict[str, list[Layout]] = {
    "plain": [(1, 2, None), (1, 4, None), (1, 1, 2), (2, 1, None), (2, 2, None), (2, 4, 1)]
    + [(4, 1, None), (4, 1, 2), (4, 2, 3)]
    + [(2, 1, stage) for stage in (0, 1, 2, 3)]
    + [(2, 2, stage) for stage in (1, 2, 3)],
    "ema": [(4, 2, None), (1, 2, None), (2, 1, None), (2, 2, None), (2, 1, 2), (2, 2, 3)],
    "clusters": [(2, 1, None), (2, 2, 2), (2, 1, 3)],
    "global negatives": [(4, 1, None), (2, 1, None), (2, 1, 2), (2, 1, 3)],
    "global, accumulated": [(1, 4, None), (2, 2, None), (4, 4, None), (2, 2, 2), (2, 4, 3)],
    "groups across": [(1, 16, None), (4, 1, None), (4, 4, None), (2, 8, 1), (2, 4, 2), (2, 4, 3)],
    "published": [(2, 1, 2), (2, 1, 0)],
    "video alone": [(2, 2, None), (2, 1, 3)],
    "three modalities": [(1, 4, None), (2, 1, None), (2, 2, 2), (4, 1, None), (2, 1, 3)],
    "three, global": [(2, 1, None), (4, 1, None), (2, 1, 3), (2, 4, 2)],
    "values": [(1, 4, None), (2, 2, None), (4, 1, None), (2, 1, 1), (2, 1, 2), (2, 2, 3)],
    "values, linear": [(2, 1, None), (2, 1, 3)],
    "values, ema": [(2, 1, None), (4, 1, None), (2, 1, 2)],
    "labels": [(1, 4, None), (2, 2, None), (4, 1, None), (2, 1, 1), (2, 1, 2), (2, 2, 3)],
    "labels, ema": [(2, 2, None), (2, 1, 3)],
    "focal": [(2, 2, None)],
    "gru": [(2, 2, 3)],
    "int8": [(2, 2, None), (2, 1, 3)],
    "damage": [(2, 1, None)],
}
# Lessons on a corpus of three modalities, of which some utterances lack one or two.
THREE = ("three modalities", "three, global")
# Lessons whose target is not the class.
OTHER_TASKS = tuple(lesson for lesson in LESSONS if lesson.startswith(("values", "labels")))
# Whose pictures are drawn: prototypes on one rank, and partitioned over two.
DRAWN: list[tuple[str, Layout]] = [("clusters", ALONE), ("clusters", (2, 1, 3))]
CASES = [(lesson, layout) for lesson, layouts in LAYOUTS.items() for layout in layouts]


def name(lesson: str, layout: Layout) -> str:
    ranks, accumulation, stage = layout
    engine = "" if stage is None else f", ZeRO {stage}"
    return f"{lesson}, {ranks} ranks, accumulation {accumulation}{engine}"


pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def damaged(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """The corpus with a shard cut short, and the names of its utterances."""
    folder = tmp_path_factory.mktemp("damaged") / "corpus"
    shutil.copytree(corpus, folder)
    entry = FeatureStream(str(folder)).manifest.splits["train"].shards[1]
    os.truncate(folder / entry.name, 1000)
    with np.load(folder / entry.index) as index:
        return str(folder), sorted(index["key"].tolist())


@pytest.fixture(scope="module")
def runs(corpus: str, damaged: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, by three launches."""
    root = tmp_path_factory.mktemp("layouts")
    three = pack_corpus(root / "three", dims=THREE_DIMS)
    targets = pack_corpus(root / "targets", targets=True)
    int8 = pack_corpus(root / "int8", dtype="int8")
    # Parameters of fewer elements are never partitioned by ZeRO-3, and these are all small.
    deepspeed = root / "zero3.json"
    deepspeed.write_text(
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    everything = [(lesson, ALONE) for lesson in LESSONS] + CASES
    for ranks in (1, 2, 4):
        jobs: list[dict[str, Any]] = []
        for lesson, layout in everything:
            _, accumulation, stage = layout
            if layout[0] != ranks:
                continue
            settings = BASE | LESSONS[lesson] | {"data.train": corpus, "run.dir": root / name(lesson, layout)}
            if lesson in THREE:
                settings["data.train"] = three
            if lesson in OTHER_TASKS:
                settings["data.train"] = targets
            if lesson == "int8":
                settings["data.train"] = int8
            if lesson == "damage":
                url, keys = damaged
                settings |= {"data.train": url, "data.damaged_budget": len(keys)}
                beyond = {"data.damaged_budget": len(keys) - 1, "run.dir": root / f"beyond, {ranks} ranks"}
                check = "damage_beyond_the_budget_stops_all"
                jobs.append({"check": check, "train": arguments(settings | beyond)})
            if (lesson, layout) in DRAWN:
                settings["train.pictures"] = "always"
            if accumulation > 1:
                settings["train.micro_batch_size"] = 16 // ranks // accumulation
            if stage == 3:
                settings["deepspeed"] = deepspeed
            elif stage is not None:
                settings["train.zero_stage"] = stage
            jobs.append({"train": arguments(settings)})
        run_ranks(jobs, ranks, root)
    return root


@pytest.mark.parametrize(("lesson", "layout"), CASES, ids=[name(*case) for case in CASES])
def test_a_layout_learns_what_one_process_does(runs: Path, lesson: str, layout: Layout) -> None:
    run, alone = runs / name(lesson, layout), runs / name(lesson, ALONE)
    assert status(run)["status"] == "done"
    assert_like_runs(run, alone)


@pytest.mark.parametrize("layout", [ALONE, *LAYOUTS["clusters"]], ids=str)
def test_averaged_weights_are_validated_and_saved(runs: Path, layout: Layout) -> None:
    """What the best checkpoint was chosen by, with weights in the engine's form, is what its file gives."""
    run = runs / name("clusters", layout)
    position = json.loads((run / "checkpoints" / "best" / STATE_FILE).read_text())["position"]
    saved = json.loads((run / "results.json").read_text())["val"]
    assert saved["w-F1"] == position["best_value"]
    assert saved["cross-entropy"] == pytest.approx(position["best_tie"], rel=1e-5)
    latest = run / "checkpoints" / "latest"
    weights, state = load_file(latest / WEIGHTS_FILE), load_file(latest / OPTIMIZER_FILE)
    raw = {key.removesuffix(".raw"): tensor for key, tensor in state.items() if key.endswith(".raw")}
    buffers = (".mean", ".std", ".spread")  # statistics of the data
    assert raw.keys() == {key for key in weights if not key.endswith(buffers)}
    assert all(0 < (weights[key] - tensor).abs().max() < 0.1 for key, tensor in raw.items())


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_comparison_is_worth_something(runs: Path, lesson: str) -> None:
    """What is compared moves: every step is there, the model learns, and each lesson differs."""
    run = runs / name(lesson, ALONE)
    lines = metrics(run)
    per_epoch = 3 if lesson == "clusters" else 4
    assert [x["step"] for x in lines] == list(range(1, EPOCHS * per_epoch + 1))
    assert len({x["fingerprint"] for x in lines}) == len(lines), "no two steps alike"
    # An epoch sees the same utterances as another; contrast may grow while the others fall.
    falls = "mse" if lesson == "values, linear" else "ce"
    first, last = (sum(x[falls] for x in lines if x["epoch"] == epoch) for epoch in (0, EPOCHS - 1))
    assert last < first
    active = {"video alone": ("align", "ce", "mse"), "gru": ("ce",)}.get(
        lesson, ("align", "intra", "inter", "contrast", falls)
    )
    assert all(lines[0][term] > 0 for term in active)
    if lesson not in (
        "plain",
        "clusters",
        "video alone",
        "damage",
        "int8",
        *THREE,
        *OTHER_TASKS,
    ):  # those see other data
        plain = metrics(runs / name("plain", ALONE))
        assert [x["fingerprint"] for x in plain] == [x["fingerprint"] for x in lines]
        assert lines[-2]["loss"] != pytest.approx(plain[-2]["loss"], rel=1e-3), "the settings matter"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_damaged_shard_is_counted_once_and_told_of_once(
    runs: Path, damaged: tuple[str, list[str]], ranks: int
) -> None:
    run, (url, keys) = runs / name("damage", (ranks, 1, None)), damaged
    lines = metrics(run)
    for epoch in range(EPOCHS):
        assert sum(line["damaged"] for line in lines if line["epoch"] == epoch) == len(keys)
    assert status(run)["damaged"] == len(keys)
    position = json.loads((run / "checkpoints" / "latest" / STATE_FILE).read_text())["position"]
    assert position["damaged"] == keys
    assert (runs / f"rank-0-of-{ranks}.log").read_text().count("left out: train-") == 1

    stopped = status(runs / f"beyond, {ranks} ranks")
    assert stopped["status"] == "failed"
    assert f"more than data.damaged_budget {len(keys) - 1}:" in stopped["error"]
    assert f"`awtpn shards verify {url}`" in stopped["error"]
    assert any(key in stopped["error"] for key in keys)


def test_what_is_shown_does_not_depend_on_the_layout(runs: Path) -> None:
    alone, partitioned = (runs / name(*case) / "tensorboard" for case in DRAWN)
    ours, theirs = (EventAccumulator(str(folder)).Reload() for folder in (alone, partitioned))
    shown = ours.Tags()["images"]
    assert {"val/confusion", "val/weights_over_time", "prototypes/distances"} <= set(shown)
    assert set(theirs.Tags()["images"]) == set(shown)
    for tag in ("prototypes/norm", "prototypes/nearest_class", "prototypes/movement", "val/w-F1"):
        values = [[event.value for event in board.Scalars(tag)] for board in (ours, theirs)]
        assert len(values[0]) == EPOCHS
        assert values[0] == pytest.approx(values[1], abs=1e-4)
        assert len(set(values[0])) > 1 or tag == "val/w-F1", "they move"
    for file in ("last", "best_test"):
        tables = [(folder / "projector" / f"{file}.tsv").read_text() for folder in (alone, partitioned)]
        assert tables[0] == tables[1]
        one, other = (np.fromfile(f / "projector" / f"{file}.bytes", "<f4") for f in (alone, partitioned))
        np.testing.assert_allclose(one, other, atol=1e-3)
