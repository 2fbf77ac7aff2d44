"""Reports: runs are read, matched and averaged; pages tell every figure, and stand alone."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from report_support import CLASSES, HOSTILE, Tags, make_hostile_run, make_run

from awtpn.metrics.calibration import calibration, calibration_error, surest_mistakes
from awtpn.metrics.confidence_intervals import bootstrap, t_interval
from awtpn.report import charts
from awtpn.report.data import gather
from awtpn.report.html import render_html
from awtpn.report.markdown import render_markdown
from awtpn.report.text import duration
from awtpn.report.write import write_report
from awtpn.run.predictions import read_predictions
from shards.safe_io.markdown import block, bold, code, inline, table
from shards.safe_io.printable import printable

VIDEO = {"weight": 1.0, "distance_scale": 5.0}

# --- Gathering -----------------------------------------------------------------------------------


def test_one_run_has_the_interval_of_its_utterances_alone(tmp_path: Path) -> None:
    report = gather([make_run(tmp_path / "run", predictions=False)])
    assert report.what == "one run, seed 0"
    assert report.over_trainings is None
    assert report.over_utterances is not None
    figure, interval = report.means["w-F1"], report.over_utterances["w-F1"]
    assert interval.low < figure < interval.high
    assert interval.high - interval.low == pytest.approx(4 * np.sqrt(figure * (1 - figure) / 60), rel=0.35)


def test_seeds_are_averaged_and_judged_on_the_same_utterances(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"seed-{s}", seed=s) for s in range(3)]
    report = gather(runs)
    assert report.what == "3 runs: seeds 0, 1, 2"
    values = [run.metrics["w-F1"] for run in report.runs]
    assert report.means["w-F1"] == pytest.approx(np.mean(values))
    assert report.over_trainings is not None
    interval = report.over_trainings["w-F1"]
    assert [interval.low, interval.high] == pytest.approx(t_interval(values))
    assert interval.how == "Student's t over 3 seeds"
    lines = [run.predictions or [] for run in report.runs]
    index = {name: i for i, name in enumerate(CLASSES)}
    label = np.array([index[p["label"]] for p in lines[0]])
    predicted = [np.array([index[p["predicted"]] for p in of_run]) for of_run in lines]
    assert report.over_utterances is not None
    expected = bootstrap(label, predicted, 3)["w-F1"]
    assert (report.over_utterances["w-F1"].low, report.over_utterances["w-F1"].high) == (
        expected.low,
        expected.high,
    )


def test_seeds_without_predictions_have_no_interval_of_utterances(tmp_path: Path) -> None:
    report = gather([make_run(tmp_path / f"{s}", seed=s, predictions=False) for s in range(2)])
    assert report.over_utterances is None
    page = render_markdown(report)
    assert "not known: the runs kept no predictions of the same utterances" in page
    assert "Not known: the runs kept no predictions." in page


def test_folds_are_the_draws_not_their_seeds(tmp_path: Path) -> None:
    for fold in range(3):
        for seed in range(2):
            make_run(tmp_path / f"fold-{fold}-seed-{seed}", fold=fold, seed=seed, accuracy=0.5 + fold / 10)
    report = gather([tmp_path])
    assert report.what == "6 runs: 3 folds, seeds 0, 1"
    assert report.utterances == 180, "each once, however many seeds"
    assert list(report.folds) == ["fold 0", "fold 1", "fold 2"]
    of_fold = [np.mean([run.metrics["UA"] for run in runs]) for runs in report.folds.values()]
    assert report.over_trainings is not None
    interval = report.over_trainings["UA"]
    assert [interval.low, interval.high] == pytest.approx(t_interval([float(x) for x in of_fold]))
    assert report.pooled["utterances"] == 360
    page = render_markdown(report)
    assert "Student's t over 3 fold means" in page
    assert "not 6 independent samples" in page


@pytest.mark.parametrize(
    ("key", "of_other"),
    [
        ("model.alpha_audio", {"audio": {"weight": 0.4, "distance_scale": 5.0}, "video": VIDEO}),
        ("model.modalities", {"video": VIDEO}),
        ("model.modalities", {"video": VIDEO, "audio": VIDEO}),
    ],
)
def test_runs_may_differ_in_modalities_that_a_sweep_chose(
    key: str, of_other: dict[str, Any], tmp_path: Path
) -> None:
    make_run(tmp_path / "fold-0", fold=0)
    config = make_run(tmp_path / "fold-1", fold=1) / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["model"]["modalities"] = of_other
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.raises(ValueError, match=r"differ in model\.modalities"):
        gather([tmp_path])
    (tmp_path / "cross_validation.json").write_text(json.dumps({"chosen": [{"fold": 1, "point": {key: ""}}]}))
    assert len(gather([tmp_path]).runs) == 2


def test_what_cannot_be_reported_is_refused_by_name(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    with pytest.raises(ValueError, match=r"nowhere is not a run and contains none"):
        gather([tmp_path / "nowhere"])
    running = make_run(tmp_path / "running", seed=1, status="preempted")
    with pytest.raises(ValueError, match=r"running is not done but 'preempted'"):
        gather([one, running])
    other = make_run(tmp_path / "other", seed=2, lr=0.5)
    with pytest.raises(ValueError, match=r"other and \S+one are not repetitions .*differ in optim\.lr;"):
        gather([one, other])
    twin = make_run(tmp_path / "twin")
    with pytest.raises(ValueError, match=r"twin repeats \S+one"):
        gather([one, twin])
    (twin / "results.json").unlink()
    with pytest.raises(ValueError, match=r"twin is not a finished run: it has no results\.json"):
        gather([twin])


def test_settings_that_a_sweep_chose_may_differ(tmp_path: Path) -> None:
    make_run(tmp_path / "a", fold=0, lr=0.1)
    make_run(tmp_path / "b", fold=1, lr=0.2)
    with pytest.raises(ValueError, match=r"differ in optim\.lr"):
        gather([tmp_path])
    chosen = [{"fold": f, "point": {"optim.lr": f"0.{f + 1}"}} for f in (0, 1)]
    summary = {"command": "python launch/cross_validate.py", "logistic_regression": None, "chosen": chosen}
    (tmp_path / "cross_validation.json").write_text(json.dumps(summary))
    report = gather([tmp_path])
    assert len(report.runs) == 2
    assert report.command == "python launch/cross_validate.py", "as it was recorded"
    again = f"awtpn train --config {tmp_path}/a/config.yaml --run.dir {tmp_path}/a-again"
    assert replace(report, summary={}).command.splitlines()[0] == again


def test_a_broken_line_of_predictions_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"key": "a"}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 1: not a prediction"):
        read_predictions(tmp_path / "p.jsonl")


# --- Confidence ----------------------------------------------------------------------------------


def prediction(key: str, label: str, **probabilities: float) -> dict[str, Any]:
    predicted = max(probabilities, key=probabilities.__getitem__)
    return {"key": key, "label": label, "predicted": predicted, "probabilities": probabilities}


def test_calibration_compares_confidence_with_accuracy() -> None:
    lines = [prediction(str(i), "a" if i < 9 else "b", a=0.95, b=0.05) for i in range(10)]
    lines += [prediction(f"x{i}", "a", a=0.25, b=0.75) for i in range(5)]
    table = calibration(lines)
    assert [(row["accuracy"], row["count"]) for row in table] == [(0.0, 5), (0.9, 10)]
    assert calibration_error(table) == pytest.approx((10 * 0.05 + 5 * 0.75) / 15)
    assert calibration([prediction("sure", "a", a=1.0, b=0.0)])[0]["count"] == 1


def test_mistakes_are_those_of_the_mean_probabilities() -> None:
    lines = [
        prediction("both wrong", "a", a=0.2, b=0.8),
        prediction("both wrong", "a", a=0.4, b=0.6),
        prediction("outvoted", "a", a=0.9, b=0.1),
        prediction("outvoted", "a", a=0.4, b=0.6),
        prediction("surest", "b", a=0.9, b=0.1),
    ]
    found = surest_mistakes(lines)
    assert [(m.key, m.predicted, m.wrong, m.models) for m in found] == [
        ("surest", "a", 1, 1),
        ("both wrong", "b", 2, 2),
    ]
    assert found[1].probability == pytest.approx(0.7)


# --- Pages ---------------------------------------------------------------------------------------


def test_the_page_stands_alone_and_tells_every_figure(tmp_path: Path) -> None:
    for fold in range(2):
        for seed in range(2):
            make_run(tmp_path / f"fold-{fold}-seed-{seed}", fold=fold, seed=seed, dataset="iemocap4")
    mean = {"w-F1": 0.1234, "w-ACC": 0.2, "UA": 0.2, "macro-F1": 0.2}
    summary = {"command": "the <command>", "logistic_regression": {"mean": mean}}
    (tmp_path / "cross_validation.json").write_text(json.dumps(summary))
    written = write_report([tmp_path], tmp_path / "out" / "report.html", tmp_path / "out" / "report.md")
    assert [file.name for file in written] == ["report.html", "report.md"]
    page, text = (file.read_text() for file in written)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.suspicious == []
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page
    shown = "".join(tags.text)
    assert "<b>happy</b>" in shown, "names are text"
    report = gather([tmp_path])
    for content in (shown, text):
        for name in ("w-ACC", "w-F1", "UA", "macro-F1"):
            assert f"{100 * (report.means[name] or 0):.2f}" in content
        assert "accuracy (w-ACC)" in content, "elsewhere w-ACC means something else, which the page says"
        assert "CMU-MOSEI's weighted accuracy (WA)" in content
        assert "78.25" in content, "the paper's w-F1 on IEMOCAP"
        assert "12.34" in content, "logistic regression"
        assert "the <command>" in content
        assert "4 process-hours of 1 thread" in content
        assert report.runs[0].fingerprints[1] in content
        assert "torch" in content
    assert len(report.runs[0].fingerprints[1]) == 16
    assert report.runs[0].fingerprints != report.runs[1].fingerprints


def test_words_of_data_are_text_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless, tags = Tags(), Tags()
    harmless.feed(render_html(gather([make_run(tmp_path / "harmless")])))
    (tmp_path / "hostile").mkdir()
    make_hostile_run(tmp_path / "hostile", monkeypatch)
    page = render_html(gather([tmp_path / "hostile"]))
    tags.feed(page)
    assert tags.open == []
    assert tags.suspicious == []
    assert tags.tags == harmless.tags
    assert "\x1b" not in page
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in page
    shown = "".join(tags.text)
    for name in HOSTILE:
        assert shown.count(printable(name)) >= 5
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page)
    assert html.unescape(policy).startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def test_words_of_data_are_text_in_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_hostile_run(tmp_path, monkeypatch)
    text = render_markdown(gather([tmp_path]))
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    flat = [each for token in tokens for each in (token, *(token.children or ()))]
    assert {token.type for token in flat} & {"html_inline", "html_block", "link_open", "image"} == set()
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert len(headings) == 8
    assert not any("forged" in heading for heading in headings[1:])
    columns = [token for token in flat if token.type == "th_open"]
    assert len(columns) == 4 + 5 + 4 + 4 + 2 + 2 + 3, "no cell is cut by a bar in a name"
    words = "".join(token.content for token in flat if token.type in ("text", "text_special", "code_inline"))
    for name in (*map(printable, HOSTILE), run.name):
        assert name in words
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (inline("a_b __c__ <d>"), r"a_b \_\_c\_\_ &lt;d>"),
        (inline(bold("x|y")), r"**x\|y**"),
        (code("a`b|c"), r"``a`b\|c``"),
        (code("`"), "`` ` ``"),
        (block("x\n```\ny", "sh"), "````sh\nx\n```\ny\n````"),
        (table(["a|b", bold("c")], [[1, "\n"]]), "| a\\|b | **c** |\n| --- | --- |\n| 1 | \\\\n |"),
    ],
)
def test_markdown_is_made_of_words_that_stay_words(made: str, expected: str) -> None:
    assert made == expected


def test_a_single_run_says_what_one_run_cannot_tell(tmp_path: Path) -> None:
    report = gather([make_run(tmp_path / "run")])
    for page in (render_html(report), render_markdown(report)):
        assert "not known from one run" in page
        assert "--config" in page
    assert "There was no validation while training" in render_html(report)


def test_a_model_without_mistakes_has_a_page_without_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", accuracy=1.0)
    page = render_html(gather([run]))
    assert "All predictions are correct." in page
    assert "most confident mistakes" not in page


def test_runs_of_before_costs_were_recorded_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    status = json.loads((run / "status.json").read_text())
    for key in ("seconds", "rank_seconds", "versions", "device"):
        del status[key]
    (run / "status.json").write_text(json.dumps(status))
    page = render_markdown(gather([run]))
    assert "not recorded by these runs" in page
    assert "a device not recorded" in page


# --- Charts --------------------------------------------------------------------------------------


def test_ticks_are_round_and_enclose() -> None:
    assert charts.nice_ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert charts.nice_ticks(0.61, 0.66) == [0.6, 0.62, 0.64, 0.66]
    for low, high in ((3, 3), (-1e-9, 7e5), (0.1, 0.1000001)):
        ticks = charts.nice_ticks(low, high)
        assert ticks[0] <= low + 1e-9
        assert ticks[-1] >= high - 1e-9
        assert len(ticks) >= 2


def test_curves_meet_on_common_steps_and_keep_their_mean() -> None:
    steps = np.arange(1, 1_001, dtype=float)
    grid, rows = charts.common_grid([(steps, steps), (np.array([1.0, 1_200.0]), np.array([5.0, 5.0]))])
    assert len(grid) == charts.POINTS
    assert grid[-1] == 1_000, "where the shorter one ends"
    np.testing.assert_allclose(rows[0], grid, atol=5)
    np.testing.assert_allclose(rows[1], 5)


def test_the_matrix_names_every_cell() -> None:
    confusion = np.array([[3, 1], [0, 4]])
    drawn = charts.confusion_svg(confusion, ["a", "b<"])
    titles = re.findall(r"<title>(.*?)</title>", drawn)
    assert titles == [
        "a predicted as a: 3 of 4",
        "a predicted as b&lt;: 1 of 4",
        "b&lt; predicted as a: 0 of 4",
        "b&lt; predicted as b&lt;: 4 of 4",
    ]
    many = charts.confusion_svg(np.eye(40, dtype=np.int64), [f"c{i}" for i in range(40)])
    assert 'class="cell' not in many, "too small for numbers"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_marks_at_the_ends_are_drawn_whole(value: float) -> None:
    table = [{"confidence": value, "accuracy": value, "count": 9}]
    for drawn in (charts.interval_svg(value, value, value), charts.calibration_svg(table)):
        width, height = map(float, re.findall(r"viewBox=.0 0 (\d+) (\d+)", drawn)[0])
        for found in re.findall(r'<circle.*?cx="(.*?)" cy="(.*?)".*?r="(.*?)"', drawn):
            x, y, radius = map(float, found)
            assert radius <= x <= width - radius
            assert radius <= y <= height - radius
    assert "accuracy, %" in charts.calibration_svg(table)


def test_durations_are_words() -> None:
    assert [duration(s) for s in (90, 600, 3_725)] == ["90 s", "10 min", "1 h 2 min"]
