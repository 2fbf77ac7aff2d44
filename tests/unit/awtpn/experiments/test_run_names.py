"""A run folder is that of one fold, one point of a sweep or one variant, and of no other."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from awtpn.config.command_line import make_parser, parse_command_line
from awtpn.config.schema import dump_yaml
from awtpn.experiments import ablation, runner, sweep
from awtpn.experiments.folds import Splits, leave_one_out
from awtpn.experiments.run_names import as_argument, folder_name
from awtpn.experiments.runner import Job, place_job, train_all

ODD = [
    "A/1",
    "A_1",
    "A 1",
    "A\\1",
    "A\n1",
    "A\x001",
    "..",
    "",
    "é" * 150,
    "é" * 151,
    "x" * 999,
    "\ud83d",
    "😀",
]


def test_different_texts_have_different_names() -> None:
    texts = [*ODD, *(folder_name(text) for text in ODD if folder_name(text) != text)]
    names = [folder_name(text) for text in texts]
    assert len(set(names)) == len(set(texts)) == len(texts)
    for name in names:
        assert len(name.encode()) <= 200
        assert name.isprintable()
        assert "/" not in name
        assert name not in ("", ".", "..")
    assert folder_name("A/1").startswith("A_1~"), "it can be read"


@pytest.mark.parametrize("text", ["fold-0", "speaker-Ses01_F", "actor-Anna B.", "corpus-José", "who-😀"])
def test_a_text_that_can_be_a_name_is_one(text: str) -> None:
    assert folder_name(text) == text


@pytest.mark.parametrize(
    "value", [*ODD[:-2], "😀", "01", "1e-3", "null", "a\u2028b\x85c\x7f", True, 3, 0.5, r'"\U0041']
)
def test_any_value_reaches_a_training(value: Any) -> None:
    argument = f"--data.select.test={as_argument({'a column': [value]})}"
    selected = make_parser().parse_args([argument]).data.select.test
    assert selected == {"a column": [value]}
    assert type(selected["a column"][0]) is type(value)


@pytest.mark.parametrize("value", ["\ud83d", float("nan")])
def test_what_no_training_can_select_by_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"no valid Unicode|Out of range"):
        as_argument(value)


def test_folds_whose_values_are_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    trials = Splits("who", "d#all", leave_one_out(["A/1", "A_1", "B"])).trials([], [0, 1], tmp_path)
    folders = [trial.job.run_dir for trial in trials]
    assert len(set(folders)) == 6
    assert folders[2:] == [tmp_path / f"who-{name}-seed-{s}" for name in ("A_1", "B") for s in (0, 1)]
    assert {folder.parent for folder in folders} == {tmp_path}


def test_points_of_a_sweep_and_their_folds_have_folders_of_their_own() -> None:
    points: list[sweep.Point] = [{"run.init_from": value} for value in ("a/b", "a_b", "a b", "..")]
    assert len({sweep.name_of(point) for point in points}) == 4
    assert sweep.name_of({"optim.lr": "1e-3", "model.dropout": "0.5"}) == "optim.lr=1e-3,model.dropout=0.5"
    splits = Splits("who", "d#all", leave_one_out(["A/1", "A_1", "../B", "C"]))
    jobs = [
        trial.job
        for fold, point in itertools.product(splits.folds, points[:2])
        for trial in sweep.inner_trials(splits, fold, [], point, [0], Path("/cv/sweep"))
    ]
    assert len({job.run_dir for job in jobs}) == len(jobs) == 4 * 2 * 3
    assert all(len(job.run_dir.relative_to("/cv/sweep").parts) == 3 for job in jobs)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("{a b: {x: 1}, a-b: {x: 1}}", "'a-b' would share a folder with 'a b'"),
        ("{less: {x: 1}, Less: {x: 1}}", "'Less' would share a folder with 'less'"),
        ("{..: {x: 1}}", "'..' cannot be a variant's name"),
        ("{1: {x: 1}}", "1 cannot be a variant's name"),
    ],
)
def test_variants_that_would_share_a_folder_are_refused(tmp_path: Path, names: str, told: str) -> None:
    (tmp_path / "v.yaml").write_text(names)
    with pytest.raises(ValueError, match=told):
        ablation.read_variants(tmp_path / "v.yaml")


# --- What is found under a name ------------------------------------------------------------------


def train_as(job: Job, *, fold: str) -> None:
    """What a training of this fold would leave behind."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    arguments = [a for a in job.arguments if not a.startswith("--data.select.test")]
    config, _ = parse_command_line([*arguments, f"--data.select.test={as_argument({'who': [fold]})}"])
    (job.run_dir / "config.yaml").write_text(dump_yaml(config))
    (job.run_dir / "status.json").write_text(json.dumps({"status": "done"}))


def a_fold(value: str, folder: Path) -> Job:
    splits = Splits("who", "d#all", leave_one_out([value, "other"]))
    return splits.of_fold(splits.folds[0], [], [0], folder)[0].job


def test_no_results_are_taken_of_another_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process trains another fold in the folder after the first look at it."""
    job = a_fold("A", tmp_path)

    class Meanwhile(runner._Queue):
        def take(self) -> tuple[Job, int] | None:
            train_as(job, fold="B")
            return super().take()

    monkeypatch.setattr(runner, "_Queue", Meanwhile)
    with pytest.raises(ValueError, match=r"who-A-seed-0 holds a run with another data\.select: give another"):
        train_all([job])


def test_two_jobs_of_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two runs of different settings would share the folder .*/run"):
        train_all([Job(("--run.seed=0",), tmp_path / "run"), Job(("--run.seed=1",), tmp_path / "run")])


def test_a_run_under_its_former_name_goes_on(tmp_path: Path) -> None:
    """Names that older versions gave were not always different: what lies there must be this very run."""
    before = a_fold("A/1", tmp_path)
    assert before.run_dir.name != "who-A_1-seed-0"
    former = tmp_path / "who-A_1-seed-0"
    train_as(Job(before.arguments, former), fold="A/1")
    text = yaml.safe_load((former / "config.yaml").read_text())
    text["run"]["dir"] = str(former)
    (former / "config.yaml").write_text(yaml.safe_dump(text))
    assert a_fold("A/1", tmp_path).run_dir == former
    assert f"--run.dir={former}" in a_fold("A/1", tmp_path).arguments
    with pytest.raises(ValueError, match=r"another data\.select"):
        train_all([a_fold("A_1", tmp_path)])
    train_as(Job(before.arguments, former), fold="A_1")
    assert a_fold("A/1", tmp_path).run_dir == before.run_dir
    place_job([], tmp_path / "new", tmp_path / "nothing there")
