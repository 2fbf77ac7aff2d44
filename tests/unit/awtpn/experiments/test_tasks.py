"""Experiments of tasks beside classification: folds, directions of metrics, undefined figures, whole runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from experiments_support import pack_values, train_here, write_figures

from awtpn.config.command_line import parse_command_line
from awtpn.experiments import ablation, crossvalidation, sweep
from awtpn.experiments.folds import Splits, make_splits, task_type_of_data
from awtpn.experiments.runner import Job
from awtpn.experiments.scores import Score, fold_means, improvement, score_of, task_of_scores

MULTILABEL = ["--data.target=a,b", "--task.type=multilabel"]


def values(mae: float | None, ccc: float | None = 0.5) -> dict[str, Any]:
    return {"task": "regression", "MAE": mae, "Corr": ccc, "CCC": ccc, "utterances": 4}


# --- Folds ---------------------------------------------------------------------------------------


def test_folds_of_data_without_classes_hold_the_utterances_with_a_value(tmp_path: Path) -> None:
    """Fold 2 has no valence at all, so it is no fold of valence."""
    valence = [None if i % 3 == 2 else i / 32 for i in range(96)]
    url = pack_values(tmp_path / "data", classes=False, valence=valence)
    assert [f.test for f in make_splits([f"--data.train={url}"], "fold").folds] == [0, 1, 2]
    splits = make_splits([f"--data.train={url}", "--data.target=valence"], "fold")
    assert [fold.test for fold in splits.folds] == [0, 1]
    with pytest.raises(ValueError, match=r"column 'valence' is the target: cross-validate by another"):
        make_splits([f"--data.train={url}"], "valence")


@pytest.mark.parametrize(
    ("changed", "target", "message"),
    [
        (
            {"arousal": [2.0 if i % 3 else i / 32 for i in range(96)]},
            ["--data.target=valence,arousal"],
            r"without fold 0 all utterances have the same 'arousal' \(2\), so there is nothing to learn",
        ),
        (
            {"valence": [None if i % 3 else i / 32 for i in range(96)]},
            ["--data.target=valence,arousal"],
            r"without fold 0 all utterances have no value of 'valence'",
        ),
        (
            {"b": [2 * (i % 3 == 1) for i in range(96)]},
            MULTILABEL,
            r"without fold 1 all utterances have 'b' absent \(0\), .*leave it out of data\.target",
        ),
        (
            {"b": [3 - (i % 2) if i % 3 else 0 for i in range(96)]},
            MULTILABEL,
            r"without fold 0 all utterances have 'b' present \(above 0\)",  # present, with two intensities
        ),
    ],
)
def test_a_fold_with_nothing_to_learn_of_a_target_is_refused(
    changed: dict[str, Sequence[Any]], target: list[str], message: str, tmp_path: Path
) -> None:
    url = pack_values(tmp_path / "data", **changed)
    with pytest.raises(ValueError, match=message):
        make_splits([f"--data.train={url}", *target], "fold")


def test_a_column_that_some_utterances_lack_is_none_to_fold_by(tmp_path: Path) -> None:
    url = pack_values(tmp_path / "data")
    with pytest.raises(ValueError, match=r"utterance 'u0' has no 'valence' to fold by"):
        make_splits([f"--data.train={url}"], "valence")


def test_the_task_of_data_is_known_before_a_run(tmp_path: Path) -> None:
    url = pack_values(tmp_path / "classes")
    for given, task in (
        ([], "classification"),
        (["--data.target=arousal"], "regression"),
        (MULTILABEL, "multilabel"),
    ):
        assert task_type_of_data(parse_command_line([f"--data.train={url}", *given])[0]) == task
    url = pack_values(tmp_path / "values", classes=False)
    assert task_type_of_data(parse_command_line([f"--data.train={url}"])[0]) == "regression"


# --- Directions and undefined figures ------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "chosen", "metric"),
    [
        ([], "1e-2", "MAE"),  # the least
        (["--train.best_by=MAE"], "1e-2", "MAE"),
        (["--train.best_by=CCC"], "1e-1", "CCC"),  # the largest that every run has
    ],
)
def test_a_sweep_chooses_by_the_metric_and_its_direction(
    given: list[str], chosen: str, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {
        "1e-3": [values(0.9, 0.9), values(0.9, None)],  # undefined in a run: the mean of the other is none
        "1e-2": [values(0.5, 0.1), values(0.7, 0.3)],
        "1e-1": [values(0.7, 0.4), values(0.6, 0.4)],
    }

    def train(jobs: Sequence[Job], what: str) -> None:
        for job in jobs:
            lr = next(a for a in job.arguments if a.startswith("--optim.lr=")).partition("=")[2]
            write_figures(job, figures[lr][int(job.run_dir.name.removeprefix("seed-"))])

    points = sweep.grid(["optim.lr=1e-3,1e-2,1e-1"])
    [(_, choice)] = sweep.choose(Splits(None, None, []), given, [0, 1], tmp_path, points, train)
    assert choice["point"] == {"optim.lr": chosen}
    written = json.loads((tmp_path / sweep.SWEEP_FILE).read_text())
    assert (written["task"], written["metric"]) == ("regression", metric)
    rows = [row[metric] for row in written["folds"][0]["validation"]]
    assert rows == (
        [None, pytest.approx(0.2), pytest.approx(0.4)] if metric == "CCC" else pytest.approx([0.9, 0.6, 0.65])
    )
    assert f"optim.lr={chosen} ({metric} there 0." in capsys.readouterr().out


def test_without_any_defined_figure_the_first_point_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(jobs: Sequence[Job], what: str) -> None:
        for job in jobs:
            write_figures(job, values(0.5, None))

    points = sweep.grid(["optim.lr=1e-3,1e-2"])
    given = ["--train.best_by=CCC"]
    [(_, choice)] = sweep.choose(Splits(None, None, []), given, [0], tmp_path, points, train)
    assert choice["point"] == {"optim.lr": "1e-3"}
    assert "the first, since no point has a defined CCC" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["task.type", "data.target"])
def test_targets_are_not_compared_with_each_other(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"--sweep {key}: figures of different targets"):
        sweep.grid([f"{key}=a,b"])
    (tmp_path / "v.yaml").write_text(f"other: {{{key}: a}}")
    with pytest.raises(ValueError, match=rf"other sets {key}, but figures of different targets"):
        ablation.read_variants(tmp_path / "v.yaml")
    with pytest.raises(ValueError, match=r"different tasks, classification and regression"):
        task_of_scores([Score(0, 0, {}), score_of(1, 0, values(0.5))])


def test_an_ablation_is_better_where_its_error_is_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(jobs: Sequence[Job], **_: Any) -> None:
        for job in jobs:
            seed = int(job.run_dir.name.removeprefix("seed-"))
            off = "--model.awm=uniform" in job.arguments
            write_figures(job, values(0.5 + seed / 100 + off * 0.25, None if off and seed else 0.5))

    monkeypatch.setattr(ablation, "train_all", train)
    variants = ablation.read_variants(only=["AWM off"], task="regression")
    results = ablation.ablate([], variants, None, [0, 1], tmp_path)
    assert (results["task"], results["metric"]) == ("regression", "MAE")
    row = results["variants"]["AWM off"]
    assert row["difference"] == pytest.approx(-0.25), "more error is worse"
    assert row["mean"]["MAE"] == pytest.approx(0.755)
    assert row["undefined"] == {"Corr": 1, "CCC": 1}
    assert row["mean"]["CCC"] is None
    table = (tmp_path / "ablations.md").read_text()
    assert "| MAE | improvement |" in table
    assert "| **base** | **0.5050** |" in table
    assert "| AWM off | 0.7550 | -0.2500 | 0.0000 | -0.2500 to -0.2500 |" in table
    assert "Less MAE is better: an improvement is base minus variant." in table
    assert "AWM off: undefined, and so is the mean: Corr in 1 of 2 runs, CCC in 1 of 2 runs." in table

    results = ablation.ablate(["--train.best_by=CCC"], variants, None, [0, 1], tmp_path / "ccc")
    row = results["variants"]["AWM off"]
    assert row["differences"] == [], "one is undefined"
    assert row["difference"] is None
    assert row["interval"] is None
    assert "| CCC | difference |" in (tmp_path / "ccc" / "ablations.md").read_text()


def test_improvements_and_means_of_undefined_figures() -> None:
    assert improvement("MAE", 0.5, 0.75) == 0.25
    assert improvement("CCC", 0.5, 0.75) == -0.25
    assert improvement("CCC", None, 0.75) is None
    scores = [
        score_of(fold, 0, values(0.5, ccc)) for fold, ccc in ((0, 0.5), (1, None), (1, 0.25), (2, None))
    ]
    assert fold_means(scores, "CCC") == []
    assert fold_means(scores[:1] + scores[2:3], "CCC") == [0.5, 0.25]


def test_the_table_says_what_is_undefined() -> None:
    scores = [score_of(0, 0, values(0.5, 0.25)), score_of(1, 0, values(0.75, None))]
    results = {"by": "fold", **crossvalidation.collect(scores, [score_of(0, None, values(1.0))])}
    assert results["mean"] == {"MAE": 0.625, "Corr": None, "CCC": None}
    assert results["undefined"] == {"Corr": 1, "CCC": 1}
    assert results["baseline"]["name"] == "ridge regression"
    table = crossvalidation.format_scores(results).splitlines()
    assert " ".join(table[1].split()) == "fold seed MAE Corr CCC ridge MAE ridge Corr ridge CCC"
    assert table[2].split() == ["0", "0", "0.5000", "0.2500", "0.2500", "1.0000", "0.5000", "0.5000"]
    assert table[3].split() == ["1", "0", "0.7500", "undefined", "undefined"]
    assert "undefined, and so is the mean: Corr in 1 of 2 runs, CCC in 1 of 2 runs" in table
    assert any(line.startswith("MAE, 95 % t-interval over the 2 runs: ") for line in table)


# --- Variants ------------------------------------------------------------------------------------


def test_a_task_has_its_own_variants(capsys: pytest.CaptureFixture[str]) -> None:
    classes = ablation.read_variants()
    assert "linear head (task.head is for regression); absolute error (loss.value_error is for" in (
        capsys.readouterr().out
    )
    of_values = ablation.read_variants(task="regression")
    assert capsys.readouterr().out == ""
    assert of_values == {
        **classes,
        "linear head": {"task.head": "linear"},
        "absolute error": {"loss.value_error": "absolute"},
    }
    assert ablation.read_variants(task="multilabel") == classes
    for overrides in of_values.values():
        parse_command_line(["--task.type=regression", *ablation.arguments_of(overrides)])
    linear = parse_command_line(["--task.type=regression", "--task.head=linear"])[0]
    left = of_values.keys() - ablation.read_variants(base=linear, task="regression").keys()
    assert left == {"linear head", "cross-entropy off"}
    with pytest.raises(ValueError, match=r"nothing to compare; variants left out: linear head \(task\.head"):
        ablation.read_variants(only=["linear head"], task="multilabel")


# --- The whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "given", "metric", "name"),
    [
        ("regression", ["--data.target=valence,arousal"], "MAE", "ridge regression"),
        (
            "multilabel",
            ["--data.target=a", MULTILABEL[1], "--train.best_by=mAP"],
            "mAP",
            "logistic regression of each label",
        ),
    ],
)
def test_each_task_is_cross_validated(
    task: str, given: list[str], metric: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(crossvalidation, "train_all", train_here)
    url = pack_values(tmp_path / "data")
    training = [f"--data.train={url}", *given, "--model.shared_dim=8", "--train.max_steps=2"]
    training += ["--train.pictures=never"]
    results = crossvalidation.cross_validate(training, "fold", [0], tmp_path / "cv")
    assert (results["task"], results["metric"]) == (task, metric)
    assert [(run["fold"], run["seed"]) for run in results["runs"]] == [(0, 0), (1, 0), (2, 0)]
    written = json.loads((tmp_path / "cv" / "fold-1-seed-0" / "results.json").read_text())["test"]
    assert written["task"] == task
    assert results["runs"][1]["figures"][metric] == written[metric]
    assert results["baseline"]["name"] == name
    assert results["baseline"]["mean"].keys() == results["mean"].keys()
    assert json.loads((tmp_path / "cv" / crossvalidation.RESULTS_FILE).read_text()) == results
    assert name in (tmp_path / "cv" / "report.md").read_text()
    better = results["baseline"]["mean"][metric] < results["mean"][metric]
    assert better == (metric == "MAE"), "two steps teach less than the baseline learns"

    monkeypatch.setattr("experiments_support.train", lambda _: pytest.fail("done is done"))
    assert crossvalidation.cross_validate(training, "fold", [0], tmp_path / "cv") == results
