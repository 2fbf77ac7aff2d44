"""Reports on several labels: every label has its figures and curves, and names stay text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from report_support import HOSTILE, make_hostile_labels, make_label_run, plain_markdown, shown_text

from awtpn.metrics.bootstrap_values import bootstrap_labels
from awtpn.report import charts, value_charts
from awtpn.report.answers import agree, answers_of
from awtpn.report.data import gather
from awtpn.report.html import render_html
from awtpn.report.labels import at_threshold, label_sections, surest
from awtpn.report.markdown import render_markdown
from shards.safe_io.printable import printable

NAN = math.nan


def random_labels(seed: int, count: int = 60) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intensities of two labels [count, 2], of which some are missing, and probabilities of them."""
    truth = np.random.default_rng(7).integers(0, 3, (count, 2)).astype(float)
    truth[::9, 1] = NAN
    noise = np.random.default_rng(seed).uniform(-0.45, 0.45, (count, 2))
    return truth, np.clip(0.5 + 0.25 * np.sign(np.nan_to_num(truth) - 0.5) + noise, 0, 1).round(6)


def make_random_run(folder: Path, seed: int = 0, fold: int | None = None) -> Path:
    truth, probability = random_labels(seed)
    names = ("happy", "sad")
    by_name = [dict(zip(names, table.T.tolist(), strict=True)) for table in (truth, probability)]
    return make_label_run(folder, *by_name, seed=seed, fold=fold)


def section(folder: Path, title: str) -> list[list[str]]:
    """The rows of the section of this title; none if it has no table."""
    [found] = [s for s in label_sections(gather([folder])) if s.title == title]
    return [list(row) for row in found.table.rows] if found.table else []


# --- Figures -------------------------------------------------------------------------------------


def test_a_page_tells_the_metrics_with_their_intervals(tmp_path: Path) -> None:
    report = gather([make_random_run(tmp_path / "run")])
    truth, probability = random_labels(0)
    expected = bootstrap_labels(truth, [probability])
    assert report.over_utterances == expected
    figures = report.runs[0].metrics
    for content in (shown_text(render_html(report)), render_markdown(report)):
        for name in ("WA", "F1", "w-F1", "UA", "mAP", "subset accuracy"):
            assert f"{100 * figures[name]:.2f}" in content
            interval = expected[name]
            assert f"{100 * interval.low:.2f} to {100 * interval.high:.2f}" in content
        assert "60 test utterances, 2 labels;" in content
        assert "where its probability is above 0.5" in content


def test_seeds_and_folds_are_averaged(tmp_path: Path) -> None:
    for fold in range(2):
        for seed in range(2):
            make_random_run(tmp_path / f"fold-{fold}-seed-{seed}", seed=seed, fold=fold)
    report = gather([tmp_path])
    assert report.count("sad", "utterances") == 2 * 53
    values = [run.parts["sad"]["AP"] for run in report.runs]
    assert report.part_means["sad"]["AP"] == pytest.approx(np.mean(values))
    assert report.over_utterances is not None
    assert report.over_trainings is not None
    page = render_markdown(report)
    assert f"{100 * float(np.mean(values)):.2f}" in page
    assert "F1 of each run:" in page
    assert "Student's t over 2 fold means" in page


def test_each_label_has_its_row(tmp_path: Path) -> None:
    truth = {"common": [1.0, 2.0, 0.0, 0.0], "always": [1.0, 1.0, 1.0, NAN], "never": [0.0, NAN, 0.0, 0.0]}
    given = {"common": [0.9, 0.2, 0.6, 0.1], "always": [0.9, 0.9, 0.9, 0.9], "never": [0.1, 0.2, 0.1, 0.7]}
    run = make_label_run(tmp_path / "run", truth, given)
    undefined = ["undefined"] * 6
    # "common": one of two present ones is found, and one of two predicted ones is present.
    assert section(run, "Labels") == [
        ["common", "50.00", "50.00", "50.00", "50.00", "50.00", "83.33", "2", "4"],
        ["always", *undefined, "3", "3"],
        ["never", *undefined, "0", "3"],
    ]
    page = render_html(gather([run]))
    assert 'aria-label="never: precision over recall: no utterances have the label"' in page
    assert "nan" not in page


def test_one_utterance_and_a_label_without_truth_have_a_page(tmp_path: Path) -> None:
    run = make_label_run(tmp_path / "run", {"a": [1.0], "b": [NAN]}, {"a": [0.4], "b": [0.7]})
    report = gather([run])
    assert report.means["F1"] is None
    for content in (shown_text(render_html(report)), render_markdown(report)):
        assert "undefined" in content
        assert "present" in content
        assert "nan" not in content
    assert section(run, "Curves of the labels")[1] == ["b", *["undefined"] * 3, "0"]


def test_runs_without_predictions_say_so(tmp_path: Path) -> None:
    run = make_random_run(tmp_path / "run")
    (run / "predictions-test.jsonl").unlink()
    report = gather([run])
    for content in (shown_text(render_html(report)), render_markdown(report)):
        assert "not known: the runs kept no predictions" in content
        assert "Not known: the runs kept no predictions." in content


def test_predictions_match_despite_rounding_at_the_threshold(tmp_path: Path) -> None:
    truth, given = {"a": [1.0, 0.0]}, {"a": [0.5000001, 0.1]}
    run = make_label_run(tmp_path / "run", truth, given)
    report = gather([run])
    answers = report.runs[0].answers
    assert answers is not None
    assert answers.given[0, 0] == 0.5, "as it is written it would not be above the threshold"
    file = run / "predictions-test.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    found = answers_of([lines[0], lines[1] | {"probabilities": {"a": 0.9}}], "multilabel", ["a"])
    assert found is not None
    assert not agree(found, report.runs[0].metrics)


# --- Mistakes and curves -------------------------------------------------------------------------


def test_the_surest_mistakes_are_those_of_the_mean_probability(tmp_path: Path) -> None:
    truth = {"a": [1.5, 0.0, 0.0, NAN], "b": [1.0, 1.0, 0.0, 0.0]}
    one = {"a": [0.1, 0.2, 0.9, 0.9], "b": [0.9, 0.9, 0.6, 0.1]}
    two = {"a": [0.3, 0.2, 0.2, 0.9], "b": [0.9, 0.9, 0.6, 0.1]}
    runs = [make_label_run(tmp_path / f"{s}", truth, given, seed=s) for s, given in enumerate((one, two))]
    report = gather(runs)
    [found] = [s for s in label_sections(report) if s.title == "Most confident mistakes"]
    assert found.table is not None
    assert [list(row) for row in found.table.rows] == [
        ["u0", "a", "present (1.50)", "20.00", "2 of 2"],
        ["u2", "b", "absent", "60.00", "2 of 2"],
        ["u2", "a", "absent", "55.00", "1 of 2"],
    ]
    assert report.answers is not None
    assert len(surest(report.answers, 0.5, most=1)) == 1


def test_a_model_without_mistakes_says_so(tmp_path: Path) -> None:
    run = make_label_run(tmp_path / "run", {"a": [1.0, 0.0]}, {"a": [0.9, 0.1]})
    assert section(run, "Most confident mistakes") == []
    assert "All predictions are correct." in shown_text(render_html(gather([run])))


def test_the_threshold_is_a_point_of_the_curve() -> None:
    truth, probability = np.array([1.0, 1.0, 0.0, 0.0]), np.array([0.9, 0.4, 0.6, 0.1])
    assert at_threshold(truth, probability, 0.5) == (0.5, 0.5, 0.5)
    assert at_threshold(truth * 0, probability, 0.5) is None
    assert at_threshold(truth, probability * 0, 0.5) is None
    curve = [{"threshold": 0.9, "precision": 1.0, "recall": 0.5}]
    drawn = value_charts.precision_recall_svg(curve, (0.5, 1.0, 0.5), 0.25, "x&y")
    assert 'aria-label="x&amp;y: precision over recall"' in drawn
    assert "above 0.5: recall 50.0 %, precision 100.0 %" in drawn
    frame = value_charts.Frame([0, 1], [0, 1])
    assert f'points="{frame.path([(0, 1), (0.5, 1)])}"' in drawn
    assert "<circle" not in value_charts.precision_recall_svg(curve, None, 0.25, "x")


def test_a_named_calibration_chart_names_its_axes() -> None:
    table = [{"confidence": 0.25, "accuracy": 0.5, "count": 2}]
    drawn = charts.calibration_svg(table, "a<b", "probability", "share that has it")
    assert 'aria-label="a&lt;b: share that has it over probability"' in drawn
    assert "2 predictions, probability 0.25, share that has it 0.50" in drawn
    assert charts.calibration_svg([], "empty").count("<circle") == 0


def test_of_many_labels_the_first_have_charts(tmp_path: Path) -> None:
    names = [f"label {i}" for i in range(14)]
    run = make_label_run(tmp_path / "run", {n: [1.0, 0.0] for n in names}, {n: [0.9, 0.1] for n in names})
    page = render_html(gather([run]))
    assert len(re.findall('aria-label="label [0-9]+: precision', page)) == 12
    assert "The charts show the first 12 of 14 labels." in page
    assert "The charts" not in render_markdown(gather([run]))


# --- Hostile names -------------------------------------------------------------------------------


def test_names_of_labels_are_text_on_the_page(tmp_path: Path) -> None:
    page = render_html(gather([make_hostile_labels(tmp_path)]))
    shown = shown_text(page)
    for name in HOSTILE:
        assert shown.count(printable(name)) >= 3
    assert "\x1b" not in page
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page


def test_names_of_labels_are_text_in_markdown(tmp_path: Path) -> None:
    text = render_markdown(gather([make_hostile_labels(tmp_path)]))
    headings, flat = plain_markdown(text)
    sections = ["Figures", "Labels", "Curves of the labels", "Most confident mistakes", "Losses", "Cost"]
    assert headings[1:] == [*sections, "Reproduction"]
    columns = [token for token in flat if token.type == "th_open"]
    assert len(columns) == 4 + 9 + 5 + 5 + 4 + 2 + 2 + 3, "no cell is cut by a bar in a name"
    words = "".join(token.content for token in flat if token.type in ("text", "text_special", "code_inline"))
    assert all(printable(name) in words for name in HOSTILE)
    assert "\x1b" not in text
