"""The summary of runs, and the report of it: intervals of the right kind, and nothing undefined stops it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from awtpn.experiments.comparison import curves, page
from awtpn.experiments.comparison.chart import legend, lines_svg, spaced
from awtpn.experiments.comparison.runs import Found
from awtpn.experiments.comparison.suite import Curves
from awtpn.experiments.comparison.summary import over_datasets, summarize_dataset
from awtpn.experiments.comparison.tables import sections_of
from awtpn.experiments.scores import Score
from awtpn.metrics.classification import summarize
from awtpn.report.answers import Answers

NAMES = ("w-ACC", "w-F1", "UA", "macro-F1")


def of_folds(values: dict[tuple[Any, int | None], float | None], **of: Any) -> list[Found]:
    """Runs with these values of every metric, by fold and seed."""
    return [
        Found(Score(fold, seed, dict.fromkeys(NAMES, value)), {"utterances": 10}, **of)
        for (fold, seed), value in values.items()
    ]


def of_split(seeds: Sequence[int | None], right: float) -> list[Found]:
    """Runs on the same 60 utterances of three classes, of which the share `right` is recognized."""
    label = np.arange(60) % 3
    found = []
    for seed in seeds:
        wrong = np.random.default_rng(seed or 0).random(60) >= right
        predicted = np.where(wrong, (label + 1) % 3, label)
        confusion = np.zeros((3, 3), np.int64)
        np.add.at(confusion, (label, predicted), 1)
        figures = summarize(confusion, ["a", "b", "c"])
        answers = Answers([f"u{i:02d}" for i in range(60)], label[:, None] * 1.0, predicted[:, None] * 1.0)
        score = Score(None, seed, {name: figures[name] for name in NAMES})
        found.append(Found(score, figures, 2.0, 100, {"audio": 0.7 + (seed or 0) / 10}, answers))
    return found


@pytest.fixture
def folded() -> dict[str, list[Found]]:
    return {
        "linear": of_folds({("a", None): 0.6, ("b", None): 0.7, ("c", None): 0.8}),
        "awtpn": of_folds(
            {(f, s): x + s / 100 for f, x in (("a", 0.7), ("b", 0.8), ("c", 0.9)) for s in (0, 2)}
        ),
        "other": of_folds({(f, s): 0.5 + s / 25 for f in "abc" for s in (0, 2)}, seconds=4.0, weights=7),
    }


def test_folds_are_compared_with_the_corrected_test(folded: dict[str, list[Found]]) -> None:
    found = summarize_dataset(folded, "speaker")
    assert (found["metric"], found["second"], found["folds"], found["utterances"]) == ("w-F1", "w-ACC", 3, 30)
    ours = found["models"]["awtpn"]
    assert ours["mean"]["w-F1"] == pytest.approx(0.81)
    # Fold means 0.71, 0.81, 0.91: t(0.975, 2) = 4.302653
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert ours["interval"]["w-F1"] == pytest.approx([0.81 - half, 0.81 + half], abs=1e-6)
    assert ours["deviation_over_seeds"] == pytest.approx(0.02 / math.sqrt(2))
    assert found["models"]["linear"]["deviation_over_seeds"] is None
    beside = found["differences"]["awtpn"]
    assert beside["linear"]["w-F1"]["difference"] == pytest.approx(0.11)
    assert beside["linear"]["w-F1"]["interval"] == pytest.approx([0.11, 0.11])
    # Differences 0.17, 0.27, 0.37: s = 0.1, variance of the mean (1/3 + 1/2) s^2
    half = 4.302653 * 0.1 * math.sqrt(5 / 6)
    assert beside["other"]["w-F1"]["interval"] == pytest.approx([0.27 - half, 0.27 + half], abs=1e-6)
    assert found["differences"]["other"]["awtpn"]["w-F1"]["difference"] == pytest.approx(-0.27)


def test_own_splits_are_compared_by_a_paired_bootstrap() -> None:
    models = {"linear": of_split([None], 0.5), "awtpn": of_split([0, 1], 0.9), "same": of_split([0, 1], 0.9)}
    found = summarize_dataset(models, None)
    assert found["models"]["awtpn"]["interval_over"] == "utterances"
    beside = found["differences"]["awtpn"]
    assert beside["same"]["w-F1"] == {"difference": 0.0, "interval": [0.0, 0.0], "over": "utterances"}
    difference = beside["linear"]["w-F1"]
    assert difference["interval"][0] > 0
    assert difference["interval"][0] < difference["difference"] < difference["interval"][1]
    # t(0.975, 1) = 12.7062, standard error 0.05
    auroc = found["models"]["awtpn"]["auroc"]["audio"]
    assert auroc["mean"] == pytest.approx(0.75)
    assert auroc["interval"] == pytest.approx([0.75 - 0.63531, 0.75 + 0.63531], abs=1e-5)


def test_without_predictions_seeds_are_left() -> None:
    models = {"linear": of_split([None], 0.5), "awtpn": of_folds({(None, 0): 0.6, (None, 1): 0.8})}
    found = summarize_dataset(models, None)
    assert found["models"]["awtpn"]["interval_over"] == "seeds"
    assert found["differences"]["awtpn"]["linear"]["w-F1"]["over"] == "seeds"


def results_of(datasets: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "awtpn compare-models",
        "seeds": [0, 2],
        "headline": "awtpn",
        "reference": "linear",
        "models": {"linear": "linear", "awtpn": {}, "other": {"model.awm": "uniform"}},
        "left_out": {"gone": "there is no gone.npz in the folder of --sources"},
        "datasets": datasets,
        "mean": over_datasets(datasets, "awtpn"),
    }


def test_the_report_shows_all_of_it(folded: dict[str, list[Found]]) -> None:
    first = summarize_dataset(folded, "speaker")
    models = {"linear": of_split([None], 0.5), "awtpn": of_split([0, 1], 0.9), "other": of_split([0, 1], 0.7)}
    second = summarize_dataset(models, None)
    results = results_of({"mine": first, "own": second})
    chosen = {"awtpn": {"optim.lr=1e-3": 2, "optim.lr=3e-3": 1}}
    results["nested"] = {"seeds": [0], "datasets": {"mine": {**first, "chosen": chosen}}, "mean": None}
    settings = Curves("demo", {"steps": 40}, {"steps": [20, 40]}, ["linear", "awtpn"], [0])
    points = {"steps=20": second, "base": summarize_dataset(dict.fromkeys(models, models["other"]), None)}
    results["curves"] = curves.summarize_curves(settings, points, "awtpn", "linear")
    results["curves"]["parameters"]["steps"][1]["difference"] = {
        "difference": -0.1,
        "interval": [-0.2, -0.05],
    }
    mean = results["mean"]["difference"]["other"]
    halves = [
        np.ptp(found["differences"]["awtpn"]["other"]["w-F1"]["interval"]) / 2 for found in (first, second)
    ]
    assert np.ptp(mean["interval_of_these"]) / 2 == pytest.approx(math.hypot(*halves) / 2)
    markdown, html = page.render_markdown(results), page.render_html(results)
    assert "| mean over datasets | these datasets |" in markdown
    assert "| mine | 3 folds by speaker | 70.00 (45.16 to 94.84) | **81.00 (56.16 to 105.84)** |" in markdown
    assert "- left out: gone, since there is no gone.npz in the folder of --sources" in markdown
    assert "optim.lr=1e-3: 2 of 3; optim.lr=3e-3: 1 of 3" in markdown
    assert "awtpn is below linear by more than the interval at steps=40." in markdown
    assert "| own | audio | 0.700 | 0.750 (0.115 to 1.385) |" in markdown
    assert "| mine | none | 1.41 | 5.66 (0.25) |" in markdown
    rendered = MarkdownIt().enable("table").render(markdown)
    for title in ("Table 1", "Table 2", "Deviation over seeds", "Cost", "Curve: steps", "Intervals"):
        assert f"<h2>{title}" in html
        assert f"<h2>{title}" in rendered
    assert html.count("<svg") == 1
    assert "<b>81.00 (56.16 to 105.84)</b>" in html
    assert "<script" not in html


def test_what_is_undefined_is_shown_as_such(folded: dict[str, list[Found]]) -> None:
    folded["awtpn"] = of_folds({(f, s): None if f == "b" else 0.7 for f in "abc" for s in (0, 2)})
    found = summarize_dataset(folded, "speaker")
    assert found["models"]["awtpn"]["mean"]["w-F1"] is None
    assert found["models"]["awtpn"]["undefined"]["w-F1"] == 2
    assert found["differences"]["awtpn"]["other"]["w-F1"]["interval"] is None
    results = results_of({"mine": found, "again": found})
    assert results["mean"]["difference"]["other"] == {
        "difference": None,
        "interval": None,
        "interval_of_these": None,
    }
    assert "| mine | 3 folds by speaker | **70.00 (45.16 to 94.84)** | undefined |" in page.render_markdown(
        results
    )
    assert "undefined" in page.render_html(results)


def test_tables_of_datasets_with_different_metrics_have_no_mean(folded: dict[str, list[Found]]) -> None:
    names = ("MAE", "Corr", "CCC")
    errors = {
        model: [
            Found(Score(f, s, dict.fromkeys(names, x), "regression"), {"utterances": 5})
            for f in "ab"
            for s in (0, 1)
        ]
        for model, x in (("linear", 0.5), ("awtpn", 0.4), ("other", 0.6))
    }
    values = summarize_dataset(errors, "speaker")
    assert values["differences"]["awtpn"]["linear"]["MAE"]["difference"] == pytest.approx(0.1), (
        "less is better"
    )
    results = results_of({"mine": summarize_dataset(folded, "speaker"), "values": values})
    assert results["mean"] is None
    [row] = [row for row in sections_of(results)[0].table.rows if row[0].startswith("values")]  # type: ignore[union-attr]
    assert row[0] == "values (MAE)"
    assert type(row[3]).__name__ == "Strong", "the least error is the best"


def test_a_chart_has_a_line_for_each_model_and_leaves_out_what_is_undefined() -> None:
    series = {"a": [(0.5, [0.4, 0.6]), (None, None), (0.7, None)], "b": [(0.1, None)] * 3}
    picture = lines_svg([10, 100, 1000], series, "w-F1 over steps", True)
    assert picture.count("<polyline") == 2
    assert picture.count("<circle") == 5
    assert "undefined" in lines_svg([1], {"a": [(None, None)]}, "w-F1 over steps", True)
    assert legend(["a", "b"]).rows == 1
    assert legend(["a name of thirty-two letters, say"] * 3).rows == 3
    assert spaced([10, 100, 1000]) == pytest.approx([0, 0.5, 1])
    assert spaced([0, 1, 4]) == pytest.approx([0, 0.25, 1])
    assert spaced([None, "audio"]) == [0, 1]
    assert spaced([3]) == [0.5]
