"""What is not finite is named and stops: settings, features, outputs, whole runs; JSON holds none of it."""

from __future__ import annotations

import json
import math
import re
from argparse import ArgumentTypeError
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ALONE, CLASSES, DIMS, REPO, arguments, metrics, small_model, status

import shards
from awtpn.cli import main
from awtpn.config.command_line import parse_command_line
from awtpn.config.option_types import finite_number, json_object
from awtpn.config.schema import Config
from awtpn.distributed.engines.single import SINGLE
from awtpn.inference.export_graph import PaddedAWTPN, check
from awtpn.inference.predictor import Predictor
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import OptimConfig
from awtpn.model import files
from awtpn.model.finite_outputs import PENDING, FiniteOutputs, NotFiniteError
from awtpn.report import charts
from awtpn.report.data import gather
from awtpn.run import checkpoint
from awtpn.run.atomic_write import open_atomic, write_json
from awtpn.run.folder import resolve_resume
from awtpn.run.position import Position, load_position
from awtpn.training import trainer
from awtpn.training.evaluate import evaluate
from awtpn.training.skipped_steps import (
    check_any_step_counted,
    check_finite_start,
    check_statistics,
    describe_steps,
)
from shards import FeatureStream, Sample
from shards.safe_io.json_text import json_text

HUGE = 3e38  # finite in float32
SETTINGS = {
    "model.shared_dim": 8,
    "loss.negative_group": 4,
    "train.epochs": 1,
    "train.global_batch_size": 8,
    "train.pictures": "never",
}


def strict(text: str) -> Any:
    """JSON as other readers than Python's take it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def packed(out: Path, huge: dict[str, set[int]]) -> str:
    """24, 6 and 6 utterances of three classes; in each split those of these numbers have huge values."""
    rng, samples = np.random.default_rng(0), []
    for split, size in {"train": 24, "val": 6, "test": 6}.items():
        for i in range(size):
            features: dict[str, Any] = {
                name: rng.normal(i % 3, 1, (4, dim)).astype(np.float32) for name, dim in DIMS.items()
            }
            if i in huge.get(split, ()):
                features["audio"] = np.copysign(np.float32(HUGE), features["audio"])
            samples.append(Sample(f"{split}-{i}", split, CLASSES[i % 3], features))
    shards.pack(samples, str(out), classes=CLASSES, dtype="float32", progress=False)
    return str(out)


def run_folder(out: Path, data: str, **changes: Any) -> Path:
    trainer.main(arguments(SETTINGS | {"data.train": data, "run.dir": out} | changes))
    return out


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"test": {"ce": math.nan}}, "test.ce is nan"),
        ([1.0, {"a": [math.inf]}], r"\[1\]\.a\[0\] is inf"),
        (-math.inf, "the value is -inf"),
    ],
)
def test_json_holds_numbers_only(value: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        json_text(value)
    write_json(tmp_path / "f.json", {"old": 1})
    with pytest.raises(ValueError, match=told):
        write_json(tmp_path / "f.json", value)
    assert json.loads((tmp_path / "f.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_a_file_that_is_written_appears_when_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")

    def half() -> None:
        with open_atomic(tmp_path / "f") as file:
            file.write("half")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "old")]


# What no reader takes for a file of JSON: command lines, digests, and texts for people.
NO_FILES = {
    "awtpn/config/encoders.py",
    "awtpn/config/schema.py",
    "awtpn/bench/gpu/probe.py",
    "awtpn/bench/loader.py",
    "awtpn/cli/dataset_summary.py",
    "awtpn/distributed/engines/deepspeed_config.py",
    "awtpn/experiments/run_names.py",
    "awtpn/model/sharing/model_card.py",
    "awtpn/run/data.py",
    "awtpn/tracking/tensorboard.py",
    "shards/extraction/shard_jobs.py",
    "shards/extraction/shard_records.py",
    "shards/format/feature_space.py",
    "shards/packing/validation.py",
    "shards/safe_io/json_text.py",
    "awtpn/config/modalities.py",
    "shards/storage/credentials.py",
    "shards/tools/info.py",
}


def test_files_of_json_have_one_writer() -> None:
    places = [path for folder in ("awtpn", "shards", "launch") for path in (REPO / folder).rglob("*.py")]
    used = {str(p.relative_to(REPO)) for p in places if re.search(r"\bjson\.dumps?\(", p.read_text())}
    assert used <= NO_FILES, "write files with shards.safe_io.json_text or awtpn.run.atomic_write.write_json"


# --- Settings ------------------------------------------------------------------------------------


def numbers(nested: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in nested.items():
        if isinstance(value, dict):
            keys += numbers(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            keys.append(prefix + key)
    return keys


@pytest.mark.parametrize("key", numbers(asdict(Config())))
@pytest.mark.parametrize("value", [".nan", ".inf", "1e999"])
def test_settings_that_are_not_finite_are_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} must be a finite number, but is (nan|inf)$"):
        parse_command_line([f"--{key}={value}"])


def test_so_are_words_selections_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("nan", "inf"):
        with pytest.raises(SystemExit):
            parse_command_line([f"--optim.lr={word}"])
        assert f"optim.lr takes a number, not {word}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^data\.select\.test\.fold\[1\] must be a finite number"):
        parse_command_line(["--data.select.test={fold: [1, .nan]}"])
    (tmp_path / "c.yaml").write_text("data: {train: d}\nloss: {tau: .inf}\n")
    with pytest.raises(ValueError, match=r"^loss\.tau must be a finite number, but is inf$"):
        parse_command_line(["--config", str(tmp_path / "c.yaml")])


def test_so_are_options_of_the_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert finite_number("1e-3") == 1e-3
    for text in ("nan", "inf", "-Infinity", "1e999", "x"):
        with pytest.raises(ArgumentTypeError, match="is no finite number"):
            finite_number(text)
    with pytest.raises(ArgumentTypeError, match="no JSON object"):
        json_object('{"timeout": NaN}')
    for words in (["compare", "a", "b", "--loss_tolerance"], ["extract", "recordings", "d", "--fps"]):
        with pytest.raises(SystemExit):
            main([*words, "nan"])
        assert "'nan' is no finite number" in capsys.readouterr().err


# --- Outputs -------------------------------------------------------------------------------------


def test_names_are_kept_without_waiting_for_every_batch() -> None:
    outputs = FiniteOutputs()
    for i in range(2 * PENDING + 1):
        outputs.add([f"{i}-0", f"{i}-1"], torch.tensor([[1.0, 2.0], [0.0, math.inf if i % 10 == 3 else 0.0]]))
    other_rank = (2, 3, ["x", "y"])
    told = r"^d, split val: .* 15 of 261 utterances .*: 3-1, 13-1, .*63-1, 73-1 and 7 more; look for huge"
    with pytest.raises(NotFiniteError, match=told):
        outputs.check(lambda own: [own, other_rank], "d, split val")
    with pytest.raises(NotFiniteError, match=r"2 of 3 utterances .*: x, y; look for"):
        FiniteOutputs().check(lambda own: [own, other_rank], "")
    with pytest.raises(NotFiniteError, match="the model itself may be broken"):
        FiniteOutputs().check(lambda own: [own, (9, 9, ["x"])], "")
    FiniteOutputs().check(lambda own: [own, own], "nothing is broken")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed(tmp_path_factory.mktemp("broken") / "d", {"val": {1}, "test": {1, 4}})


def test_an_evaluation_names_them_and_leaves_no_file(broken: str, tmp_path: Path) -> None:
    stream = FeatureStream(broken, "test", shuffle=False)
    model = small_model(dtype=torch.float32)
    told = (
        r"d, split test: .* 2 of 6 utterances are NaN or infinite, .*: test-1, test-4; look for huge values"
    )
    with pytest.raises(NotFiniteError, match=told):
        evaluate(model, stream, ALONE, predictions=tmp_path / "p.jsonl")
    assert not list(tmp_path.iterdir())


def test_so_do_predictions(broken: str, tmp_path: Path) -> None:
    predictor = Predictor(small_model(dtype=torch.float32))
    with pytest.raises(NotFiniteError, match="test-1, test-4"):
        list(predictor.predict_stream(FeatureStream(broken, "test", shuffle=False)))
    usual, huge = np.ones((2, 6)), np.full((2, 6), HUGE)
    with pytest.raises(NotFiniteError, match=r"1 of 2 utterances .*: utterance 1; look"):
        predictor.predict([{"audio": usual}, {"audio": huge}])
    small_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    (tmp_path / "p.jsonl").write_text("before\n")
    with pytest.raises(SystemExit, match="test-1, test-4"):
        main(["predict", str(tmp_path / "model"), broken, "--out", str(tmp_path / "p.jsonl")])
    assert (tmp_path / "p.jsonl").read_text() == "before\n"


def test_a_graph_is_not_equal_to_nothing() -> None:
    model = small_model(dtype=torch.float32)
    padded = PaddedAWTPN(model)

    def late(inputs: Any) -> list[torch.Tensor]:
        outputs = list(padded(*inputs))
        return [*outputs[:-1], outputs[-1] * math.nan]

    with pytest.raises(RuntimeError, match=r"model\.pt2 differs from the model by nan"):
        check(model, late, "model.pt2")
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    with pytest.raises(NotFiniteError, match="even for usual features"):
        check(model, lambda inputs: padded(*inputs), "model.pt2")


# --- Runs ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_accelerator")
def test_a_validation_stops_the_run_which_goes_on_from_there(broken: str, tmp_path: Path) -> None:
    for _ in range(2):  # the same command again validates again, and trains nothing anew
        with pytest.raises(NotFiniteError, match=r"split val: .*: val-1; look"):
            run_folder(tmp_path / "run", broken)
        assert status(tmp_path / "run")["status"] == "failed"
        assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3]
    position = load_position((tmp_path / "run" / "checkpoints" / "latest").resolve())
    assert (position.step, position.validated) == (3, 0)


@pytest.mark.usefixtures("no_accelerator")
def test_a_run_in_which_no_step_counted_fails(tmp_path: Path) -> None:
    data = packed(tmp_path / "d", {"train": set(range(24))})
    told = r"^all 3 steps were skipped, .* so nothing was learned: check these utterances' features"
    for _ in range(2):  # nor does it look finished to the same command
        with pytest.raises(ValueError, match=told):
            run_folder(tmp_path / "run", data, **{"data.standardize": False})
        found = status(tmp_path / "run")
        assert (found["status"], found["step"], found["skipped"]) == ("failed", 3, 3)
        assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.usefixtures("no_accelerator")
def test_steps_left_out_stand_in_status_results_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = packed(tmp_path / "d", {"train": {7}})
    run = run_folder(tmp_path / "run", data, **{"data.standardize": False})
    results = strict((run / "results.json").read_text())
    for told in (status(run), results):
        assert (told["step"], told["skipped"]) == (3, 1)
    assert "warning: 1 of 3 steps were left out" in capsys.readouterr().out
    assert gather([run]).skipped_steps == "1 of 3 were not finite and changed nothing"
    main(["report", str(run), "--markdown", str(tmp_path / "r.md"), "--out", str(tmp_path / "r.html")])
    assert (
        "| steps left out | 1 of 3 were not finite and changed nothing |" in (tmp_path / "r.md").read_text()
    )
    assert "1 of 3 were not finite" in (tmp_path / "r.html").read_text()
    for file in run.rglob("*.json*"):
        for line in [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines():
            strict(line)


def test_a_curve_without_values_is_drawn_as_such() -> None:
    nothing, something = np.zeros(0), np.arange(3.0)
    assert "none finite" in charts.curve_svg([(nothing, nothing)], "loss")
    assert "none finite" not in charts.curve_svg([(nothing, nothing), (something, something)], "loss")


def test_counts_of_older_checkpoints_are_kept() -> None:
    assert describe_steps(Position(step=9, skipped=2)) == {"step": 9, "skipped": 2}
    assert describe_steps(Position(step=9, skipped=1, left_out=3)) == {"step": 9, "skipped": 3}
    check_any_step_counted(Position())
    check_any_step_counted(Position(step=3, left_out=2))
    with pytest.raises(NotFiniteError, match="all 3 steps"):
        check_any_step_counted(Position(step=3, skipped=3))


def test_statistics_and_weights_to_begin_with_are_finite(tmp_path: Path) -> None:
    fine = np.ones(3)
    check_statistics("d: audio", fine, fine)
    with pytest.raises(ValueError, match=r"d: audio\[1\] has mean 1e\+39 and deviation 1 "):
        check_statistics("d: audio", np.array([0, 1e39, 0]), fine)
    with pytest.raises(ValueError, match=r"\[2\] has mean 1 and deviation nan"):
        check_statistics("d: audio", fine, np.array([0, 1, math.nan]))
    model = small_model()
    check_finite_start(model, None)
    with torch.no_grad():
        model.tpn.prototypes[0, 0] = math.inf
    with pytest.raises(
        ValueError, match=r"values of tpn\.prototypes that are NaN or infinite: check run\.init_"
    ):
        check_finite_start(model, None)
    with pytest.raises(ValueError, match=r"step-7 is broken: resume an earlier checkpoint"):
        check_finite_start(model, Path("step-7"))


@pytest.mark.usefixtures("no_accelerator")
def test_prototypes_of_data_that_are_not_finite_name_the_utterances(tmp_path: Path) -> None:
    data = packed(tmp_path / "d", {"train": {4, 9}})
    changes = {"data.standardize": False, "prototypes.init": "data", "model.prototypes_per_class": 2}
    with pytest.raises(
        NotFiniteError, match=r"prototypes\.init=data.* 2 of 24 .*train-[49], train-[49]; look"
    ):
        run_folder(tmp_path / "run", data, **changes)


@pytest.mark.parametrize("entropy", ["0.5", "NaN"])
def test_a_best_that_was_chosen_by_what_is_not_finite_is_chosen_anew(tmp_path: Path, entropy: str) -> None:
    """An older version took it for a figure; JSON has no word for it."""
    model = small_model(dtype=torch.float32)
    position = Position(step=2, best_step=2, best_by="w-F1", best_value=0.75, best_tie=0.5, validated=2)
    root = tmp_path / "checkpoints"
    folder = checkpoint.save(
        root,
        model,
        make_optimizer(model, OptimConfig()),
        position,
        model.card(),
        is_main=True,
        best=True,
        engine=SINGLE,
    )
    state = folder / files.STATE_FILE
    state.write_text(state.read_text().replace('"best_tie": 0.5', f'"best_tie": {entropy}'))
    _, found = resolve_resume(Config(), tmp_path)
    expected = position if entropy == "0.5" else Position(step=2)
    assert found == expected
