"""Cross-validation: folds, the table; sweeps that never see the test; two folds trained and taken up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FOUR_DIMS

from awtpn.config.command_line import make_parser, parse_command_line
from awtpn.experiments import baseline, crossvalidation, runner, sweep
from awtpn.experiments.folds import Fold, Splits, check_arguments, leave_one_out
from awtpn.experiments.linear_models import inner_splits
from awtpn.experiments.pooled import Pooled, pool, pool_utterances
from awtpn.experiments.runner import Job
from awtpn.experiments.scores import Score, fold_means
from awtpn.training.trainer import main as train
from shards import FeatureStream, pack
from shards.sources import npz


def test_each_value_is_left_out_once() -> None:
    assert leave_one_out([0, 1, 2]) == [Fold(0, [1, 2]), Fold(1, [0, 2]), Fold(2, [0, 1])]


def test_a_single_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two folds"):
        leave_one_out(["Ses01"])


@pytest.mark.parametrize(
    "argument", ["--run.seed=1", "--run.dir", "--data.select.train", "--data.select.test.fold=1"]
)
def test_what_it_sets_itself_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="leave it out"):
        check_arguments([argument, "1"], seeds=[0], by="fold")


def test_a_selection_is_the_users_where_there_are_no_folds() -> None:
    check_arguments(["--data.select.test.fold=1"], seeds=[0, 1], by=None)


def test_a_seed_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        check_arguments([], seeds=[0, 1, 0], by="fold")


def test_pooling_of_steps() -> None:
    assert pool(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist() == [2, 5, 1, 0]
    assert pool(np.zeros((0, 2))).tolist() == [0, 0, 0, 0]


def figures(value: float) -> dict[str, float]:
    return {"w-F1": value, "w-ACC": value, "UA": value, "macro-F1": value}


def test_table_shows_every_run_beside_its_folds_baseline() -> None:
    f1 = {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.8, (1, 1): 0.8}
    scores = [Score(fold, seed, figures(x)) for (fold, seed), x in f1.items()]
    regressions = [Score(fold, None, figures(0.25 + fold)) for fold in (0, 1)]
    assert fold_means(scores, "w-F1") == pytest.approx([0.6, 0.8])
    results = {"by": "fold", **crossvalidation.collect(scores, regressions)}
    assert results["mean"]["w-F1"] == pytest.approx(0.7)
    table = crossvalidation.format_scores(results).splitlines()
    assert table[2].split() == ["0", "0", "50.00", "50.00", "25.00", "25.00"]
    assert table[4].split() == ["1", "0", "80.00", "80.00", "125.00", "125.00"]
    assert table[6].split() == ["mean", "70.00", "70.00", "75.00", "75.00"]
    assert "4 runs" in table[7]
    assert "2 fold means" in table[8]


def test_seeds_without_folds_have_a_table_too() -> None:
    scores = [Score(None, seed, figures(0.5 + seed / 10)) for seed in (0, 1)]
    results = {"by": None, **crossvalidation.collect(scores, [])}
    assert results["interval_over_folds"]["w-F1"] is None
    table = crossvalidation.format_scores(results)
    assert "own splits" in table
    assert "over the 2 runs" in table
    assert "LR" not in table


# --- Sweeps --------------------------------------------------------------------------------------


def test_a_grid_has_every_combination() -> None:
    assert sweep.grid(["optim.lr=1e-3,3e-3", "--model.modalities=[audio],[audio,video]"]) == [
        {"optim.lr": "1e-3", "model.modalities": "[audio]"},
        {"optim.lr": "1e-3", "model.modalities": "[audio,video]"},
        {"optim.lr": "3e-3", "model.modalities": "[audio]"},
        {"optim.lr": "3e-3", "model.modalities": "[audio,video]"},
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["optim.lr"], "write KEY=VALUE"),
        (["optim.lr=1e-3", "optim.lr=1e-2"], "given twice"),
        (["run.seed=0,1"], "sets it itself"),
        (["data.select.test=1,2"], "sets it itself"),
    ],
)
def test_what_is_no_grid_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep.grid(given)


def selection(job: Job, role: str) -> Any:
    given = [a for a in job.arguments if a.startswith(f"--data.select.{role}=")]
    return json.loads(given[-1].partition("=")[2])["fold"]


def write_results(job: Job, score: float) -> None:
    job.run_dir.mkdir(parents=True)
    results = {"val": figures(score), "test": figures(score)}
    (job.run_dir / "results.json").write_text(json.dumps(results))


def test_a_fold_chooses_on_its_training_groups_alone(tmp_path: Path) -> None:
    """What wins is what does best on the inner folds, and the fold under test is in none of their runs."""
    seen: list[Job] = []

    def train(jobs: Sequence[Job], what: str) -> None:
        for job in jobs:
            seen.append(job)
            lr = float(next(a for a in job.arguments if a.startswith("--optim.lr=")).partition("=")[2])
            # The larger rate helps where group 2 is not validated on: folds 0 and 1 see it, fold 2 does not.
            better = lr > 2e-3
            write_results(job, 0.9 if better != (selection(job, "test") == [2]) else 0.1)

    splits = Splits("fold", "somewhere#all", leave_one_out([0, 1, 2]))
    chosen = sweep.choose(splits, [], [0, 1], tmp_path, sweep.grid(["optim.lr=1e-3,3e-3"]), train)
    assert len(seen) == 3 * 2 * 2 * 2, "folds x inner folds x points x seeds"
    outer = {job.run_dir.parent.name.removeprefix("without-") for job in seen}
    assert outer == {"0", "1", "2"}
    for job in seen:
        left_out = int(job.run_dir.parent.name.removeprefix("without-"))
        used = {*selection(job, "train"), *selection(job, "test")}
        assert used == {0, 1, 2} - {left_out}
    assert dict(chosen)[2]["arguments"] == ["--optim.lr=3e-3"]
    assert dict(chosen)[2]["validation"] == pytest.approx(0.9)
    assert dict(chosen)[0]["validation"] == pytest.approx(0.5), "the first of equals"
    written = json.loads((tmp_path / sweep.SWEEP_FILE).read_text())
    assert [row["w-F1"] for row in written["folds"][2]["validation"]] == pytest.approx([0.1, 0.9])
    trials = crossvalidation.plan(splits, ["--model.dropout=0"], [0], tmp_path / "cv", chosen)
    assert [t.job.arguments[:2] for t in trials][2] == ("--model.dropout=0", "--optim.lr=3e-3")


def test_values_of_digits_stay_text(tmp_path: Path) -> None:
    splits = Splits("actor", "somewhere#all", leave_one_out(["01", "02"]))
    for trial in splits.of_fold(splits.folds[0], [], [0], tmp_path):
        selected = make_parser().parse_args(trial.job.arguments).data.select
        assert (selected.train, selected.test) == ({"actor": ["02"]}, {"actor": ["01"]})


def test_own_splits_choose_on_validation_utterances(tmp_path: Path) -> None:
    def train(jobs: Sequence[Job], what: str) -> None:
        for job in jobs:
            job.run_dir.mkdir(parents=True)
            small = "--optim.lr=1e-3" in job.arguments
            results = {"val": figures(0.8 if small else 0.6), "test": figures(0.1 if small else 0.9)}
            (job.run_dir / "results.json").write_text(json.dumps(results))

    chosen = sweep.choose(
        Splits(None, None, []), [], [0], tmp_path, sweep.grid(["optim.lr=3e-3,1e-3"]), train
    )
    assert chosen[0][1]["point"] == {"optim.lr": "1e-3"}, "not what does best on the test"


def test_two_folds_leave_none_to_validate_on(tmp_path: Path) -> None:
    splits = Splits("fold", "somewhere#all", leave_one_out([0, 1]))
    with pytest.raises(ValueError, match="at least three folds"):
        sweep.choose(splits, [], [0], tmp_path, [{"optim.lr": "1e-3"}], lambda jobs, what: None)


# --- The whole -----------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Two folds of 16 utterances, two classes that differ in the mean."""
    rng = np.random.default_rng(0)
    label = np.arange(32) % 2
    np.savez(
        tmp_path / "tiny.npz",
        ids=np.array([f"u{i}" for i in range(32)]),
        audio=rng.normal(size=(32, 3, 4)) + 3 * label[:, None, None],
        video=rng.normal(size=(32, 1, 2)),
        label=label,
        fold=np.arange(32) // 16,
    )
    source = npz.read(tmp_path / "tiny.npz")
    pack(source.samples, str(tmp_path / "tiny"), classes=source.classes, progress=False)
    return str(tmp_path / "tiny")


def test_a_missing_scikit_learn_is_named_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "find_spec", lambda name: None)
    monkeypatch.setattr(crossvalidation, "make_splits", lambda *_: pytest.fail("the data was read"))
    with pytest.raises(ValueError, match=r"awtpn-at-scale\[baseline\].*--no-baseline"):
        crossvalidation.cross_validate([], "fold", [0], tmp_path / "cv")


def test_trains_every_fold_and_goes_on_where_it_stopped(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    folder = tmp_path / "cv"
    training = [f"--data.train={dataset}", "--model.shared_dim=8", "--train.epochs=1"]
    training += ["--train.global_batch_size=8"]
    results = crossvalidation.cross_validate(training, "fold", [0], folder, parallel=2, command="the command")
    assert [(run["fold"], run["seed"]) for run in results["runs"]] == [(0, 0), (1, 0)]
    assert results["logistic_regression"]["mean"]["w-F1"] > 0.9
    assert "mean" in capsys.readouterr().out
    assert json.loads((folder / crossvalidation.RESULTS_FILE).read_text()) == results
    run = json.loads((folder / "fold-1-seed-0" / "results.json").read_text())
    assert run["test"]["utterances"] == 16
    page = (folder / "report.md").read_text()
    assert "the command" in page
    assert "2 runs: 2 folds, seed 0" in page
    assert "Student's t over 2 fold means" in page
    assert f"{100 * results['mean']['w-F1']:.2f}" in page
    assert (folder / "report.html").read_text().startswith("<!doctype html>")

    monkeypatch.setattr(runner, "TRAIN_SCRIPT", tmp_path / "no such script.py")
    again = crossvalidation.cross_validate(training, "fold", [0], folder, command="the command")
    assert again == results, "done is done"
    with pytest.raises(ValueError, match=r"another optim\.lr.*give another --dir"):
        crossvalidation.cross_validate([*training, "--optim.lr=0.5"], "fold", [0], folder)
    with pytest.raises(RuntimeError, match=r"(?s)fold-0-seed-1 ended with status 2.*no such script"):
        crossvalidation.cross_validate(training, "fold", [0, 1], folder)
    with pytest.raises(ValueError, match=r"no column 'speaker'.*fold"):
        crossvalidation.cross_validate(training, "speaker", [0], folder)


def of_speakers(folder: Path, label: Sequence[int], speaker: Sequence[int]) -> str:
    """A dataset whose column `speaker` may decide the class."""
    truth = np.array(label)
    features = np.random.default_rng(0).normal(size=(len(truth), 3, 4)) + 3 * truth[:, None, None]
    names = np.array([f"u{i}" for i in range(len(truth))])
    arrays = {"audio": features, "video": features, "label": truth, "speaker": np.array(speaker)}
    np.savez(folder / "speakers.npz", ids=names, **arrays)
    source = npz.read(folder / "speakers.npz")
    pack(source.samples, str(folder / "speakers"), classes=source.classes, progress=False)
    return str(folder / "speakers")


def test_a_fold_of_one_class_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    training = [f"--data.train={of_speakers(tmp_path, [0] * 8 + [1] * 8, [7] * 8 + [8] * 8)}"]
    with pytest.raises(ValueError, match=r"without speaker 7 all utterances are of the class 'class_1'"):
        crossvalidation.cross_validate(training, "speaker", [0], tmp_path / "cv")
    assert not (tmp_path / "cv").exists()
    with pytest.raises(ValueError, match=r"all 8 training utterances of \S+ are of the class 'class_0'"):
        train([*training, "--data.select.train={speaker: 7}", "--run.dir", str(tmp_path / "run")])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_baseline_chooses_among_groups_that_leave_two_classes(tmp_path: Path) -> None:
    """Two speakers of one class each and a third of both: some inner fits would have one class."""
    pytest.importorskip("sklearn")
    url = of_speakers(tmp_path, [0] * 8 + [1] * 8 + [0, 1] * 4, [7] * 8 + [8] * 8 + [9] * 8)
    config = parse_command_line([f"--data.train={url}"])[0]
    scores = baseline.scores_of(baseline.evaluate_folds(config, "speaker", leave_one_out([7, 8, 9])))
    assert [score.fold for score in scores] == [7, 8, 9]
    assert scores[2].metrics["w-ACC"] > 0.9, "without an inner split that could be fitted, nothing is chosen"
    groups = np.array([0, 0, 1, 1])
    assert inner_splits(np.array([0, 0, 1, 1]), groups) == []
    assert len(inner_splits(np.array([0, 0, 1, 0]), groups)) == 1


@pytest.mark.parametrize("used", [["text"], ["audio", "video"], ["audio", "video", "text"], list(FOUR_DIMS)])
def test_the_baseline_takes_the_modalities_of_the_runs(
    four_modalities: str, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"--data.train={four_modalities}", f"--model.modalities={','.join(used)}"]
    config = parse_command_line(given)[0]
    taken = []

    def pooled(streams: Iterable[FeatureStream]) -> list[Pooled]:
        streams = list(streams)
        taken.extend(set(stream.modalities) for stream in streams)
        return pool_utterances(streams)

    monkeypatch.setattr(baseline, "pool_utterances", pooled)
    baseline.evaluate_folds(config, "fold", leave_one_out([0, 1]))
    assert taken == [set(used)] * 2
    [rows] = pool_utterances([baseline._opened(config, "train", {"fold": 1})])
    assert rows.rows.shape == (len(rows.label), 2 * sum(FOUR_DIMS[name] for name in used))
