"""The suite's file: what it holds, what is refused by name, and what selects parts of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import REPO

from awtpn.config.command_line import parse_command_line
from awtpn.experiments.ablation import arguments_of
from awtpn.experiments.comparison import curves
from awtpn.experiments.comparison.datasets import check_format, missing_sources
from awtpn.experiments.comparison.suite import (
    Dataset,
    name_of_data,
    parse_suite,
    read_suite,
    select,
    with_own_data,
)

SMALL: dict[str, Any] = {
    "datasets": {
        "clips": {"source": "clips.npz", "format": "npz", "by": "fold"},
        "sound": {"data": "clips", "by": "fold", "arguments": {"model.modalities": ["audio"]}},
        "far": {"url": "s3://corpus/far", "by": "speaker"},
    },
    "models": {"linear": "linear", "awtpn": {}, "uniform weights": {"model.awm": "uniform"}},
    "grid": {"optim.lr": ["1e-3", 0.003], "model.dropout": [0.2]},
    "grids": {"uniform weights": {"model.shared_dim": [8]}},
    "nested": ["clips"],
    "curves": {
        "format": "demo",
        "base": {"target": "classification", "steps": 40},
        "parameters": {"steps": [20, 40], "useless": [None, "audio"]},
        "models": ["linear", "awtpn"],
        "seeds": [3],
    },
}


def changed(place: str, value: Any) -> dict[str, Any]:
    """SMALL with one entry, such as "datasets/clips/by", of another value; `...` removes it."""
    content = copy.deepcopy(SMALL)
    *path, last = place.split("/")
    at = content
    for key in path:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return content


def test_what_a_suite_holds() -> None:
    suite = parse_suite(SMALL)
    sound = suite.datasets["sound"]
    assert (sound.source, sound.place, sound.by) == ("clips.npz", "clips", "fold")
    assert suite.models["linear"].is_linear
    assert suite.models["uniform weights"].arguments == ["--model.awm=uniform"]
    assert (suite.headline, suite.reference) == ("awtpn", "linear")
    assert suite.points == {
        "awtpn": [{"optim.lr": lr, "model.dropout": "0.2"} for lr in ("1e-3", "0.003")],
        "uniform weights": [{"model.shared_dim": "8"}],
    }


def test_the_file_that_comes_with_awtpn() -> None:
    suite = read_suite(Path("suite"))
    assert suite == read_suite()
    assert len(suite.datasets) == 8
    assert suite.headline == "awtpn"
    assert all(len(points) == 4 for points in suite.points.values())
    assert len(suite.nested) == 3
    assert suite.nested_models == ["awtpn", "late-fusion", "gated-attention"]
    assert missing_sources(suite.datasets, None).keys() == {n for n in suite.datasets if "ravdess" in n}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("models", ..., "there are no models"),
        ("dataset", {}, "there is no 'dataset'; did you mean datasets"),
        ("datasets/clips/bye", "fold", r"datasets.clips: there is no 'bye'; did you mean by\?"),
        ("datasets/clips/url", "data/mine", "datasets.clips: give one of format, url and data"),
        ("datasets/far/pack", {"labels": "a"}, "datasets.far: pack is for format"),
        ("datasets/sound/data", "far away", "data: far away: give the name of a dataset"),
        ("datasets/clips/arguments", {"run.seed": 1}, "sets run.seed, which each run sets itself"),
        ("datasets/data", {"url": "x"}, "'data' cannot be a name"),
        ("datasets/Sound", {"url": "x"}, "'Sound' would share a folder with 'sound'"),
        ("models/awtpn", "linaer", r"models.awtpn: write linear, or overrides"),
        ("models/awtpn", {"data.target": "valence"}, "figures of different targets cannot be compared"),
        ("models/awtpn", {"data.select.test": {}}, "which each run sets itself"),
        ("models/a:b", {}, "'a:b' cannot be a name"),
        ("headline", "linear", "headline: linear is none of the models; choose one of awtpn"),
        ("reference", "lienar", "reference: lienar is none"),
        ("grid", {"optim.lr": 1}, "grid.optim.lr: write its values as a list"),
        ("grid", {"run.seed": [1]}, "run.seed: cross-validation sets it itself"),
        ("grids", {"linear": {}}, "grids: there is no 'linear'"),
        ("nested", ["clip"], "nested: there is no 'clip'"),
        ("nested_models", ["linear"], "nested_models: there is no 'linear'; there are awtpn"),
        ("nested_seeds", [0, 0], "nested_seeds: write a list of different numbers"),
        ("curves/parameters/steps", [1, 2, 3, 4, 5, 6], "write a list of 1 to 5 values"),
        ("curves/models", ["linear"], "name at least one that is trained"),
    ],
)
def test_a_mistake_is_named(place: str, value: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(changed(place, value), sort_keys=False))
    with pytest.raises(ValueError, match=message) as caught:
        read_suite(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_parts_of_a_suite() -> None:
    suite = select(parse_suite(SMALL), ["sound"], ["uniform weights"])
    assert list(suite.datasets) == ["sound"], "without the entry whose data it takes"
    assert (suite.headline, suite.reference) == ("uniform weights", None)
    assert (suite.nested, suite.nested_models, suite.curves) == ([], ["uniform weights"], None)
    with pytest.raises(ValueError, match="no dataset 'clip'"):
        select(suite, ["clip"])
    with pytest.raises(ValueError, match="not the linear one alone"):
        select(parse_suite(SMALL), [], ["linear"])
    own = with_own_data(parse_suite(SMALL), "mine", "speaker")
    assert own.datasets == {"mine": Dataset("mine", "speaker")}
    assert (own.nested, own.nested_models) == (["mine"], ["awtpn", "uniform weights"])
    assert own.curves is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("data/mine", "mine"),
        ("s3://corpus/mine/#all", "mine"),
        ("x/manifest.json", "x"),
        ("", "own-data"),
        ("a/data", "own-data"),
    ],
)
def test_a_name_for_own_data(url: str, name: str) -> None:
    assert name_of_data(url) == name


def test_options_of_a_format_are_checked() -> None:
    with pytest.raises(ValueError, match=r"mine: there is no format 'nzp'"):
        check_format(Dataset("mine", format="nzp"))
    with pytest.raises(ValueError, match=r"mine: format npz has no option 'lables'; did you mean labels\?"):
        check_format(Dataset("mine", format="npz", pack={"lables": []}))
    check_format(Dataset("mine", format="npz", pack={"labels": ["a"], "dtype": "float32"}))


def test_a_curve_trains_the_base_once() -> None:
    suite = parse_suite(SMALL)
    assert suite.curves is not None
    assert curves.points_of(suite.curves) == {
        "steps": [(20, "steps=20"), (40, "base")],
        "useless": [(None, "base"), ("audio", "useless=audio")],
    }
    datasets = curves.datasets_of(suite.curves)
    assert list(datasets) == ["steps=20", "base", "useless=audio"]
    assert datasets["steps=20"].pack == {"target": "classification", "steps": 20}


@pytest.mark.parametrize("name", [path.name for path in (REPO / "configs" / "comparison").iterdir()])
def test_every_model_of_the_shipped_suites_is_a_configuration(name: str) -> None:
    suite = read_suite(REPO / "configs" / "comparison" / name)
    for dataset in suite.datasets.values():
        if dataset.format is not None:
            check_format(dataset)
        for model in suite.models.values():
            own = arguments_of(dataset.arguments)
            config, _ = parse_command_line(["--data.train=data/some", *own, *model.arguments])
            config.model.validate()
