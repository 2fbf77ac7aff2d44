"""Models and checkpoints that nobody saved: refused in one line, before memory is taken or a file touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import ALONE, CLASSES, pack_corpus, small_model

from awtpn.config.schema import Config
from awtpn.distributed.engines.single import SINGLE
from awtpn.inference.export import export
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import OptimConfig
from awtpn.model import files
from awtpn.model.files import CARD_FILE, CHECKSUMS_FILE, OPTIMIZER_FILE, STATE_FILE, WEIGHTS_FILE, fingerprint
from awtpn.model.network import AWTPN
from awtpn.model.task import Task
from awtpn.run import checkpoint
from awtpn.run.data import open_training_stream
from awtpn.run.init_from import init_from
from awtpn.run.position import Position

Record = dict[str, Any]


def refusal(call: Callable[[], Any]) -> str:
    """The message of a refusal, which has one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what the caller looks at)
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- Cards and weights ---------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An export as early code made it, without checksums."""
    small_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / CHECKSUMS_FILE).unlink()
    return tmp_path / "model"


CARDS: dict[str, tuple[Callable[[Record], Any], str]] = {
    # 280 TB of weights, of which any allocation would fail, or take all memory.
    "wide": (lambda c: c["model"].update(shared_dim=1 << 16), "describes another network than model.safe"),
    "wider than torch can count": (lambda c: c["model"].update(shared_dim=10**30), "model.shared_dim cannot"),
    "wide features": (lambda c: c["feature_dims"].update(audio=1 << 24), "describes another network"),
    "negative features": (lambda c: c["feature_dims"].update(audio=-1), "feature_dims must be"),
    "many prototypes": (lambda c: c["model"].update(prototypes_per_class=1 << 16), "tpn.prototypes is"),
    "sizes as text": (lambda c: c["model"].update(shared_dim="8"), "model.shared_dim cannot be '8'"),
    "more classes": (lambda c: c["classes"].append("bored"), "tpn.prototypes is|classifier"),
    "classes twice": (lambda c: c.update(classes=["a", "a", "b"]), "classes must be distinct names"),
    "class of a number": (lambda c: c.update(classes=["a", 1, "b"]), "classes must be a list of names"),
    "no classes": (lambda c: c.pop("classes"), "classes must be"),
    "scale NaN": (lambda c: c["model"].update(distance_scale_audio=float("nan")), "distance_scale_audio can"),
    "weight as text": (lambda c: c["model"].update(alpha_audio="x"), "alpha_audio cannot be 'x'"),
    "unknown choice": (lambda c: c["model"].update(awm="exec"), "awm cannot be 'exec'"),
    "modalities as text": (lambda c: c["model"].update(modalities="audio"), "modalities cannot be 'audio'"),
    "a modality less": (lambda c: c["model"].update(modalities=["audio"]), "missing by the card"),
    "no model": (lambda c: c.update(model=[]), "model must be a mapping"),
    "prototypes": (lambda c: c.update(learnable_prototypes="yes"), "must be true or false"),
    "provenance": (lambda c: c.update(provenance="yes"), "provenance must be a mapping"),
}


@pytest.mark.parametrize("name", CARDS)
def test_forged_cards_are_refused(model: Path, name: str) -> None:
    change, told = CARDS[name]
    card = json.loads((model / CARD_FILE).read_text())
    change(card)
    (model / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ValueError, match=told):
        AWTPN.from_pretrained(model)
    for use in (
        lambda: AWTPN.from_pretrained(model),
        lambda: init_from(model, small_model(dtype=torch.float32)),
    ):
        refusal(use)


# Of a model of the values of TASK.
TASK = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5)
TASKS: dict[str, tuple[Callable[[Record], Any], str]] = {
    "no mapping": (lambda c: c.update(task="regression"), "task must be a mapping with a type and names"),
    "empty": (lambda c: c.update(task={}), "task must be a mapping with a type and names"),
    "no names": (lambda c: c["task"].pop("names"), "task must be a mapping with a type and names"),
    "false": (lambda c: c.update(task=False), "task must be a mapping"),
    "removed": (lambda c: c.pop("task"), "classes must be distinct names, at least one"),
    "another type": (lambda c: c["task"].update(type="ranking"), "task type 'ranking': there is none"),
    "type of a number": (lambda c: c["task"].update(type=3), "task.type cannot be 3"),
    "as labels": (lambda c: c["task"].update(type="multilabel"), "describes another network"),
    "as classes": (
        lambda c: c["task"].update(type="classification"),
        "classes and the names of the task diff",
    ),
    "classes beside it": (lambda c: c.update(classes=["a"]), "classes and the names of the task differ"),
    "a million levels": (lambda c: c["task"].update(levels=10**6), "2 to .* levels"),
    "levels that overflow": (lambda c: c["task"].update(levels=10**40), "task.levels cannot be"),
    "one level more": (lambda c: c["task"].update(levels=6), "describes another network"),
    "another head": (lambda c: c["task"].update(head="linear"), "describes another network"),
    "unknown head": (lambda c: c["task"].update(head="exec"), "task head 'exec': there is none"),
    "a name less": (lambda c: c["task"].update(names=["a"], ranges=[[0, 1]]), "describes another network"),
    "too many names": (
        lambda c: c["task"].update(names=list(map(str, range(10**5))), ranges=[[0, 1]] * 10**5),
        "task.names has 100000 entries; at most 65536 are read",
    ),
    "too many ranges": (lambda c: c["task"].update(ranges=[[0, 1]] * 10**5), "ranges has 100000 entries"),
    "ten thousand names": (
        lambda c: c["task"].update(names=list(map(str, range(10**4))), ranges=[[0, 1]] * 10**4),
        "describes another network",
    ),
    "names twice": (lambda c: c["task"].update(names=["a", "a"]), "distinct names"),
    "names of numbers": (lambda c: c["task"].update(names=[1, 2]), "task.names cannot be"),
    "a name without letters": (lambda c: c["task"].update(names=["", "a"]), "task.names must not be empty"),
    "no ranges": (lambda c: c["task"].update(ranges=None), "a range for each dimension"),
    "a range backwards": (
        lambda c: c["task"]["ranges"].reverse() or c["task"].update(ranges=[[1, 0]] * 2),
        "a le",
    ),
    "a range NaN": (lambda c: c["task"].update(ranges=[[0, float("nan")]] * 2), "task.ranges cannot be"),
    "ranges of texts": (lambda c: c["task"].update(ranges=[["a", "b"]] * 2), "task.ranges cannot be"),
    "a field more": (lambda c: c["task"].update(run="exec"), "a field 'run', which this code does not know"),
}


@pytest.mark.parametrize("name", TASKS)
def test_forged_tasks_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    small_model(dtype=torch.float32, task=TASK).save_pretrained(folder)
    (folder / CHECKSUMS_FILE).unlink()
    assert AWTPN.from_pretrained(folder).task == TASK
    change, told = TASKS[name]
    card = json.loads((folder / CARD_FILE).read_text())
    change(card)
    (folder / CARD_FILE).write_text(json.dumps(card))
    # Of so many names nothing is made: neither states nor their names.
    monkeypatch.setattr(Task, "groups", property(lambda task: pytest.fail("names of states")))
    with pytest.raises(ValueError, match=told):
        AWTPN.from_pretrained(folder)
    message = refusal(lambda: AWTPN.from_pretrained(folder))
    assert str(folder) in message
    assert len(message) < 500
    if "network" not in told:  # what the card alone tells is found by all that read it
        refusal(lambda: export(folder, tmp_path / "out"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "", '{"format": "awtpn"}'])
def test_a_card_that_is_none_is_refused(model: Path, text: str) -> None:
    (model / CARD_FILE).write_text(text)
    assert CARD_FILE in refusal(lambda: AWTPN.from_pretrained(model))


@pytest.mark.parametrize("content", [b"", b"oops", b"\xff" * 100, (1 << 62).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_none_are_refused(model: Path, content: bytes) -> None:
    (model / WEIGHTS_FILE).write_bytes(content)
    told = refusal(lambda: AWTPN.from_pretrained(model))
    assert f"{WEIGHTS_FILE} is damaged or not a safetensors file" in told


def test_exports_carry_checksums(model: Path, tmp_path: Path) -> None:
    assert AWTPN.from_pretrained(model).classes == CLASSES, "early exports have none"
    export(model, tmp_path / "out")
    out = tmp_path / "out"
    files = json.loads((out / CHECKSUMS_FILE).read_text())["files"]
    assert files == {name: fingerprint(out / name) for name in (WEIGHTS_FILE, CARD_FILE)}
    assert AWTPN.from_pretrained(out).classes == CLASSES
    for name in (WEIGHTS_FILE, CARD_FILE):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        told = refusal(lambda: AWTPN.from_pretrained(out))
        assert f"{name} is not the file that was exported" in told
        assert f"remove {out / CHECKSUMS_FILE}" in told
        (out / name).write_bytes(whole)
    (out / "README.md").write_text("people edit it")
    AWTPN.from_pretrained(out)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (None, "the field files is missing"),
        ({}, "has no checksum"),
        ({"../../etc/passwd": {"bytes": 1, "sha256": "0" * 64}}, "is not a plain file name"),
        ({WEIGHTS_FILE: {"bytes": 1, "sha256": "x"}}, "has no size, or no hash of 64"),
        ({WEIGHTS_FILE: {"bytes": -1, "sha256": "0" * 64}}, "has no size, or no hash of 64"),
        ({WEIGHTS_FILE: 3}, "has no size, or no hash of 64"),
    ],
)
def test_checksums_that_are_none_are_refused(model: Path, files: Any, told: str) -> None:
    (model / CHECKSUMS_FILE).write_text(json.dumps({"format_version": 1, "files": files}))
    assert told in refusal(lambda: AWTPN.from_pretrained(model))


# --- Checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = small_model(dtype=torch.float32)
    optimizer = make_optimizer(model, OptimConfig())
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    position = Position(step=5, epoch=1, epoch_step=2, best_by="w-F1", best_value=0.5, best_step=3, streams=1)
    return checkpoint.save(
        tmp_path / "checkpoints", model, optimizer, position, model.card(), is_main=True, engine=SINGLE
    )


def changed(folder: Path, change: Callable[[Record], Any]) -> None:
    path = folder / STATE_FILE
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def at(**fields: Any) -> Callable[[Record], None]:
    return lambda state: state["position"].update(fields)


def file_named(name: str, **entry: Any) -> Callable[[Record], None]:
    return lambda state: state["files"].update({name: entry})


STATES: dict[str, tuple[Callable[[Record], Any], str]] = {
    "negative step": (at(step=-5, epoch=-3), "position.step cannot be -5"),
    "negative epoch": (at(epoch=-3), "position.epoch cannot be -3"),
    "beyond the steps done": (at(epoch_step=10**9), "position.epoch_step cannot be 1000000000 at step 5"),
    "more epochs than steps": (at(epoch=4), "position.epoch_step cannot be 2 at step 5 of epoch 4"),
    "best to come": (at(best_step=6), "position.best_step cannot be 6 at step 5"),
    "validated to come": (at(validated=6), "position.validated cannot be 6"),
    "step of a hundred digits": (at(step=10**100), "position.step cannot be 1000"),
    "step as text": (at(step="5"), "position.step cannot be '5'"),
    "step true": (at(step=True), "position.step cannot be True"),
    "seconds NaN": (at(seconds=float("nan")), "position.seconds cannot be nan"),
    "negative seconds": (at(seconds=-1.0), "position.seconds cannot be -1.0"),
    "negative batch": (at(global_batch_size=-8), "global_batch_size cannot be -8"),
    "damaged no names": (at(damaged=[1]), r"position.damaged cannot be \[1\]"),
    "unknown field": (at(stride=3), "a field 'stride', which this code does not know"),
    "no position": (lambda state: state.update(position=3), "position is not a mapping"),
    "another format": (lambda state: state.update(format_version=2), "format version 1"),
    "files elsewhere": (file_named("../../../etc/passwd", bytes=1, sha256="0" * 64), "not a plain file name"),
    "files without hash": (file_named(CARD_FILE, bytes=1, sha256="x"), "has no size, or no hash of 64"),
    "no files": (lambda state: state.update(files={}), f"{WEIGHTS_FILE} is missing"),
    "Adam before its first step": (lambda state: state.update(adam_step=-1), "adam_step .* cannot be -1"),
    "Adam's step NaN": (lambda state: state.update(adam_step=float("nan")), "adam_step .* cannot be nan"),
    "no Adam": (lambda state: state.pop("adam_step"), "adam_step .* cannot be None"),
    "loss scale": (lambda state: state.update(loss_scale={"scale": "x"}), "loss_scale cannot be 'x'"),
}


@pytest.mark.parametrize("name", STATES)
def test_forged_states_are_refused(saved: Path, name: str) -> None:
    change, told = STATES[name]
    assert checkpoint.find_resume_problem(saved) is None
    changed(saved, change)
    wrong = str(checkpoint.find_resume_problem(saved))
    assert "\n" not in wrong
    with pytest.raises(ValueError, match=told):
        raise ValueError(wrong)
    assert checkpoint.suggest_intact(saved) == ""
    assert checkpoint.find_latest(saved.parent) == saved, "it is the one that is named, and refused"


def test_a_state_that_is_nested_too_deeply_is_refused(saved: Path) -> None:
    (saved / STATE_FILE).write_text("[" * 100_000)
    assert "nested too deeply" in str(checkpoint.find_resume_problem(saved))


def test_moments_of_another_shape_are_refused(saved: Path) -> None:
    """Torch would broadcast them."""
    model = small_model(dtype=torch.float32)
    optimizer = make_optimizer(model, OptimConfig())
    save_file({"classifier.bias.exp_avg": torch.ones(1)}, saved / OPTIMIZER_FILE)
    told = refusal(lambda: checkpoint.load_optimizer(saved, model, optimizer, engine=SINGLE))
    assert "classifier.bias.exp_avg has the shape (1,)" in told


@pytest.mark.parametrize("target", ["/etc", "latest", "../..", "step-evil", "step-00000005/.."])
def test_a_link_that_leads_elsewhere_is_refused(saved: Path, target: str) -> None:
    link = saved.parent / "latest"
    link.unlink()
    link.symlink_to(target)
    told = refusal(lambda: checkpoint.find_latest(saved.parent))
    assert f"{link} names {target!r}" in told
    link.unlink()
    assert checkpoint.find_latest(saved.parent) == saved, "as the message says"


def test_folders_of_others_are_left_alone(saved: Path) -> None:
    root = saved.parent
    for name in ("step-evil", "step-1", "step-99999999x"):
        (root / name).mkdir()
        (root / name / "thesis.tex").touch()
    (root / "step-00000001").mkdir()
    assert [folder.name for folder in files.step_folders(root)] == ["step-00000001", "step-00000005"]
    checkpoint.prune(root, keep_last=1)
    assert not (root / "step-00000001").exists()
    assert len(list(root.glob("*/thesis.tex"))) == 3


def test_a_position_beyond_the_epoch_is_refused_at_the_start(tmp_path: Path) -> None:
    config = Config()
    config.data.train = pack_corpus(tmp_path / "d", train=20)
    config.train.global_batch_size = 8
    position = Position(step=9, epoch_step=4, global_batch_size=8, streams=1)
    told = refusal(lambda: open_training_stream(config, ALONE, position))
    assert "is 4 steps into an epoch, but an epoch of " in told
    assert "has 3" in told
