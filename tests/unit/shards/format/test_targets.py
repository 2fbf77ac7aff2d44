"""Targets: which values an utterance may have, what a dataset may declare, and what a run can choose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from shards.format.targets import CLASSES, Target, check_declared, choose_target, number_of, values_of

VALENCE = Target("regression", {"valence": [1, 5]})
EITHER = Target("regression", {"valence": [1, 5], "activation": None}, missing=True)
JOY = Target("multilabel", {"joy": None})


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meta", "target", "values"),
    [
        ({"valence": 1}, VALENCE, [1.0]),
        ({"valence": np.float32(2.5), "other": "x"}, VALENCE, [2.5]),
        ({"valence": np.array(5)}, VALENCE, [5.0]),
        ({"valence": None, "activation": -7.5}, EITHER, [math.nan, -7.5]),
        ({}, EITHER, [math.nan, math.nan]),
        ({"joy": True}, JOY, [1.0]),
        ({"joy": np.False_}, JOY, [0.0]),
        ({"joy": 0}, JOY, [0.0]),
    ],
)
def test_values(meta: dict[str, Any], target: Target, values: list[float]) -> None:
    np.testing.assert_array_equal(values_of(meta, target), values)


@pytest.mark.parametrize(
    ("meta", "target", "told"),
    [
        ({}, VALENCE, "has no 'valence'; fill it in"),
        ({"valence": None}, VALENCE, "has no 'valence'; fill it in"),
        ({"valence": 5.1}, VALENCE, "its 'valence' is 5.1, outside of 1 to 5"),
        ({"valence": "3"}, VALENCE, "its 'valence' is '3', not a number"),
        ({"valence": [3]}, VALENCE, r"its 'valence' is \[3\], not a number"),
        ({"valence": np.ones(2)}, VALENCE, "not a number"),
        ({"valence": 3 + 0j}, VALENCE, "not a number"),
        ({"activation": math.nan}, EITHER, "its 'activation' is nan; write a number, or leave it empty"),
        ({"activation": -math.inf}, EITHER, "its 'activation' is -inf"),
        ({"activation": 10**400}, EITHER, "its 'activation' is inf"),
        ({"activation": 1e300}, EITHER, r"outside of -1e\+30 to 1e\+30"),
        ({"joy": -0.5}, JOY, r"its 'joy' is -0.5, outside of 0 to 1e\+30"),
    ],
)
def test_bad_values_are_refused_by_name(meta: dict[str, Any], target: Target, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        values_of(meta, target)
    assert "\n" not in str(caught.value)


def test_numbers_keep_their_kind_as_far_as_json_and_floats_hold_it() -> None:
    kept = [True, 3, np.int8(3), 2**53 - 1, -(2**60), np.float32(0.5), "3", None, np.ones(3)]
    expected = [1, 3, 3, 2**53 - 1, -float(2**60), 0.5, None, None, None]
    found = [number_of(value) for value in kept]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


# --- Declare -------------------------------------------------------------------------------------


def test_ranges_are_floats() -> None:
    own, further = check_declared(VALENCE, {"either": EITHER, "joy": JOY}, [])
    assert (own, further) == (VALENCE, {"either": EITHER, "joy": JOY})
    assert all(type(bound) is float for bound in own.columns["valence"] or ())
    assert check_declared(CLASSES, {}, ["a"]) == (CLASSES, {})


@pytest.mark.parametrize(
    ("target", "targets", "told"),
    [
        (CLASSES, {}, "there are no classes"),
        (VALENCE, {"label": JOY}, "'label' cannot be a name"),
        (VALENCE, {"a,b": JOY}, "'a,b' cannot be a name"),
        (VALENCE, {"": JOY}, "'' cannot be a name"),
        (VALENCE, {"../x": JOY}, "cannot be a name"),
        (Target("ranking", {"a": None}), {}, "type 'ranking' must be one of"),
        (Target("regression"), {}, "has at least one column"),
        (VALENCE, {"x": Target("multilabel")}, "targets.x: a multilabel has at least one column"),
        (Target("regression", ["a"]), {}, "has at least one column, with its range or None: a dict"),  # type: ignore[arg-type]
        (Target("regression", {f"c{i}": None for i in range(1001)}), {}, "it has 1001 columns"),
        (Target("regression", {"a": None}, missing=1), {}, "missing is 1, not True or False"),  # type: ignore[arg-type]
        (Target("classification", {"speaker": None}), {}, "without columns"),
        (VALENCE, {"x": CLASSES}, "targets.x: a classification"),
        (Target("regression", {"a": [1, 1]}), {}, r"range \[1, 1\], not a least and a larger number"),
        (Target("regression", {"a": [2, 1]}), {}, "not a least and a larger number"),
        (Target("regression", {"a": [1]}), {}, "not a least and a larger number"),
        (Target("regression", {"a": "12"}), {}, "not a least and a larger number"),
        (Target("regression", {"a": [math.nan, 1]}), {}, "not a least and a larger number"),
        (Target("regression", {"a": [0, math.inf]}), {}, "not a least and a larger number"),
        (Target("regression", {"a": [0, 10**200]}), {}, "not a least and a larger number"),
        (Target("regression", {"a": ["0", 1]}), {}, "not a least and a larger number"),
        (Target("multilabel", {"a": [-1, 1]}), {}, "'a' begins at -1"),
        (Target("regression", {"label": None}), {}, "rename the column"),
        (Target("regression", {"a\x1b": None}), {}, "cannot be the name of a column"),
        (Target("regression", {"a,b": None}), {}, "cannot be the name of a column"),
        (Target("regression", {"\ud800": None}), {}, "cannot be the name of a column"),
        (Target("regression", {"x" * 101: None}), {}, "cannot be the name of a column"),
    ],
)
def test_what_is_no_target_cannot_be_declared(
    target: Target, targets: Mapping[str, Target], told: str
) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        check_declared(target, targets, [])
    assert "\n" not in str(caught.value)


# --- Choose --------------------------------------------------------------------------------------


@dataclass
class Dataset:
    """The fields of a manifest that decide which targets there are."""

    classes: list[str] = field(default_factory=lambda: ["calm", "happy"])
    columns: dict[str, str] = field(
        default_factory=lambda: {
            "speaker": "str",
            "fold": "int",
            "acted": "bool",
            "gain": "float",
            "valence": "float",
            "activation": "optional float",
            "joy": "float",
            "a,b": "float",
        }
    )
    target: Target = CLASSES
    targets: dict[str, Target] = field(default_factory=lambda: {"valence": VALENCE, "emotions": JOY})


OWN = Dataset(target=EITHER, classes=[])
RANGE = [1, 5]


@pytest.mark.parametrize(
    ("dataset", "chosen", "type", "target"),
    [
        (Dataset(), None, None, CLASSES),
        (Dataset(), None, "classification", CLASSES),
        (Dataset(), "label", None, CLASSES),
        (Dataset(target=EITHER), ["label"], None, CLASSES),
        (OWN, None, None, EITHER),
        (OWN, None, "regression", EITHER),
        (OWN, None, "multilabel", Target("multilabel", EITHER.columns, True)),
        (Dataset(), "emotions", None, JOY),
        (Dataset(), "emotions", "regression", Target("regression", JOY.columns)),
        # A further target before a column of the same name; its range also where the column is chosen.
        (Dataset(), "valence", None, VALENCE),
        (Dataset(), "valence,gain", None, Target("regression", {"valence": RANGE, "gain": None})),
        (Dataset(), ["gain", "valence"], None, Target("regression", {"gain": None, "valence": RANGE})),
        (Dataset(), "gain , fold", "multilabel", Target("multilabel", {"gain": None, "fold": None})),
        (Dataset(), "activation", None, Target("regression", {"activation": None}, True)),
        (Dataset(), "gain,activation", None, Target("regression", {"gain": None, "activation": None}, True)),
        (Dataset(), "a,b", None, Target("regression", {"a,b": None})),
        (Dataset(), "speaker", None, Target("classification", {"speaker": None})),
        (Dataset(), ["speaker"], "classification", Target("classification", {"speaker": None})),
        (Dataset(), "fold", None, Target("regression", {"fold": None})),
        (Dataset(), "fold", "classification", Target("classification", {"fold": None})),
        (Dataset(), "acted", "classification", Target("classification", {"acted": None})),
        (Dataset(), "acted", "multilabel", Target("multilabel", {"acted": [0, 1]})),
    ],
)
def test_a_target_is_chosen(dataset: Dataset, chosen: Any, type: str | None, target: Target) -> None:
    found = choose_target(dataset, chosen, type, "url")
    assert found == target
    assert list(found.columns) == list(target.columns)


def test_a_list_means_columns() -> None:
    pair = Target("regression", {"valence": RANGE, "gain": None})
    dataset = Dataset(targets={"valence": pair})
    assert choose_target(dataset, "valence", None, "u") == pair
    assert list(choose_target(dataset, ["valence"], None, "u").columns) == ["valence"]


@pytest.mark.parametrize(
    ("dataset", "chosen", "type", "told"),
    [
        (Dataset(), "nothing", None, "no column 'nothing' .* 'label', 'valence', 'emotions', 'speaker'"),
        (Dataset(), "gain,", None, "no column ''"),
        (Dataset(), [], None, "at least one"),
        (Dataset(), ["gain", "gain"], None, "distinct"),
        (
            Dataset(),
            None,
            "regression",
            "the classes, and task.type is regression: data.target can be 'valence', 'emotions'",
        ),
        (Dataset(), "label", "multilabel", "task.type is multilabel: data.target can be 'valence'"),
        (
            Dataset(),
            "label,gain",
            None,
            "data.target 'label' is a target of its own, not a column: give it alone",
        ),
        (Dataset(), ["gain", "emotions"], None, "'emotions' is a target of its own"),
        (
            OWN,
            None,
            "classification",
            "cannot be classes; with task.type=classification data.target is .*: 'speaker', 'fold', 'acted'$",
        ),
        (OWN, "label", None, "has no classes; data.target can be 'valence'"),
        (
            Dataset(),
            "gain",
            "classification",
            "'gain' cannot be classes.*: 'label', 'speaker', 'fold', 'acted'$",
        ),
        (Dataset(), "activation", "classification", "cannot be classes"),
        (Dataset(), "speaker,fold", "classification", "cannot be classes"),
        (Dataset(), "speaker", "regression", "'speaker' holds text, and a regression needs numbers"),
        (Dataset(), "gain,speaker", None, "'speaker' holds text"),
        (Dataset(), None, "ranking", "task.type 'ranking': must be one of"),
        (
            Dataset(targets={"x": Target("regression", {"gain": [-1, 1]})}),
            "x",
            "multilabel",
            "'gain' has values from -1 to 1; those of a label are 0",
        ),
    ],
)
def test_a_target_that_is_none(dataset: Dataset, chosen: Any, type: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        choose_target(dataset, chosen, type, "url")
    assert "\n" not in str(caught.value)
