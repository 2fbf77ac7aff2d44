"""Reports on values: every figure is told, what is not defined says so, and names stay text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from report_support import (
    HOSTILE,
    make_hostile_values,
    make_label_run,
    make_run,
    make_value_run,
    plain_markdown,
    shown_text,
)
from torch.utils.tensorboard import SummaryWriter

from awtpn.metrics.bootstrap_values import bootstrap_values
from awtpn.metrics.confidence_intervals import t_interval
from awtpn.report.data import gather
from awtpn.report.html import card, render_html
from awtpn.report.markdown import render_markdown
from awtpn.report.values import coverage, farthest, value_sections
from shards.safe_io.printable import printable

NAN = math.nan


def random_values(seed: int, count: int = 60, noise: float = 0.5) -> tuple[list[float], list[float]]:
    """True values in -3 to 3 that depend on nothing, and predictions that depend on the seed."""
    truth = np.random.default_rng(7).uniform(-3, 3, count).round(2)
    return truth.tolist(), (truth + np.random.default_rng(seed).normal(0, noise, count)).tolist()


def section(folder: Path, title: str) -> list[list[str]]:
    """The rows of the section of this title."""
    [found] = [s for s in value_sections(gather([folder])) if s.title == title]
    assert found.table is not None
    return [list(row) for row in found.table.rows]


# --- Metrics -------------------------------------------------------------------------------------


def test_a_page_tells_the_metrics_with_their_intervals(tmp_path: Path) -> None:
    truth, predicted = random_values(1)
    run = make_value_run(tmp_path / "run", {"valence": truth}, {"valence": predicted})
    report = gather([run])
    mae = float(np.abs(np.array(truth) - predicted).mean())
    expected = bootstrap_values(np.array(truth)[:, None], [np.array(predicted).round(6)[:, None]], None)
    assert report.over_utterances == expected
    low, high = expected["MAE"].low, expected["MAE"].high
    assert low < mae < high
    for content in (shown_text(render_html(report)), render_markdown(report)):
        assert f"{mae:.4f}" in content
        assert f"{low:.4f} to {high:.4f}" in content
        assert f"{np.corrcoef(truth, predicted)[0, 1]:.4f}" in content
        assert "mean absolute error; lower is better" in content
        assert "60 test utterances, 1 dimension;" in content
        assert "valence" in content
        assert "accuracy" not in content, "it is no classification"


def test_seeds_are_averaged_and_judged_on_the_same_utterances(tmp_path: Path) -> None:
    pairs = [random_values(seed) for seed in range(3)]
    runs = [
        make_value_run(tmp_path / f"{seed}", {"v": truth}, {"v": predicted}, seed=seed)
        for seed, (truth, predicted) in enumerate(pairs)
    ]
    # The lines of a run may stand in another order.
    file = runs[1] / "predictions-test.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    report = gather(runs)
    errors = [float(np.abs(np.subtract(truth, predicted)).mean()) for truth, predicted in pairs]
    assert report.means["MAE"] == pytest.approx(np.mean(errors))
    assert report.over_trainings is not None
    interval = report.over_trainings["MAE"]
    assert [interval.low, interval.high] == pytest.approx(t_interval(errors))
    assert interval.how == "Student's t over 3 seeds"
    models = [np.array(predicted).round(6)[:, None] for _, predicted in pairs]
    expected = bootstrap_values(np.array(pairs[0][0])[:, None], models, None)["CCC"]
    assert report.over_utterances is not None
    assert report.over_utterances["CCC"].low == pytest.approx(expected.low)
    assert report.over_utterances["CCC"].high == pytest.approx(expected.high)
    page = render_markdown(report)
    assert "MAE of each run:" in page
    assert all(f"{error:.4f}" in page for error in errors)


def test_folds_are_averaged_and_their_utterances_counted_once(tmp_path: Path) -> None:
    for fold in range(2):
        for seed in range(2):
            truth, predicted = random_values(10 * fold + seed, noise=0.3 + fold)
            name = f"fold-{fold}-seed-{seed}"
            make_value_run(tmp_path / name, {"v": truth}, {"v": predicted}, fold=fold, seed=seed)
    mean = {"MAE": 0.9876, "Corr": None}
    summary = {"command": "the command", "baseline": {"name": "ridge | <b>regression", "mean": mean}}
    (tmp_path / "cross_validation.json").write_text(json.dumps(summary))
    report = gather([tmp_path])
    assert report.what == "4 runs: 2 folds, seeds 0, 1"
    assert report.count("v", "utterances") == report.utterances == 120
    for content in (shown_text(render_html(report)), render_markdown(report)):
        assert "Means over the 4 runs." in content
        assert "Predictions of all 4 runs together." in content
        assert "regression" in content
        assert "0.9876" in content
    assert "ridge | <b>regression" in shown_text(render_html(report))
    assert r"| ridge \| &lt;b>regression |" in render_markdown(report)


def test_a_metric_that_is_not_defined_says_so(tmp_path: Path) -> None:
    truth, _ = random_values(1)
    run = make_value_run(tmp_path / "run", {"v": truth}, {"v": [0.5] * len(truth)})
    report = gather([run])
    assert report.means["Corr"] is None
    assert report.over_utterances is not None
    assert list(report.over_utterances) == ["MAE"]
    shown = card(report, "Corr")
    assert (shown["value"], shown["unit"], shown["picture"], shown["spans"]) == ("undefined", "", "", [])
    text = render_markdown(report)
    assert "| **Corr** (Pearson's correlation) | **undefined** | undefined | not known |" in text
    assert "interval not known" in shown_text(render_html(report))


def test_seeds_of_which_one_defines_no_correlation_have_none(tmp_path: Path) -> None:
    truth, predicted = random_values(1)
    one = make_value_run(tmp_path / "0", {"v": truth}, {"v": predicted})
    other = make_value_run(tmp_path / "1", {"v": truth}, {"v": [0.0] * len(truth)}, seed=1)
    report = gather([one, other])
    assert report.means["Corr"] is None
    assert report.over_trainings is not None
    assert list(report.over_trainings) == ["MAE"]
    assert "undefined" in shown_text(render_html(report))


def test_one_utterance_has_a_page(tmp_path: Path) -> None:
    run = make_value_run(tmp_path / "run", {"v": [2.5]}, {"v": [2.0]}, validation=None)
    report = gather([run])
    assert report.means == {"MAE": 0.5, "Corr": None, "CCC": None}
    for content in (shown_text(render_html(report)), render_markdown(report)):
        assert "0.5000 to 0.5000" in content
        assert "undefined" in content
        assert "nan" not in content.replace("dominance", "")


def test_missing_values_leave_their_dimension(tmp_path: Path) -> None:
    truth = {"a": [1.0, NAN, 3.0, 4.0], "b": [NAN, NAN, NAN, NAN], "c": [0.0, 1.0, 2.0, NAN]}
    predicted = {"a": [1.5, 9.0, 3.0, 4.5], "b": [0.0, 1.0, 2.0, 3.0], "c": [0.0, 1.0, 5.0, 77.0]}
    run = make_value_run(tmp_path / "run", truth, predicted)
    rows = section(run, "Dimensions")
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("a", "0.3333", "3"),
        ("b", "undefined", "0"),
        ("c", "1.0000", "3"),
    ]
    largest = section(run, "Largest residuals")
    assert {row[1] for row in largest} == {"a", "c"}
    assert len(largest) == 6
    assert largest[0] == ["u2", "c", "2.0000", "5.0000", "-3.0000"]
    page = render_html(gather([run]))
    assert "77.0000" not in page, "a prediction without truth is not judged"
    assert 'aria-label="b: residuals, truth - prediction: no utterances"' in page
    assert "nan" not in page


def test_a_dataset_without_any_value_has_a_page(tmp_path: Path) -> None:
    run = make_value_run(tmp_path / "run", {"v": [NAN, NAN]}, {"v": [1.0, 2.0]}, validation=None)
    report = gather([run])
    assert report.over_utterances == {}
    for content in (shown_text(render_html(report)), render_markdown(report)):
        assert "no metric is defined" in content
        assert "No utterance has a true value." in content


def test_validations_are_of_the_metric_that_chose_the_best(tmp_path: Path) -> None:
    truth, predicted = random_values(1)
    run = make_value_run(tmp_path / "run", {"v": truth}, {"v": predicted})
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for step, value in ((10, 0.75), (20, 0.5)):
            writer.add_scalar("val/MAE", value, step)
            writer.add_scalar("val/CCC", 1 - value, step)
    assert "validation MAE" in shown_text(render_html(gather([run])))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["best_by"] = "CCC"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    report = gather([run])
    assert report.main == "CCC"
    assert report.runs[0].validations("CCC") == [(10, 0.25), (20, 0.5)]
    shown = shown_text(render_html(report))
    assert "validation CCC" in shown
    assert "There was no validation" not in shown
    config["train"]["best_by"] = "<b>"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert gather([run]).main == "MAE", "what the task has no metric of is not shown"


# --- Sentiment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "corpus", "metrics"),
    [
        ((-3, 3), "CMU-MOSI", ["Acc-2", "F1-2", "Acc-2-has0", "F1-2-has0", "Acc-3", "Acc-5", "Acc-7"]),
        ((-1, 1), "CH-SIMS", ["Acc-2", "F1-2", "Acc-3", "Acc-5"]),
    ],
)
def test_sentiment_names_its_bins(
    bounds: tuple[int, int], corpus: str, metrics: list[str], tmp_path: Path
) -> None:
    truth, predicted = (np.array(values) * bounds[1] / 3 for values in random_values(1))
    run = make_value_run(tmp_path / "run", {"sentiment": truth}, {"sentiment": predicted}, ranges=[bounds])
    report = gather([run])
    rows = section(run, "Cut into classes")
    assert [row[1] for row in rows] == metrics
    assert report.over_utterances is not None
    for row in rows:
        assert row[3] == f"{100 * report.runs[0].metrics[row[1]]:.2f}"
        interval = report.over_utterances[row[1]]
        assert row[4] == f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"
    text = render_markdown(report)
    assert f"the classes of {corpus}" in text
    assert ("cut at -0.7, -0.1, 0.1 and 0.7" in text) == (corpus == "CH-SIMS")


def test_other_ranges_have_no_classes(tmp_path: Path) -> None:
    truth, predicted = random_values(1)
    run = make_value_run(tmp_path / "run", {"v": truth}, {"v": predicted}, ranges=[(-4, 4)])
    assert "Cut into classes" not in render_markdown(gather([run]))


# --- Residuals -----------------------------------------------------------------------------------


def test_coverage_is_that_of_the_interval_of_the_validation(tmp_path: Path) -> None:
    truth, predicted = random_values(3)
    runs = [
        make_value_run(tmp_path / f"{seed}", {"v": truth}, {"v": predicted}, validation=width, seed=seed)
        for seed, width in enumerate((0.4, 0.8))
    ]
    report = gather(runs)
    assert [run.interval_of("v") for run in report.runs] == pytest.approx([0.4, 0.8])
    residual = np.abs(np.subtract(truth, predicted))
    inside = (np.mean(residual <= 0.4) + np.mean(residual <= 0.8)) / 2
    assert coverage(report, 0) == pytest.approx(inside)
    [found] = [s for s in value_sections(report) if s.title == "Residuals"]
    assert found.table is not None
    assert list(found.table.rows[0])[-2:] == ["0.6000", f"{100 * inside:.1f}"]
    assert "of the validation utterances" in found.note


def test_an_interval_of_the_same_utterances_says_so(tmp_path: Path) -> None:
    truth, predicted = random_values(3)
    run = make_value_run(tmp_path / "run", {"v": truth}, {"v": predicted}, validation=None)
    report = gather([run])
    covered = coverage(report, 0)
    assert covered is not None
    assert 0.9 <= covered <= 0.92, "of 60 utterances the 55th residual"
    assert "measured on the same utterances" in render_markdown(report)


def test_the_largest_residuals_are_of_the_mean_prediction(tmp_path: Path) -> None:
    truth = {"small": [0.0, 1.0, 0.0, 1.0], "large": [0.0, 100.0, 0.0, 100.0]}
    one = {"small": [0.0, 1.0, 2.0, 1.0], "large": [0.0, 60.0, 0.0, 100.0]}
    two = {"small": [0.0, 1.0, 2.0, 1.0], "large": [0.0, 100.0, 0.0, 100.0]}
    runs = [make_value_run(tmp_path / f"{s}", truth, given, seed=s) for s, given in enumerate((one, two))]
    answers = gather(runs).answers
    assert answers is not None
    # 2 of "small" are four deviations, 20 of "large" less than one.
    assert farthest(answers)[:2] == [("u2", 0, 0.0, 2.0), ("u1", 1, 100.0, 80.0)]
    assert len(farthest(answers, most=3)) == 3


# --- Runs that do not fit ------------------------------------------------------------------------


def test_predictions_that_do_not_match_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predicted = random_values(1)
    for name, change in (
        ("value", lambda line: line | {"predicted": {"v": 9.0}}),
        ("names", lambda line: line | {"predicted": {"w": 0.5}}),
        ("words", lambda line: line | {"predicted": {"v": "high"}}),
        ("task", lambda line: {"key": "u", "label": "a", "predicted": "a", "probabilities": {}}),
        ("labels", lambda line: {"key": "u", "labels": {"v": 1}, "probabilities": {"v": 1}}),
    ):
        run = make_value_run(tmp_path / name, {"v": truth}, {"v": predicted})
        file = run / "predictions-test.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(change(line)) + "\n" for line in lines))
        report = gather([run])
        assert report.over_utterances is None
        text = render_markdown(report)
        assert "not known: the runs kept no predictions" in text
        assert "not known | not known" in text, "quantiles and coverage"
        assert "Not known: the runs kept no predictions." in shown_text(render_html(report))
        [warning] = capsys.readouterr().err.splitlines()
        assert f"{name}/predictions-test.jsonl is left out: it does not match" in warning


def test_runs_of_different_tasks_are_refused(tmp_path: Path) -> None:
    values = make_value_run(tmp_path / "values", {"v": [1.0, 2.0]}, {"v": [1.0, 2.0]})
    labels = make_label_run(tmp_path / "labels", {"v": [1.0, 0.0]}, {"v": [1.0, 0.0]}, seed=1)
    classes = make_run(tmp_path / "classes", seed=2)
    with pytest.raises(
        ValueError, match=r"labels is a multilabel and \S+values a regression: a report is of"
    ):
        gather([values, labels])
    with pytest.raises(ValueError, match=r"values is a regression and \S+classes a classification"):
        gather([classes, values])
    other = make_value_run(tmp_path / "other", {"w": [1.0, 2.0]}, {"w": [1.0, 2.0]}, seed=3)
    with pytest.raises(ValueError, match="were not tested on the same split and dimensions"):
        gather([values, other])
    results = json.loads((values / "results.json").read_text())
    results["test"]["task"] = "ranking"
    (values / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"values/results\.json: its task is none of classification, "):
        gather([values])


# --- Hostile names -------------------------------------------------------------------------------


def test_names_of_dimensions_are_text_on_the_page(tmp_path: Path) -> None:
    page = render_html(gather([make_hostile_values(tmp_path)]))
    shown = shown_text(page)
    for name in HOSTILE:
        assert shown.count(printable(name)) >= 5
    assert "\x1b" not in page
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page


def test_names_of_dimensions_are_text_in_markdown(tmp_path: Path) -> None:
    text = render_markdown(gather([make_hostile_values(tmp_path)]))
    headings, flat = plain_markdown(text)
    assert headings[1:] == [
        "Figures",
        "Dimensions",
        "Cut into classes",
        "Predicted against true values",
        "Residuals",
        "Largest residuals",
        "Losses",
        "Cost",
        "Reproduction",
    ]
    columns = [token for token in flat if token.type == "th_open"]
    assert len(columns) == 4 + 9 + 4 + 5 + 8 + 5 + 4 + 2 + 2 + 3, "no cell is cut by a bar in a name"
    words = "".join(token.content for token in flat if token.type in ("text", "text_special", "code_inline"))
    assert all(printable(name) in words for name in HOSTILE)
    assert "\x1b" not in text
