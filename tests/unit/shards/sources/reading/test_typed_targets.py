"""Targets in columns: what the options name, and what cells mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shards.format.targets import Target
from shards.sources.reading.typed_targets import TypedTarget, column_bounds, number_of, typed_target


def typed(kind: str, given: dict[str, list[Any]], **options: Any) -> TypedTarget:
    bounds = options.pop("bounds", dict.fromkeys(given))
    return typed_target(kind, given, bounds, "t.csv", **options)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["valence"], {"valence": None}),
        (["valence=1:5", " arousal = -1:1.5"], {"valence": [1, 5], "arousal": [-1, 1.5]}),
        (["a=b=0:3"], {"a=b": [0, 3]}),
    ],
)
def test_columns_and_ranges(words: list[str], found: dict[str, list[float] | None]) -> None:
    assert column_bounds(words, "regression", "t.csv") == found


@pytest.mark.parametrize(
    ("words", "target", "complaint"),
    [
        (None, "regression", "--target regression needs --target_columns: NAME or NAME=LOW:HIGH"),
        ([], "multilabel", "--target multilabel needs"),
        (["v"], "classification", "--target_columns v: say what they hold, --target regression or"),
        (["v=1"], "regression", r"'v=1': write NAME or NAME=LOW:HIGH, e\.g\. valence=1:5"),
        (["v="], "regression", "write NAME or"),
        (["=1:5"], "regression", "write NAME or"),
        ([""], "regression", "write NAME or"),
        (["v=1:2:3"], "regression", "write NAME or"),
        (["v=5:1"], "regression", "LOW and HIGH must be numbers, LOW below HIGH"),
        (["v=1:1"], "regression", "LOW below HIGH"),
        (["v=a:b"], "regression", "LOW and HIGH must be numbers"),
        (["v=0:inf"], "regression", "LOW and HIGH must be numbers"),
        (["v=nan:1"], "regression", "LOW and HIGH must be numbers"),
        (["v", "v=1:5"], "regression", "names 'v' twice"),
        (["label"], "regression", "'label' is the class; rename the column"),
        (["happy=1:3"], "multilabel", "LOW must be 0, which means that a label is absent"),
    ],
)
def test_columns_that_are_named_wrongly(words: list[str] | None, target: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^t\.csv: .*{complaint}"):
        column_bounds(words, target, "t.csv")


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("3.5", 3.5),
        (" -2 ", -2),
        ("+.5", 0.5),
        ("1.", 1),
        ("1e-3", 0.001),
        (4, 4),
        (np.float32(0.5), 0.5),
        (math.inf, math.inf),
        (10**400, math.inf),
        ("", None),
        ("  ", None),
        ("nan", None),
        ("N/A", None),
        (None, None),
        (math.nan, None),
    ],
)
def test_a_cell_is_a_number_or_missing(cell: Any, number: float | None) -> None:
    assert number_of(cell, "v") == number


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("abc", "its 'v' is 'abc', not a number"),
        ("n/a?", "its 'v' is 'n/a\\?', not a number; write one, or leave it empty"),
        ("inf", "its 'v' is 'inf', not a number"),
        ("1_000", "not a number"),
        ("3,5", "its 'v' is '3,5', not a number; write 3.5"),
        ("true", "not a number"),
        (True, "its 'v' is True, not a number"),
        ([1], r"its 'v' is \[1\], not a number"),
        (1 + 2j, "not a number"),
    ],
)
def test_a_cell_that_is_no_number(cell: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        number_of(cell, "v")


def test_values_missing_values_and_bad_ones(caplog: pytest.LogCaptureFixture) -> None:
    found = typed(
        "regression",
        {"valence": ["3.5", "", "abc", "9", "", 2], "arousal": [1, "2", 3, 4, None, math.inf]},
        bounds={"valence": [1, 5], "arousal": None},
    )
    assert found.target == Target("regression", {"valence": [1, 5], "arousal": None}, missing=True)
    assert found.meta_of(0) == {"valence": 3.5, "arousal": 1}
    assert found.meta_of(1) == {"valence": None, "arousal": 2}
    for place, complaint in {
        2: "its 'valence' is 'abc', not a number",
        3: "its 'valence' is 9.0, outside of 1 to 5",
        4: "has no target, 'valence' and 'arousal'; fill one in, or leave the utterance out",
        5: "its 'arousal' is inf",
    }.items():
        with pytest.raises(ValueError, match=complaint):
            found.meta_of(place)
    assert "t.csv: of 6 utterances some have no value: valence 1" in caplog.text


def test_an_utterance_without_any_value_does_not_make_a_target_of_missing_values() -> None:
    found = typed("regression", {"valence": ["3.5", ""]})
    assert not found.target.missing
    with pytest.raises(ValueError, match="has no target, 'valence'; fill it in, or"):
        found.meta_of(1)


@pytest.mark.parametrize(
    ("columns", "bounds", "metas"),
    [
        ({"happy": ["1", "0"], "sad": ["true", "False"]}, [0, 1], [(1, 1), (0, 0)]),
        ({"happy": [True, False], "sad": [0, 1.0]}, [0, 1], [(1, 0), (0, 1)]),
        ({"happy": ["2.5", "0"], "sad": ["1", "0"]}, [0, 2.5], [(2.5, 1), (0, 0)]),
        ({"happy": ["0.5", "0"], "sad": ["1", "0"]}, [0, 1], [(0.5, 1), (0, 0)]),
    ],
)
def test_labels_in_columns_of_their_own(
    columns: dict[str, list[Any]], bounds: list[float], metas: list[tuple[float, float]]
) -> None:
    found = typed("multilabel", columns)
    assert found.target == Target("multilabel", {"happy": bounds, "sad": bounds})
    assert [tuple(meta.values()) for meta in found.metas] == metas
    if bounds == [0, 1] and metas[0] != (0.5, 1):
        assert all(type(value) is int for meta in found.metas for value in meta.values())


def test_an_intensity_below_0_is_bad_and_widens_no_range() -> None:
    found = typed("multilabel", {"happy": [-1, 1], "sad": [0, 1]})
    assert found.target.columns == {"happy": [0, 1], "sad": [0, 1]}
    with pytest.raises(ValueError, match=r"its 'happy' is -1.0, outside of 0 to 1"):
        found.meta_of(0)
    assert found.meta_of(1) == {"happy": 1, "sad": 1}


def test_an_intensity_that_is_no_measurement_is_bad_and_widens_no_range() -> None:
    found = typed("multilabel", {"happy": [1e300, 2], "sad": [0, 1]})
    assert found.target.columns == {"happy": [0, 2], "sad": [0, 2]}
    with pytest.raises(ValueError, match=r"its 'happy' is 1e\+300, outside of 0 to 2"):
        found.meta_of(0)


def test_one_column_of_one_label() -> None:
    found = typed("multilabel", {"happy": ["1", "0", "maybe"]})
    assert found.target.columns == {"happy": [0, 1]}
    with pytest.raises(ValueError, match="its 'happy' is 'maybe', not a number"):
        found.meta_of(2)


def test_sets_of_labels() -> None:
    cells = ["happy; sad", "sad", "none", "", "happy;happy", ["angry"], [], {"sad": 1}, "NaN", ";"]
    found = typed("multilabel", {"emotions": cells})
    assert found.target == Target("multilabel", {name: [0, 1] for name in ("angry", "happy", "sad")})
    holds = {i: {n for n, v in meta.items() if v} for i, meta in enumerate(found.metas)}
    assert [holds[i] for i in (0, 1, 2, 5, 6, 7, 9)] == [
        {"happy", "sad"},
        {"sad"},
        set(),
        {"angry"},
        set(),
        {"sad"},
        set(),
    ]
    assert sorted(found.causes) == [3, 4, 8]
    assert found.causes[3] == (
        "has no target, 'emotions'; fill it in ('none', if no label holds), or leave the utterance out "
        "(on_bad skip)"
    )
    assert found.causes[4] == "its 'emotions' names 'happy' twice; leave one out"


def test_sets_with_intensities_and_given_labels() -> None:
    cells = ["happy:2;sad:0.5", "sad", "happy:9", "bored", "happy:x", {"sad": None}, "none", "sad:-1"]
    options = {"bounds": {"emotions": [0, 3]}, "labels": ["sad", "happy", "fear"]}
    found = typed("multilabel", {"emotions": cells}, **options)
    assert found.target == Target("multilabel", {name: [0, 3] for name in ("sad", "happy", "fear")})
    assert found.meta_of(0) == {"sad": 0.5, "happy": 2, "fear": 0}
    assert found.meta_of(1) == {"sad": 1, "happy": 0, "fear": 0}
    assert found.meta_of(6) == {"sad": 0, "happy": 0, "fear": 0}
    assert {i: cause.partition(";")[0] for i, cause in found.causes.items()} == {
        2: "its 'happy' is 9.0, outside of 0 to 3",
        3: "its 'emotions' has 'bored', which is none of the labels ['sad', 'happy', 'fear']",
        4: "its 'emotions' has 'happy:x'",
        5: "its 'emotions' has no intensity of 'sad'",
        7: "its 'sad' is -1.0, outside of 0 to 3",
    }


def test_none_is_a_label_if_it_is_named() -> None:
    found = typed("multilabel", {"emotions": ["none", "sad"]}, labels=["none", "sad"])
    assert found.metas == [{"none": 1, "sad": 0}, {"none": 0, "sad": 1}]


@pytest.mark.parametrize(
    ("kind", "columns", "complaint"),
    [
        ("regression", {"v": ["", None]}, "no utterance has a value of 'v'"),
        (
            "regression",
            {"v": ["x", "y"]},
            "no utterance has good values of 'v': its 'v' is 'x', not a number",
        ),
        ("multilabel", {"emotions": ["", "none"]}, "no utterance has a label in 'emotions'"),
        ("multilabel", {"emotions": ["Sad", "sad"]}, "emotions: labels differ only in case"),
        ("multilabel", {"emotions": ["sad,happy"]}, "has the label 'sad,happy'; write ';' between labels"),
        ("multilabel", {"emotions": ["label", "sad"]}, "a label of 'emotions' is called 'label'"),
    ],
)
def test_columns_without_a_target(kind: str, columns: dict[str, list[Any]], complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^t\.csv: .*{complaint}|^t\.csv: {complaint}"):
        typed(kind, columns)
