"""The engines: each offers the same functions, and no other code knows which of them is at work."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from support import REPO, small_model

from awtpn.config.schema import Config, Launch
from awtpn.distributed.batch_layout import Layout
from awtpn.distributed.engines import ENGINES, Engine, choose_engine, engines_for

FOLDER = REPO / "awtpn" / "distributed" / "engines"
SOURCES = sorted(
    path
    for root in ("awtpn", "shards", "launch")
    for path in (REPO / root).rglob("*.py")
    if FOLDER not in path.parents
)
# A name alone may be another thing ("none" is many); beside a word like this it is an engine's.
ENGINE = re.compile(r"engine|deepspeed|zero_?stage|distributed_type", re.IGNORECASE)
# Attributes that DeepSpeed gives to parameters, and the class that it wraps models in.
MARKS = re.compile(r"ds_\w+|_hp_mapping|DeepSpeedEngine")


def violations(source: str) -> Iterator[tuple[int, str]]:
    """Lines that import deepspeed, or do one thing or another by which engine there is."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            names = [module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            if any(name.split(".")[0] == "deepspeed" for name in names):
                yield node.lineno, "imports deepspeed"
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = {c.value for side in sides for c in ast.walk(side) if isinstance(c, ast.Constant)}
            about = any(ENGINE.search(ast.unparse(side)) for side in sides)
            if (named & {*ENGINES} and about) or named & {*ENGINES} - {"none"}:
                yield node.lineno, "compares with an engine's name"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in ("startswith", "endswith") and "engine" in ast.unparse(node.func.value):
                yield node.lineno, "looks into an engine's name"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MARKS.fullmatch(node.value):
            yield node.lineno, f"looks for {node.value}"
        elif isinstance(node, ast.Attribute) and MARKS.fullmatch(node.attr):
            yield node.lineno, f"reads {node.attr}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_no_other_code_knows_the_engine(path: Path) -> None:
    assert list(violations(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import deepspeed",
        "from deepspeed.utils import safe_get_full_fp32_param",
        "def f():\n    import deepspeed.comm as dist",
        "if world.engine == 'none': pass",
        "if run.world.engine in ('none', 'ddp'): pass",
        "if name == 'zero3': pass",
        "stage = int(engine[-1]) if engine.startswith('zero') else 0",
        "partitioned = hasattr(p, 'ds_id')",
        "count = getattr(p, 'ds_numel', p.numel())",
        "zero = type(model).__name__ == 'DeepSpeedEngine'",
    ],
)
def test_a_branch_on_the_engine_is_found(source: str) -> None:
    assert list(violations(source))


def test_engines_differ_in_functions_of_the_same_signature() -> None:
    """No engine lacks a function, and each takes the parameters of the plain one, in their order."""
    offered = {field.name for field in fields(Engine)}
    assert {"wrap", "accumulate", "loss_factor", "clip_and_step", "gather_state", "set_state"} <= offered
    plain = ENGINES["none"]
    for name, engine in ENGINES.items():
        for field in offered:
            ours, theirs = getattr(plain, field), getattr(engine, field)
            assert callable(ours) == callable(theirs), f"{name}.{field}"
            if callable(ours):
                assert parameters(theirs) == parameters(ours), f"{name}.{field}"


def parameters(function: object) -> tuple[str, ...]:
    code = getattr(function, "__wrapped__", function).__code__  # of a context manager
    return code.co_varnames[: code.co_argcount]


def test_losses_are_multiplied_by_what_an_engine_averages_over() -> None:
    factors = {name: engine.loss_factor(4, 3) for name, engine in ENGINES.items()}
    assert factors == {"none": 1, "ddp": 4, "zero0": 12, "zero1": 12, "zero2": 12, "zero3": 12}


@pytest.mark.parametrize(
    ("ranks", "stage", "name"), [(1, None, "none"), (2, None, "ddp"), (1, 0, "zero0"), (2, 3, "zero3")]
)
def test_the_engine_is_chosen_by_ranks_and_stage(ranks: int, stage: int | None, name: str) -> None:
    config = Config()
    config.train.zero_stage = stage  # type: ignore[assignment]
    chosen, settings = choose_engine(config, Launch(), Layout(32, 32 // ranks, 1), ranks, {})
    assert chosen == name
    assert (settings is None) == (stage is None)
    assert name in engines_for(ranks)


def test_engines_that_fit_a_number_of_ranks() -> None:
    assert engines_for(1) == ["none", "zero0", "zero1", "zero2", "zero3"]
    assert engines_for(8) == ["ddp", "zero0", "zero1", "zero2", "zero3"]


def test_replicas_are_all_but_what_zero_partitions() -> None:
    model = small_model(learnable=False)
    everything = {*ENGINES["ddp"].replicated_tensors(model)}
    assert {"tpn.prototypes", "ses.audio.weight", "standardise.video.std"} <= everything
    weight, bias = model.ses["audio"].weight, model.ses["audio"].bias
    weight.ds_id, bias.ds_id, bias.ds_persist = 1, 2, True
    assert everything - {*ENGINES["zero3"].replicated_tensors(model)} == {"ses.audio.weight"}


def test_a_gathered_parameter_is_a_copy() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    for name, engine in ENGINES.items():
        whole = engine.gather_parameter(parameter)
        whole += 1
        assert whole.dtype == torch.float32, name
        assert not whole.requires_grad
        assert (parameter == 1).all()
