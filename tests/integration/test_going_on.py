"""The same command again and again, going back, going on otherwise: what a run folder then says is true."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import arguments, assert_same_run, metrics, pack_corpus, same_bits_or_close, status

from awtpn.cli import main as awtpn
from awtpn.experiments.runner import read_metrics
from awtpn.inference.predictor import Predictor
from awtpn.learning.optimizer import learning_rate
from awtpn.learning.settings import OptimConfig
from awtpn.model import files
from awtpn.model.files import CARD_FILE, OPTIMIZER_FILE, README_FILE, WEIGHTS_FILE
from awtpn.report.data import gather
from awtpn.run import checkpoint
from awtpn.run.compare import compare_runs
from awtpn.run.position import load_position
from awtpn.run.record import read_settings
from awtpn.run.results import RESULTS_FILE
from awtpn.training import trainer

SETTINGS: dict[str, Any] = {
    "model.shared_dim": 16,
    "loss.negative_group": 4,
    "optim.lr": 3e-3,
    "train.epochs": 3,
    "train.validate_every": 1,
    "train.ema_decay": 0,
    "train.global_batch_size": 16,
    "train.keep_last": 100,
    "train.pictures": "never",
}
STEPS = 12  # four to an epoch
RUNS = ("averaged", "plain")
Score = Callable[..., None]


@pytest.fixture
def train(corpus: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train in `run_dir`, and get SIGTERM (or `signals`) in step `stop`, if it comes to it."""
    whole_step = trainer.train_step

    def train(
        run_dir: Path, stop: int = 0, signals: Sequence[int] = (signal.SIGTERM,), **settings: Any
    ) -> None:
        def step(run: trainer.Run, *args: Any, **kwargs: Any) -> Any:
            for number in signals if run.position.step + 1 == stop else ():
                os.kill(os.getpid(), number)
            return whole_step(run, *args, **kwargs)

        monkeypatch.setattr(trainer, "train_step", step)
        trainer.main(arguments(SETTINGS | {"data.train": corpus, "run.dir": run_dir} | settings))

    return train


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Score:
    """Give the next evaluations these w-F1 (or w-F1 and cross-entropy), whatever the model."""
    evaluate, names = trainer.evaluate, ("w-F1", "cross-entropy")

    def score(*figures: float | tuple[float, float]) -> None:
        of_next = (f if isinstance(f, tuple) else (f,) for f in figures)
        monkeypatch.setattr(
            trainer,
            "evaluate",
            lambda *args, **kwargs: evaluate(*args, **kwargs) | dict(zip(names, next(of_next), strict=False)),
        )

    return score


def steps_kept(run_dir: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in sorted((run_dir / "checkpoints").glob("step-*"))]


def link(run_dir: Path, name: str) -> str:
    return os.readlink(run_dir / "checkpoints" / name)


def test_a_repeated_command_gets_further(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told to begin from a checkpoint, preempted twice, and repeated word for word."""
    train(tmp_path / "first", **{"train.epochs": 1})
    begin = {"run.resume": tmp_path / "first" / "checkpoints" / "best"}
    for begun, stop in ((4, 6), (6, 10), (10, 0)):
        train(tmp_path / "second", stop, **begin)
        told = capsys.readouterr().out
        assert f"resumed at step {begun}\n" in told
        same = f"the same command with --run.dir {tmp_path / 'second'} resumes the run"
        assert (f"stopped by a signal after step {stop}; {same}" in told) == bool(stop)
        assert status(tmp_path / "second")["step"] == (stop or STEPS)
        assert status(tmp_path / "second")["status"] == ("preempted" if stop else "done")
    train(tmp_path / "undisturbed", **begin)
    assert_same_run(tmp_path / "second", tmp_path / "undisturbed")
    assert [line["step"] for line in metrics(tmp_path / "second")] == list(range(5, STEPS + 1))
    capsys.readouterr()
    train(tmp_path / "second", **begin)
    assert f"{STEPS} steps, resumed at step {STEPS}: all are done\n" in capsys.readouterr().out


def test_never_means_another_run(train: Any, tmp_path: Path) -> None:
    train(tmp_path, 6, **{"run.resume": "never"})
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        train(tmp_path, **{"run.resume": "never", "optim.lr": 1e-3})
    train(tmp_path, 10, **{"run.resume": "never"})
    train(tmp_path, **{"run.resume": "never"})
    assert status(tmp_path)["status"] == "done"
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, STEPS + 1))
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        train(tmp_path, **{"run.resume": "never"})


def test_going_back_forgets_what_came_after(
    train: Any, score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best of the steps given up is not the best of the run, nor are its weights tested."""
    score(0.1, 0.2, 0.9, 0.0, 0.0)
    train(tmp_path)
    assert link(tmp_path, "best") == "step-00000012"
    score(0.15, 0.05, 0.0, 0.0)
    old = (tmp_path / "config.yaml").read_text()
    back = {"run.resume": tmp_path / "checkpoints" / "step-00000004", "train.keep_last": 1, "optim.lr": 1e-3}
    train(tmp_path, **back)
    assert link(tmp_path, "best") == "step-00000008"
    assert json.loads((tmp_path / "results.json").read_text())["best_step"] == 8
    assert steps_kept(tmp_path) == [8, 12], "the best and the last"
    aside = next((tmp_path / "checkpoints").glob("abandoned-*"))
    assert [folder.name for folder in sorted(aside.iterdir())] == ["step-00000008", "step-00000012"]
    assert files.find_corruption(aside / "step-00000012") is None
    said = capsys.readouterr().out
    assert f"step-00000008, step-00000012 of {tmp_path / 'checkpoints'} moved to {aside}" in said
    assert "from step 4 on with another optim.lr, train.keep_last" in said
    assert (tmp_path / "config-4.yaml").read_text() == old


def test_a_best_that_was_another_runs_is_not_kept(train: Any, tmp_path: Path) -> None:
    train(tmp_path / "first", 6)
    train(tmp_path / "second", 6, **{"run.seed": 1})
    begin = (tmp_path / "first" / "checkpoints" / "latest").resolve()
    train(tmp_path / "second", **{"run.resume": begin})
    assert steps_kept(tmp_path / "second") == [8, 12]
    position = load_position(tmp_path / "second" / "checkpoints" / "latest")
    assert link(tmp_path / "second", "best") == checkpoint.folder_name(position.best_step)


def test_averaged_weights_are_tested_and_training_goes_on_with_the_others(train: Any, tmp_path: Path) -> None:
    """Stopped and resumed as if it had not been; the averages change nothing that is trained."""
    averaged = {"train.ema_decay": 0.9, "train.validate_every": 3}
    train(tmp_path / "averaged", 6, **averaged)
    train(tmp_path / "averaged", **averaged)
    train(tmp_path / "undisturbed", **averaged)
    assert_same_run(tmp_path / "averaged", tmp_path / "undisturbed")
    train(tmp_path / "plain", 6, **{"train.validate_every": 3})
    train(tmp_path / "plain", **averaged)  # averages begin at step 6

    means, later = (load_file(tmp_path / run / "checkpoints" / "best" / WEIGHTS_FILE) for run in RUNS)
    raw, other = (load_file(tmp_path / run / "checkpoints" / "best" / OPTIMIZER_FILE) for run in RUNS)
    assert all(same_bits_or_close(raw[key], other[key]) for key in raw)
    assert not torch.equal(means["classifier.weight"], raw["classifier.weight.raw"])
    assert not torch.equal(means["classifier.weight"], later["classifier.weight"])
    results = json.loads((tmp_path / "averaged" / RESULTS_FILE).read_text())
    position = load_position(tmp_path / "averaged" / "checkpoints" / "best")
    assert results["val"]["cross-entropy"] == pytest.approx(position.best_tie, rel=1e-6)
    train(tmp_path / "plain", **{"train.epochs": 4, "train.ema_decay": 0})
    left = load_file(tmp_path / "plain" / "checkpoints" / "latest" / OPTIMIZER_FILE)
    assert not [key for key in left if key.endswith((".raw", ".average"))]


def test_patience_ends_a_run_that_stays_ended(
    train: Any, score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train.epochs": 8, "train.patience": 2}
    score(0.4, (0.5, 1.0), 0.3, (0.5, 1.1), 0.0, 0.0)  # as good is not better
    train(tmp_path, 10, **settings)  # within the third epoch, of which the count is kept
    train(tmp_path, **settings)
    told = "stopped early at step 16: no better val w-F1 for 2 validations"
    assert told in capsys.readouterr().out
    assert (status(tmp_path)["status"], status(tmp_path)["step"]) == ("done", 16)
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert status(tmp_path)["stopped_early"] == results["stopped_early"] == 2
    assert (results["best_step"], link(tmp_path, "best")) == (8, "step-00000008")
    whole = OptimConfig(lr=SETTINGS["optim.lr"])
    assert [line["lr"] for line in metrics(tmp_path)] == [learning_rate(whole, s, 32) for s in range(16)]

    score(0.0, 0.0)
    train(tmp_path, **settings)
    assert len(metrics(tmp_path)) == 16
    assert not list(tmp_path.glob("earlier-results-*")), "the same command changes nothing"
    assert "stopped early" not in capsys.readouterr().out
    score(0.1, 0.9, 0.1, 0.1, 0.0, 0.0)  # one more, and it is better
    train(tmp_path, **settings | {"train.patience": 4})
    assert (status(tmp_path)["step"], link(tmp_path, "best")) == (32, "step-00000024")
    assert "stopped_early" not in status(tmp_path)


def test_patience_needs_validation_data(train: Any, tmp_path: Path) -> None:
    without = {"data.train": pack_corpus(tmp_path / "without", val=0)}
    with pytest.raises(ValueError, match=r"train\.patience counts validations, .*: give data\.val or"):
        train(tmp_path / "run", **without, **{"train.patience": 2})
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_least_number_of_steps_adds_whole_epochs_and_validates_some(train: Any, tmp_path: Path) -> None:
    settings = {"train.epochs": "null", "train.min_steps": 83, "train.validate_every": "null"}
    settings |= {"train.global_batch_size": 32, "data.streams": 1}  # two steps to an epoch
    for stop in (31, 0):
        train(tmp_path, stop, **settings)
    assert status(tmp_path)["step"] == 84
    assert steps_kept(tmp_path) == sorted([31, *range(4, 85, 4)]), "every second epoch, and the stop"


def test_another_global_batch_at_an_epochs_end_leaves_all_epochs(train: Any, tmp_path: Path) -> None:
    cold = {"optim.warmup_steps": 0}
    train(tmp_path, **cold, **{"train.epochs": 1, "train.global_batch_size": 8})  # seven steps
    for stop in (12, 0):
        train(tmp_path, stop, **cold)
    lines = metrics(tmp_path)
    assert [line["epoch"] for line in lines] == [0] * 7 + [1] * 4 + [2] * 4
    schedule = OptimConfig(lr=SETTINGS["optim.lr"], warmup_steps=0)
    assert [line["lr"] for line in lines[7:]] == [learning_rate(schedule, step, 15) for step in range(7, 15)]


def test_of_equal_scores_the_surer_is_best(train: Any, score: Score, tmp_path: Path) -> None:
    score((0.5, 1.5), (0.5, 1.2), (0.5, 1.3), 0.0, 0.0)
    train(tmp_path)
    assert link(tmp_path, "best") == "step-00000008"
    assert load_position((tmp_path / "checkpoints" / "latest").resolve()).best_tie == 1.2


def test_a_run_keeps_the_settings_that_make_its_model(train: Any, tmp_path: Path) -> None:
    train(tmp_path, **{"train.max_steps": 6})
    config, results = ((tmp_path / name).read_text() for name in ("config.yaml", "results.json"))
    others = {"run.seed": 1, "optim.lr": 1e-3, "loss.eta_ce": 0.5, "data.standardize": False}
    for key, value in others.items():
        with pytest.raises(ValueError, match=rf"another {key}: choose another .*--run.resume \S+00006"):
            train(tmp_path, **{key: value})
    train(tmp_path, **{"train.epochs": 1})  # nothing is left to train: it is still that run's record
    assert [(tmp_path / name).read_text() for name in ("config.yaml", "results.json")] == [config, results]
    train(tmp_path, **{"train.micro_batch_size": 8})  # layout and length may change
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, STEPS + 1))


def test_altered_weights_are_not_tested(train: Any, score: Score, tmp_path: Path) -> None:
    score(0.1, 0.2, 0.0, 0.0, 0.0)
    train(tmp_path)
    assert link(tmp_path, "best") == "step-00000008"
    weights = (tmp_path / "checkpoints" / "best").resolve() / WEIGHTS_FILE
    content = weights.read_bytes()
    weights.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    refusal = rf"{weights} is not the file that was saved: .*; \S+step-00000012 is intact: name that instead"
    for use in (lambda: train(tmp_path), lambda: Predictor.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=refusal):
            use()
    assert status(tmp_path)["status"] == "failed"


def exported(run_dir: Path, out: Path) -> dict[str, Any]:
    """What the card of a run's export says of results; empty where it says nothing."""
    awtpn(["export", str(run_dir), str(out)])
    results: dict[str, Any] = json.loads((out / CARD_FILE).read_text()).get("results", {})
    return results


def test_a_run_that_continues_after_its_end_loses_its_results_and_keeps_them_aside(
    train: Any, score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    score(0.1, 0.0, 0.0, 0.2)  # two of the results
    train(run_dir, **{"train.epochs": 1})
    results = json.loads((run_dir / RESULTS_FILE).read_text())
    assert results["checkpoint"] == files.identity(run_dir / "checkpoints" / "best")
    assert exported(run_dir, tmp_path / "first") == results
    (run_dir / "report.html").write_text("of step 4")
    train(run_dir, 10)
    assert (status(run_dir)["status"], link(run_dir, "best")) == ("preempted", "step-00000008")
    (aside,) = run_dir.glob("earlier-results-*")
    assert f"the run continues from step 4; its results so far: {aside}" in capsys.readouterr().out
    assert json.loads((aside / RESULTS_FILE).read_text()) == results
    moved = {path.name for path in aside.iterdir()}
    assert moved > {"report.html", "predictions-val.jsonl", "predictions-test.jsonl"}
    assert [name.endswith(".results") for name in moved].count(True) == 1, "TensorBoard's results"
    assert not [name for name in moved for place in ("", "tensorboard") if (run_dir / place / name).exists()]
    assert exported(run_dir, tmp_path / "second") == {}
    assert (
        "exported without results: it has not been evaluated"
        in (tmp_path / "second" / README_FILE).read_text()
    )


def test_results_of_other_weights_are_not_told_as_the_best_ones(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    train(run_dir)
    results = json.loads((run_dir / RESULTS_FILE).read_text())
    best = link(run_dir, "best")
    other = next(f"step-{step:08d}" for step in (4, 8, 12) if step != results["best_step"])
    checkpoint.update_symlink(run_dir / "checkpoints" / "best", run_dir / "checkpoints" / other)
    # An older run folder records the step alone.
    older = {key: value for key, value in results.items() if key != "checkpoint"}
    for number, content in enumerate((results, older)):
        (run_dir / RESULTS_FILE).write_text(json.dumps(content))
        capsys.readouterr()
        assert exported(run_dir, tmp_path / f"other-{number}") == {}
        of_step = f"was measured on other weights (of step {results['best_step']}), not on {other}"
        assert f"exported without results: {run_dir / RESULTS_FILE} {of_step}" in capsys.readouterr().out
        for use in (lambda: gather([run_dir]), lambda: read_metrics(run_dir)):
            with pytest.raises(ValueError, match=rf"{RESULTS_FILE} was measured on other weights"):
                use()

    checkpoint.update_symlink(run_dir / "checkpoints" / "best", run_dir / "checkpoints" / best)
    assert exported(run_dir, tmp_path / "older") == older
    assert "does not record which weights it was measured on" in capsys.readouterr().out
    assert "Nothing records whether they were measured" in (tmp_path / "older" / README_FILE).read_text()
    assert gather([run_dir]).runs[0].results == older

    predictions = run_dir / "predictions-test.jsonl"
    lines = predictions.read_text().splitlines()
    predictions.write_text("\n".join(lines[1:]) + "\n")
    assert gather([run_dir]).runs[0].predictions is None
    assert f"{predictions} is left out: it does not match the metrics" in capsys.readouterr().err


def test_runs_of_other_lengths_are_compared_where_both_have_a_checkpoint(train: Any, tmp_path: Path) -> None:
    """As if the second had been continued after its end; the schedule's length is the same."""
    train(tmp_path / "first")
    train(tmp_path / "second", 9)
    comparison = compare_runs(tmp_path / "first", tmp_path / "second")
    assert comparison.weights_step == (8, 8)
    assert comparison.largest_weight_gap == 0


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of an older version"])
def test_other_validation_data_choose_the_best_anew(
    train: Any, score: Score, recorded: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An easy validation set must not keep later checkpoints from being the best on the real one."""
    score(0.9)
    train(tmp_path, 6)
    if not recorded:
        file = tmp_path / "checkpoints" / "latest" / files.STATE_FILE
        state = json.loads(file.read_text())
        del state["position"]["validation_data"]
        file.write_text(json.dumps(state))
    if recorded:
        score(0.3, 0.4, 0.35, 0.0, 0.0)  # the first: the old best's on the new data
    else:
        score(0.4, 0.35, 0.0, 0.0)
    train(tmp_path, **{"data.select.val": "{fold: [0, 1]}"})
    told = "the validation data has changed since step 6: later models are compared with"
    assert (
        capsys.readouterr().out.count(f"{told} the best checkpoint so far, of step 4: val w-F1 0.3000\n")
        == recorded
    )
    assert link(tmp_path, "best") == ("step-00000008" if recorded else "step-00000004")
    score(0.5, 0.0, 0.0)
    train(tmp_path, **{"data.select.val": "{fold: [0, 1]}", "train.epochs": 4})
    assert "has changed since" not in capsys.readouterr().out


def test_a_finished_run_is_judged_on_other_validation_data(train: Any, score: Score, tmp_path: Path) -> None:
    score(0.9, 0.1, 0.1, 0.0, 0.0)
    train(tmp_path)
    assert link(tmp_path, "best") == "step-00000004"
    score(0.3, 0.4, 0.0, 0.0)  # the old best's, and the last checkpoint's
    train(tmp_path, **{"data.select.val": "{fold: [0, 1]}"})
    assert link(tmp_path, "best") == "step-00000012"
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert results["checkpoint"] == files.identity(tmp_path / "checkpoints" / "best")


def test_another_metric_chooses_the_best_anew(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a finished run, the best so far and the last model are compared by the new metric."""
    evaluate = trainer.evaluate

    def score(*figures: tuple[float, float]) -> None:
        of_next = ({"w-F1": f1, "UA": recall} for f1, recall in figures)
        monkeypatch.setattr(trainer, "evaluate", lambda *a, **k: evaluate(*a, **k) | next(of_next))

    score((0.9, 0.3), (0.1, 0.5), (0.1, 0.6), (0, 0), (0, 0))
    train(tmp_path)
    assert link(tmp_path, "best") == "step-00000004"
    score((0.9, 0.3), (0.1, 0.6), (0, 0), (0, 0))
    train(tmp_path, **{"train.best_by": "UA"})
    assert (
        "train.best_by has changed since step 12: later models are compared with the best checkpoint so far, "
        "of step 4: val UA 0.3000\n" in capsys.readouterr().out
    )
    assert link(tmp_path, "best") == "step-00000012"
    position = load_position(tmp_path / "checkpoints" / "latest")
    assert (position.best_by, position.best_value) == ("UA", 0.6)


def test_a_metric_that_is_never_defined_leaves_the_choice_to_the_second(train: Any, tmp_path: Path) -> None:
    """Correlation and concordance of one utterance: the smallest error decides, and the results have null."""
    data = pack_corpus(tmp_path / "one", val=1, test=1, targets=True)
    run_dir, settings = tmp_path / "run", {"data.train": data, "data.target": "valence"}
    train(run_dir, **settings, **{"train.best_by": "CCC"})
    results = json.loads((run_dir / RESULTS_FILE).read_text())
    position = load_position(run_dir / "checkpoints" / "latest")
    assert results["val"]["CCC"] is position.best_value is None
    assert position.best_tie == results["val"]["MAE"]
    assert link(run_dir, "best") == f"step-{results['best_step']:08d}"


def test_a_finished_run_that_is_tested_on_other_data_says_so(
    train: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its old results stay aside, and config.yaml tells what the new ones are of."""
    train(tmp_path)
    before = (tmp_path / RESULTS_FILE).read_text()
    train(tmp_path)
    assert not list(tmp_path.glob("earlier-results-*")), "the same command changes nothing"
    capsys.readouterr()
    train(tmp_path, **{"data.select.test": "{fold: [0, 1]}"})
    assert "is evaluated on other data; its results so far" in capsys.readouterr().out
    [aside] = tmp_path.glob("earlier-results-*")
    assert (aside / RESULTS_FILE).read_text() == before
    assert (read_settings(tmp_path) or {})["data"]["select"]["test"] == {"fold": [0, 1]}
    assert json.loads((tmp_path / RESULTS_FILE).read_text())["test"] != json.loads(before)["test"]


def test_validation_data_may_come_and_go(
    train: Any, score: Score, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = {"data.train": pack_corpus(tmp_path / "without", val=0)}
    val = {"data.val": f"{corpus}#val"}
    run_dir = tmp_path / "run"
    train(run_dir, 6, **without)
    score(0.3, 0.4, 0.0)
    train(run_dir, 10, **without, **val)  # step 8 ends an epoch
    assert "since step 6: later models are compared" in capsys.readouterr().out
    assert link(run_dir, "best") == "step-00000008"
    train(run_dir, **without)
    assert "the validation data has changed since step 10, there is none now" in capsys.readouterr().out
    assert link(run_dir, "best") == "step-00000012"


def test_an_interrupt_saves_and_stops(train: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    train(tmp_path, 6, [signal.SIGINT])
    assert (status(tmp_path)["status"], status(tmp_path)["step"]) == ("preempted", 6)
    assert link(tmp_path, "latest") == "step-00000006"
    assert "Ctrl-C again stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) == handler, "whose program it is gets its handler back"


@pytest.mark.parametrize("stop", [2, 6])
def test_a_second_interrupt_stops_at_once_and_the_run_can_be_resumed(
    train: Any, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", stop, [signal.SIGINT, signal.SIGINT])
    saved = 4 if stop == 6 else 0
    assert (status(tmp_path / "stopped")["status"], status(tmp_path / "stopped")["step"]) == (
        "preempted",
        saved,
    )
    for run_dir in (tmp_path / "stopped", tmp_path / "undisturbed"):
        train(run_dir)
    assert_same_run(tmp_path / "stopped", tmp_path / "undisturbed")
