"""Layout equivalence of runs that train encoders: ranks, accumulation, engine and passes change nothing.

Of a corpus of 36 utterances the last batch has 4, all of which belong to the first rank: the second one runs
empty passes. In the second batch each of two ranks lacks a modality (`pack_recordings`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks_support import run_ranks
from safetensors.torch import load_file
from support import arguments, assert_like_runs, metrics, status, weights
from training_encoders_support import encoder_words

from awtpn.model.files import WEIGHTS_FILE

BASE: dict[str, Any] = {
    "data.streams": 1,
    "model.shared_dim": 16,
    "model.dropout": 0.0,
    "loss.negative_group": 4,
    "loss.margin_contrast": 5.0,
    "optim.lr": 3e-3,
    "optim.warmup_steps": 1,
    "train.epochs": 1,
    "train.global_batch_size": 16,
    "train.log_every": 1,
    "train.pictures": "never",
    "prototypes.check_every": 2,
}
AUGMENT = {
    "augment.crop": "[0.8, 1.0]",
    "augment.noise_snr": "[5, 20]",
    "augment.drop_frequency": 2,
    "augment.drop_time": 2,
    "augment.drop_time_seconds": "[0.05, 0.1]",
    "augment.flip": 0.5,
    "augment.shift": 0.1,
    "augment.contrast": "[0.8, 1.2]",
}
# Settings of the encoders, and other changes of BASE; of a float32 run without dropout.
LESSONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LoRA, augmented": (
        {"audio_tune": "lora", "video_tune": "last-1-layers", "pass_seconds": 6.0, "pass_pictures": 30},
        {"model.modality_dropout": 0.2, "train.ema_decay": 0.8, **AUGMENT},
    ),
    "full, computed again": (
        {
            "tune": "full",
            "freeze_features": False,
            "checkpointing": True,
            "lr_decay": 0.7,
            "weight_decay": 0.0,
        },
        {"loss.negatives": "global", "prototypes.update": "ema", "prototypes.init": "data"},
    ),
    "a baseline, mixed": ({"audio_tune": "full", "pass_seconds": 6.0}, {"model.name": "gru"}),
    "sound alone": (
        {"audio_tune": "last-1-layers", "audio_layer": 1, "pass_seconds": 10.0},
        {"model.modalities": "[audio]", "train.global_batch_size": 32},
    ),
}
WITHOUT_VIDEO = ("a baseline, mixed", "sound alone")  # encoders
# Ranks, accumulation, ZeRO stage or None.
Layout = tuple[int, int, int | None]
ALONE: Layout = (1, 1, None)
LAYOUTS: dict[str, list[Layout]] = {
    "LoRA, augmented": [(1, 4, None), (2, 1, None), (2, 2, 1), (2, 1, 2), (2, 1, 3)],
    "full, computed again": [(2, 2, None), (2, 1, 0), (2, 1, 3)],
    "a baseline, mixed": [(4, 1, None), (2, 1, 2)],
    "sound alone": [(3, 1, None), (3, 3, 2)],
}
CASES = [(lesson, layout) for lesson, layouts in LAYOUTS.items() for layout in layouts]
HALF: list[Layout] = [(2, 1, None), (2, 1, 2), (2, 1, 3)]  # in bfloat16
# Learning rate of the runs that are compared in bfloat16. Adam's first step moves each weight by this, to the
# side that the sign of its gradient says, and rounding turns the signs of small gradients.
SLOW = 1e-5
# Three ranks share a batch of 32 under torchrun with a range of nodes, which these variables tell of.
ELASTIC = {"TORCHELASTIC_RUN_ID": "none", "PET_NNODES": "1:2"}

pytestmark = pytest.mark.usefixtures("deepspeed_operator")


def name(lesson: str, layout: Layout, precision: str = "fp32", lr: float | None = None) -> str:
    return f"{lesson}, {layout}, {precision}" + (f", {lr}" if lr else "")


def job(
    root: Path, lesson: str, layout: Layout, precision: str = "fp32", lr: float | None = None
) -> dict[str, Any]:
    """The run of a lesson on a layout; `lr` in place of both learning rates."""
    ranks, accumulation, stage = layout
    encoders, changes = LESSONS[lesson]
    folders = {m: str(root / m) for m in ("audio", "video") if m == "audio" or lesson not in WITHOUT_VIDEO}
    settings = BASE | changes | encoder_words(folders, dropout=0.0, lr=lr or 1e-3, **encoders)
    if lr:
        settings["optim.lr"] = lr
    settings["data.train"] = root / ("mixed" if lesson == "a baseline, mixed" else "both")
    if accumulation > 1:
        settings["train.micro_batch_size"] = -(-settings["train.global_batch_size"] // ranks) // accumulation
    if stage == 3:
        settings["deepspeed"] = root / "zero3.json"
    elif stage is not None:
        settings["train.zero_stage"] = stage
    settings |= {"train.precision": precision, "run.dir": root / name(lesson, layout, precision, lr)}
    return {"train": arguments(settings), "environment": ELASTIC if ranks == 3 else {}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("encoders")
    # Parameters of fewer elements are never partitioned by ZeRO-3: norms and biases here, which are many.
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100}}
    (root / "zero3.json").write_text(json.dumps(zero3))
    run_ranks([{"check": "make_recordings_and_encoders", "folder": str(root)}], 1, root)
    everything: list[tuple[str, Layout, str, float | None]] = []
    everything += [(lesson, ALONE, "fp32", None) for lesson in LESSONS]
    everything += [(*case, "fp32", None) for case in CASES]
    everything += [("LoRA, augmented", layout, "bf16", SLOW) for layout in (ALONE, *HALF)]
    everything += [("LoRA, augmented", ALONE, "fp32", SLOW)]
    for ranks in (1, 2, 3, 4):
        run_ranks([job(root, *of) for of in everything if of[1][0] == ranks], ranks, root)
    return root


@pytest.mark.parametrize(("lesson", "layout"), CASES, ids=[name(*case) for case in CASES])
def test_a_layout_trains_encoders_as_one_process_does(runs: Path, lesson: str, layout: Layout) -> None:
    run, alone = runs / name(lesson, layout), runs / name(lesson, ALONE)
    assert status(run)["status"] == "done"
    assert_like_runs(run, alone)


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_encoders_learn(runs: Path, lesson: str) -> None:
    """What is compared moves."""
    lines = metrics(runs / name(lesson, ALONE))
    assert [x["step"] for x in lines] == list(range(1, 3 if lesson == "sound alone" else 4))
    assert len({x["fingerprint"] for x in lines}) == len(lines)
    assert not any(x["skipped"] for x in lines)
    learnt = weights(runs / name(lesson, ALONE))
    for modality in ("audio",) if lesson in WITHOUT_VIDEO else ("audio", "video"):
        before, prefix = load_file(runs / modality / WEIGHTS_FILE), f"encoders.{modality}.network."
        own = {n.removeprefix(prefix): tensor for n, tensor in learnt.items() if n.startswith(prefix)}
        assert own
        for weight, tensor in own.items():
            # The additions of LoRA begin at zero. Some biases have no gradient but rounding.
            assert tensor.dim() < 2 or (tensor - before.get(weight, 0 * tensor)).abs().max() > 1e-4, weight


@pytest.mark.parametrize("layout", HALF, ids=str)
def test_in_bfloat16_every_engine_comes_close(runs: Path, layout: Layout) -> None:
    """Losses to those of float32, and norms of gradients to those of one process in bfloat16."""
    lesson = "LoRA, augmented"
    ours = metrics(runs / name(lesson, layout, "bf16", SLOW))
    alone = metrics(runs / name(lesson, ALONE, "bf16", SLOW))
    exact = metrics(runs / name(lesson, ALONE, "fp32", SLOW))
    assert [x["fingerprint"] for x in ours] == [x["fingerprint"] for x in exact]
    assert [x["loss"] for x in ours] == pytest.approx([x["loss"] for x in exact], rel=5e-2)
    assert [x["grad_norm"] for x in ours] == pytest.approx([x["grad_norm"] for x in alone], rel=0.1)
