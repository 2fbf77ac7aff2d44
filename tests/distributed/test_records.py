"""What a run records besides its losses: the same norms under every engine, traces, and runs at trackers."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ranks_support import run_ranks
from support import arguments, metrics, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trackers_support import offline, points_at_mlflow, points_at_wandb, run_ids

PARTS = ("branch_audio", "branch_video", "head", "prototypes")
BASE = {
    "data.streams": 1,  # the empty places come last, so the second rank has nothing in the last step
    "model.shared_dim": 16,
    "model.dropout": 0.0,
    "loss.negative_group": 2,
    "optim.grad_clip": 0.5,  # clips every step
    "train.ema_decay": 0.0,  # checkpoints have the weights themselves
    "train.epochs": 2,
    "train.pictures": "never",
    "train.global_batch_size": 16,
    "train.log_every": 3,
    "train.validate_every": 2,
    "track.norms_every": 4,
}
STEPS = 8
ALONE = "one process"
# Changes to BASE, by the number of ranks.
ENGINES: dict[int, dict[str, dict[str, Any]]] = {
    1: {ALONE: {}, "accumulation": {"train.micro_batch_size": 4}, "alone, ZeRO 2": {"train.zero_stage": 2}},
    2: {
        "DDP": {},
        "ZeRO 0": {"train.zero_stage": 0},
        "ZeRO 1": {"train.zero_stage": 1},
        "ZeRO 2": {"train.zero_stage": 2, "train.micro_batch_size": 4},
        "ZeRO 2, optimizer on the host": {"deepspeed": "offload.json"},
        "ZeRO 3": {"deepspeed": "zero3.json"},
    },
}
OTHERS = [name for names in ENGINES.values() for name in names if name != ALONE]
CHECKS = {ALONE: "no_service_is_imported", "ZeRO 2": "no_compiler_is_imported"}
PROFILED = {ALONE: 1, "DDP": 2, "ZeRO 3": 2}  # and their ranks
WINDOW = (3, 4)
TRACKERS = all(map(find_spec, ("wandb", "mlflow")))

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


@pytest.fixture(scope="module")
def runs(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("records")
    # Parameters of fewer elements are never partitioned by ZeRO-3, and these are all small.
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    (root / "zero3.json").write_text(json.dumps({"zero_optimization": zero}))
    offload = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    settings = {"zero_optimization": offload, "zero_force_ds_cpu_optimizer": False}
    (root / "offload.json").write_text(json.dumps(settings))
    for ranks, engines in ENGINES.items():
        jobs: list[dict[str, Any]] = []
        for name, changes in engines.items():
            given = BASE | changes | {"data.train": corpus, "run.dir": root / name}
            if "deepspeed" in given:
                given["deepspeed"] = root / given["deepspeed"]
            if name in PROFILED:
                given["train.profile"] = list(WINDOW)
            check = {"check": CHECKS[name]} if name in CHECKS else {}
            jobs.append({"train": arguments(given)} | check)
        if ranks == 2 and TRACKERS:
            tracked = BASE | {"data.train": corpus, "run.dir": root / "tracked", "track.to": "wandb,mlflow"}
            for steps in (STEPS // 2, STEPS):
                words = arguments(tracked | {"train.max_steps": steps})
                jobs.append({"train": words, "environment": offline(root)})
        run_ranks(jobs, ranks, root)
    return root


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of all points, by tag."""
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def same_points(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> bool:
    """The same steps, and the same values to float32, which TensorBoard keeps."""
    steps, values = ([[point[i] for point in points] for points in (ours, theirs)] for i in (0, 1))
    return steps[0] == steps[1] and values[0] == pytest.approx(values[1])


def norms(run: Path) -> dict[str, list[tuple[int, float]]]:
    return {
        tag: points for tag, points in scalars(run).items() if tag.startswith(("grad_norm", "weight_norm"))
    }


def test_one_process_measures_its_parts(runs: Path) -> None:
    found, lines = norms(runs / ALONE), metrics(runs / ALONE)
    assert sorted(found) == [f"{what}_norm/{part}" for what in ("grad", "weight") for part in PARTS]
    assert all([step for step, _ in points] == [4, 8] for points in found.values())
    assert all(value > 0 for points in found.values() for _, value in points)
    for i, step in enumerate((4, 8)):
        total = math.hypot(*(found[f"grad_norm/{part}"][i][1] for part in PARTS))
        assert total == pytest.approx(lines[step - 1]["grad_norm"], rel=1e-6)
        assert total > 0.5, "before clipping"
    # The weights are those after the step: of the checkpoint of step 8.
    belongs = {"ses.audio": 0, "awm.audio": 0, "ses.video": 1, "awm.video": 1}
    belongs |= {"classifier": 2, "statistics": 2, "tpn": 3}
    squares = [0.0] * len(PARTS)
    for name, tensor in weights(runs / ALONE).items():
        if name.endswith((".mean", ".std", ".spread")):  # statistics of the data
            continue
        [part] = [part for begin, part in belongs.items() if name.startswith(begin)]
        squares[part] += float(tensor.double().square().sum())
    for part, square in zip(PARTS, squares, strict=True):
        assert found[f"weight_norm/{part}"][1][1] == pytest.approx(math.sqrt(square), rel=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_every_engine_measures_the_same_norms(runs: Path, name: str) -> None:
    ours, alone = norms(runs / name), norms(runs / ALONE)
    assert ours.keys() == alone.keys()
    for tag, points in alone.items():
        assert [step for step, _ in ours[tag]] == [step for step, _ in points]
        assert [x for _, x in ours[tag]] == pytest.approx([x for _, x in points], rel=1e-5), tag


@pytest.mark.parametrize("name", PROFILED)
def test_each_rank_has_a_trace_of_the_steps(runs: Path, name: str) -> None:
    folder = runs / name / "profile"
    files = [f"rank-{rank}.steps-3-4.pt.trace.json" for rank in range(PROFILED[name])]
    assert sorted(file.name for file in folder.iterdir()) == files, "and no temporary files"
    for file in files:
        events = json.loads((folder / file).read_text())["traceEvents"]
        found = {event.get("name") for event in events}
        assert {x for x in found if str(x).startswith("ProfilerStep#")} == {
            "ProfilerStep#3",
            "ProfilerStep#4",
        }
        # Forward, backward and update of a step.
        assert found & {"aten::mm", "aten::addmm", "aten::linear"}
        assert any("Backward" in str(x) for x in found)
        assert "Optimizer.step#GuardedAdamW.step" in found
        for step in WINDOW:
            [span] = [e for e in events if e.get("name") == f"ProfilerStep#{step}"]
            begin, end = span["ts"], span["ts"] + span["dur"]
            updates = [e for e in events if e.get("name") == "Optimizer.step#GuardedAdamW.step"]
            assert any(begin <= e["ts"] <= end for e in updates)


needs_trackers = pytest.mark.skipif(not TRACKERS, reason="wandb or mlflow is not installed")


@needs_trackers
def test_trackers_get_what_tensorboard_gets(runs: Path) -> None:
    """Tags, steps and values, of one run at each service, which the second start continued."""
    run = runs / "tracked"
    expected = scalars(run)
    assert {"loss/total", "optim/lr", "epoch/loss", "val/w-F1", "grad_norm/head", "results/test_w-F1"} <= set(
        expected
    )
    ids = run_ids(run)
    at_mlflow = points_at_mlflow(runs, ids["mlflow"])
    # The first start ended with results of its own; TensorBoard keeps the last.
    for tag, points in expected.items():
        found = at_mlflow[tag][-1:] if tag.startswith("results/") else at_mlflow[tag]
        assert same_points(found, points), tag
    assert set(at_mlflow) == set(expected)
    at_wandb, summary = points_at_wandb(run, ids["wandb"])
    steps = {tag: points for tag, points in expected.items() if not tag.startswith("results/")}
    assert set(at_wandb) == set(steps)
    for tag, points in steps.items():
        assert same_points(at_wandb[tag], points), tag
    for tag in set(expected) - set(steps):
        assert summary[tag] == pytest.approx(expected[tag][-1][1])


@needs_trackers
def test_one_rank_has_trackers(runs: Path) -> None:
    """Two starts of two ranks: one run at MLflow, and of wandb a folder for each start."""
    assert len(list((runs / "tracked" / "wandb").glob("offline-run-*"))) == 2
    assert len(list((runs / "mlruns").glob("*/*/meta.yaml"))) == 1
