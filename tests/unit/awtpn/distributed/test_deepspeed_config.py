"""DeepSpeed's configuration: who asks for it, what is filled from the run's, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import REPO

from awtpn.config.schema import Config, Launch
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.engines.deepspeed_config import ZERO, deepspeed_settings

BY_ACCELERATE = {"ACCELERATE_USE_DEEPSPEED": "true"}
LAYOUT = Layout(global_batch=32, micro_batch=8, accumulation=2)


def settings_of(
    tmp_path: Path,
    file: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    by_launcher: bool = False,
    **train: Any,
) -> dict[str, Any] | None:
    config = Config()
    config.optim.grad_clip = 0.5
    for name, value in train.items():
        setattr(config.train, name, value)
    path = None
    if file is not None:
        path = str(tmp_path / "ds.json")
        Path(path).write_text(json.dumps(file))
    return deepspeed_settings(config, Launch(path, by_launcher), LAYOUT, environment or {})


def test_without_a_wish_there_is_no_deepspeed(tmp_path: Path) -> None:
    assert settings_of(tmp_path) is None
    assert settings_of(tmp_path, environment={"ACCELERATE_USE_DEEPSPEED": "false"}) is None


FILLED = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
}


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ({}, 2),
        ({"zero_optimization": {"stage": 3}}, 3),
        ({"zero_optimization": {"stage": "auto"}}, 2),
        ({name: "auto" for name in FILLED if "16" not in name} | {"bf16": {"enabled": "auto"}}, 2),
        ({"gradient_clipping": 0.5, "train_batch_size": 32, "bf16": {"enabled": False}}, 2),
    ],
    ids=["absent", "stage in the file", "stage auto", "auto", "the same explicitly"],
)
def test_what_a_file_leaves_open_is_filled_from_the_run(
    tmp_path: Path, file: dict[str, Any], stage: int
) -> None:
    settings = settings_of(tmp_path, file)
    assert settings is not None
    assert {k: settings[k] for k in FILLED} == FILLED
    assert settings["zero_optimization"]["stage"] == stage


def test_other_keys_of_a_file_are_kept(tmp_path: Path) -> None:
    file = {"zero_optimization": {"stage": 1, "overlap_comm": True}, "wall_clock_breakdown": True}
    settings = settings_of(tmp_path, file)
    assert settings is not None
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert settings["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("file", "train", "named"),
    [
        (
            {"train_batch_size": 64},
            {},
            r"train_batch_size is 64 in .*ds\.json, but 32 by train\.global_batch_size",
        ),
        ({"train_micro_batch_size_per_gpu": 4}, {}, r"is 4 in .* but 8 by train\.micro_batch_size"),
        ({"gradient_accumulation_steps": 1}, {}, r"is 1 in .* but 2 by"),
        ({"gradient_clipping": 1.0}, {}, r"is 1\.0 in .* but 0\.5 by optim\.grad_clip"),
        ({"bf16": {"enabled": True}}, {}, r"bf16\.enabled is True in .* but False by train\.precision"),
        ({"bf16": {"enabled": False}}, {"precision": "bf16"}, r"bf16\.enabled is False"),
        ({"fp16": {"enabled": True}}, {}, r"fp16\.enabled is True"),
        (
            {"zero_optimization": {"stage": 3}},
            {"zero_stage": 1},
            r"stage is 3 in .* but 1 by train\.zero_stage",
        ),
        ({"optimizer": {"type": "Adam"}}, {}, r"optimizer is set in .* optim\.\*"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, r"scheduler is set in"),
        ({"bf16": True}, {}, r'bf16 in .*ds\.json must be a mapping such as \{"enabled": "auto"\}, not true'),
        ({"zero_optimization": 2}, {}, r'zero_optimization in .* such as \{"stage": "auto"\}, not 2'),
    ],
)
def test_another_explicit_value_is_refused_by_name(
    tmp_path: Path, file: dict[str, Any], train: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        settings_of(tmp_path, file, **train)


def test_fp16_at_stage_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage 0 scales no losses.*zero_stage 1"):
        settings_of(tmp_path, {}, precision="fp16", zero_stage=0)
    settings = settings_of(tmp_path, {}, precision="fp16", zero_stage=1)
    assert settings is not None
    assert settings["fp16"]["enabled"]


def test_all_contradictions_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)train_batch_size.*gradient_clipping.*scheduler"):
        settings_of(tmp_path, {"train_batch_size": 1, "gradient_clipping": 9.0, "scheduler": {}})


@pytest.mark.parametrize(
    ("text", "named"), [("{", "not JSON"), ("[1]", "not a JSON object"), (None, "cannot read")]
)
def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "broken.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rf"{named}|broken\.json") as refusal:
        deepspeed_settings(Config(), Launch(str(path)), LAYOUT, {})
    assert named in str(refusal.value)
    assert "broken.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("wish", "stage"),
    [
        ({"by_launcher": True}, 2),
        ({"zero_stage": 3}, 3),
        ({"by_launcher": True, "zero_stage": 0}, 0),
        ({"environment": BY_ACCELERATE | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}}, 1),
        ({"environment": BY_ACCELERATE}, 2),
    ],
    ids=["deepspeed launcher", "train.zero_stage", "both", "a flag of accelerate", "accelerate alone"],
)
def test_who_may_ask_for_deepspeed(tmp_path: Path, wish: dict[str, Any], stage: int) -> None:
    settings = settings_of(tmp_path, **wish)
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == stage
    assert {k: settings[k] for k in FILLED} == FILLED


def test_the_file_that_accelerate_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "theirs.json").write_text('{"zero_optimization": {"stage": 3}}')
    named = BY_ACCELERATE | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "theirs.json")}
    settings = settings_of(tmp_path, environment=named)
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == 3
    settings = settings_of(tmp_path, environment=named | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "none"})
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("flag", "value", "named"),
    [
        (
            "ACCELERATE_DEEPSPEED_ZERO_STAGE",
            "1",
            r"stage is 1 in accelerate launch, but 3 by train\.zero_stage",
        ),
        ("ACCELERATE_GRADIENT_CLIPPING", "2.0", r"gradient_clipping is 2\.0 in accelerate launch"),
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "7",
            "gradient_accumulation_steps is 7 in accelerate launch",
        ),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "cpu", "offloading the optimizer"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "nvme", "offloading the param"),
    ],
)
def test_flags_of_accelerate_that_contradict_the_run_are_refused(
    tmp_path: Path, flag: str, value: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        settings_of(tmp_path, environment=BY_ACCELERATE | {flag: value}, zero_stage=3)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_deepspeed_files_of_the_repository_contradict_nothing(stage: int) -> None:
    path = REPO / "configs" / "deepspeed" / f"zero{stage}.json"
    config = Config()
    config.train.precision = "bf16"
    settings = deepspeed_settings(config, Launch(str(path)), LAYOUT, {})
    assert settings is not None
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["bf16"]["enabled"] is True
    assert "auto" not in json.dumps(settings)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_files_of_the_repository_say_what_holds_without_one(stage: int) -> None:
    found = json.loads((REPO / "configs" / "deepspeed" / f"zero{stage}.json").read_text())[
        "zero_optimization"
    ]
    assert found.pop("stage") == stage
    assert found == {name: value for name, value in ZERO.items() if stage == 3 or "stage3" not in name}
