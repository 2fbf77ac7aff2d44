"""Checkpoints without an engine: whole or refused, atomic, pruned. Engines are tested under distributed/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support import CLASSES, THREE_DIMS, features, same_bits_or_close, small_model, utterances
from torch import Tensor

from awtpn.config.command_line import parse_command_line
from awtpn.distributed.engines.single import SINGLE
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import OptimConfig
from awtpn.model import files
from awtpn.model.files import CARD_FILE, OPTIMIZER_FILE, STATE_FILE, WEIGHTS_FILE
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.run import checkpoint, position
from awtpn.run.folder import check_folder, resolve_resume
from awtpn.run.init_from import init_from
from awtpn.run.position import Position
from shards.format.feature_space import space_of

POSITION = Position(
    step=3,
    epoch=1,
    epoch_step=1,
    best_by="w-F1",
    best_value=0.5,
    best_step=2,
    seed=4,
    global_batch_size=8,
    streams=2,
)


def train(model: AWTPN, optimizer: torch.optim.Optimizer, steps: int) -> None:
    packed = features(utterances([(3, 2), (2, 4)], dtype=torch.float32))
    for _ in range(steps):
        output = model(packed)
        loss = output.logits.square().sum() + sum(s.distances.mean() for s in output.streams.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make() -> tuple[AWTPN, torch.optim.AdamW]:
    model = small_model(dtype=torch.float32)
    return model, make_optimizer(model, OptimConfig(lr=0.01))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, AWTPN, torch.optim.AdamW]:
    model, optimizer = make()
    train(model, optimizer, 3)
    folder = checkpoint.save(tmp_path, model, optimizer, POSITION, model.card(), is_main=True, engine=SINGLE)
    return folder, model, optimizer


def test_a_restored_run_goes_on_as_if_nothing_had_been(saved: tuple[Path, AWTPN, torch.optim.AdamW]) -> None:
    folder, model, optimizer = saved
    assert checkpoint.find_latest(folder.parent) == folder
    assert position.load_position(folder) == POSITION
    other, other_optimizer = make()
    checkpoint.load_weights(folder, other)
    checkpoint.load_optimizer(folder, other, other_optimizer, engine=SINGLE)
    train(model, optimizer, 2)
    train(other, other_optimizer, 2)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert same_bits_or_close(ours.detach(), theirs.detach()), name


def test_a_checkpoint_is_a_model(saved: tuple[Path, AWTPN, torch.optim.AdamW]) -> None:
    folder, model, _ = saved
    packed = features(utterances([(3, 2)], dtype=torch.float32))
    assert same_bits_or_close(AWTPN.from_pretrained(folder)(packed).logits, model(packed).logits)
    for path in (folder, folder.parent / "latest"):
        assert files.find_model(path) == folder
    run = folder.parent.parent / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(folder.parent)
    assert files.find_model(run) == folder, "latest, where there is no best"
    with pytest.raises(ValueError, match=r"nowhere is not a run, checkpoint or export"):
        files.find_model(folder.parent / "nowhere")


def test_before_any_step_there_is_no_state_to_restore(tmp_path: Path) -> None:
    model, optimizer = make()
    folder = checkpoint.save(
        tmp_path, model, optimizer, Position(), model.card(), is_main=True, engine=SINGLE
    )
    other, other_optimizer = make()
    checkpoint.load_optimizer(folder, other, other_optimizer, engine=SINGLE)
    assert not other_optimizer.state


@pytest.mark.parametrize("name", [WEIGHTS_FILE, OPTIMIZER_FILE, CARD_FILE])
def test_an_altered_or_missing_file_is_refused_by_name(
    saved: tuple[Path, AWTPN, torch.optim.AdamW], name: str
) -> None:
    path = saved[0] / name
    whole = path.read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    for damaged in (flipped, whole[:-1], b""):
        path.write_bytes(damaged)
        assert f"{name} is not the file that was saved" in str(checkpoint.find_resume_problem(saved[0]))
    path.write_bytes(whole)
    assert checkpoint.find_resume_problem(saved[0]) is None
    path.unlink()
    assert f"{name} is missing" in str(checkpoint.find_resume_problem(saved[0]))


def test_the_newest_sound_checkpoint_is_offered_instead(
    saved: tuple[Path, AWTPN, torch.optim.AdamW],
) -> None:
    folder, model, optimizer = saved
    root = folder.parent
    newer = [
        checkpoint.save(root, model, optimizer, Position(step=s), model.card(), is_main=True, engine=SINGLE)
        for s in (4, 5)
    ]
    (newer[0] / WEIGHTS_FILE).unlink()
    assert str(folder) in checkpoint.suggest_intact(newer[1])
    (folder / STATE_FILE).unlink()
    assert checkpoint.suggest_intact(newer[1]) == ""


@pytest.mark.parametrize("text", [None, "", "{}", '{"position": {"stride": 3}}', '{"position": '])
def test_a_broken_state_file_is_refused_by_name(
    saved: tuple[Path, AWTPN, torch.optim.AdamW], text: str | None
) -> None:
    path = saved[0] / STATE_FILE
    path.unlink() if text is None else path.write_text(text)
    assert re.search(
        r"not a complete checkpoint: checkpoint\.json", str(checkpoint.find_resume_problem(saved[0]))
    )


def test_an_export_and_a_run_are_no_checkpoints(
    saved: tuple[Path, AWTPN, torch.optim.AdamW], tmp_path: Path
) -> None:
    folder, model, _ = saved
    export, run = tmp_path / "export", tmp_path / "run"
    model.save_pretrained(export)
    (run / "checkpoints").mkdir(parents=True)
    folder.rename(run / "checkpoints" / folder.name)
    config, _ = parse_command_line(["--data.train=here", f"--run.resume={export}"])
    told = rf"^run\.resume: {export} is an export, .*: start from its weights with --run\.init_from {export}$"
    with pytest.raises(ValueError, match=told):
        check_folder(config, tmp_path / "new")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=f"--run.init_from {export}"):
        resolve_resume(config, tmp_path / "there")
    told = f"{run} is a run, not a checkpoint: name one of its checkpoints, such as {run}/checkpoints/step-"
    assert str(checkpoint.find_resume_problem(run)).startswith(told)


def test_only_the_main_rank_writes(tmp_path: Path) -> None:
    model, optimizer = make()
    checkpoint.save(tmp_path, model, optimizer, POSITION, model.card(), is_main=False, engine=SINGLE)
    assert not list(tmp_path.iterdir())


def test_a_kill_while_saving_leaves_the_last_whole_checkpoint(
    saved: tuple[Path, AWTPN, torch.optim.AdamW], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model, optimizer = saved
    root = folder.parent
    for dies_in in ("_fingerprint", "_sync", "update_symlink"):
        with monkeypatch.context() as patch:

            def die(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(checkpoint, dies_in, die)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(
                    root, model, optimizer, Position(step=4), model.card(), is_main=True, engine=SINGLE
                )
        assert checkpoint.find_latest(root) == folder, f"killed in {dies_in}"
        assert position.load_position(folder).step == 3
    # What such a kill leaves behind is not in the way of the next attempt.
    checkpoint.save(root, model, optimizer, Position(step=4), model.card(), is_main=True, engine=SINGLE)
    assert position.load_position(root / "latest").step == 4
    assert not list(root.glob(".*"))


def test_a_link_always_names_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "step-1", tmp_path / "step-2"
    old.mkdir()
    new.mkdir()
    link = tmp_path / "latest"
    checkpoint.update_symlink(link, old)
    assert link.resolve() == old
    real = checkpoint.os.replace

    def replace(source: Path, target: Path) -> None:
        assert link.resolve() == old, "the old target stays until the very moment of the switch"
        real(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", replace)
    checkpoint.update_symlink(link, new)
    assert link.resolve() == new
    assert not link.readlink().is_absolute(), "a run folder can be moved"


def test_pruning_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    for step in range(1, 8):
        (tmp_path / f"step-{step:08d}").mkdir()
    checkpoint.update_symlink(tmp_path / "best", tmp_path / "step-00000002")
    checkpoint.update_symlink(tmp_path / "latest", tmp_path / "step-00000004")
    checkpoint.prune(tmp_path, keep_last=2)
    assert [int(f.name[5:]) for f in sorted(tmp_path.glob("step-*"))] == [2, 4, 6, 7]
    checkpoint.prune(tmp_path, keep_last=100)
    assert len(list(tmp_path.glob("step-*"))) == 4


def test_other_labels_get_a_new_classifier(saved: tuple[Path, AWTPN, torch.optim.AdamW]) -> None:
    folder, model, _ = saved
    same = small_model(dtype=torch.float32)
    same.set_statistics("audio", torch.full((6,), 9.0), torch.ones(6))
    init_from(folder, same)
    assert torch.equal(same.classifier.weight, model.classifier.weight)
    assert torch.equal(same.tpn.prototypes, model.tpn.prototypes)
    assert (same.standardise["audio"].mean == 9).all(), "statistics are those of the new data"

    other = AWTPN(model.config, model.feature_dims, ["calm", "happy", "sad", "bored"])
    fresh = other.classifier.weight.clone()
    assert init_from(folder, other).line.endswith("audio, video; random ones: prototypes and classifier")
    assert torch.equal(other.ses["audio"].weight, model.ses["audio"].weight)
    assert torch.equal(other.classifier.weight, fresh)

    wider = small_model(dtype=torch.float32, shared_dim=16)
    with pytest.raises(ValueError, match=r"run\.init_from: \S+ is \(8, \d\).*\(16, "):
        init_from(folder, wider)


def weights_of(model: AWTPN) -> dict[str, Tensor]:
    """Without the feature statistics, which are never taken."""
    state = model.state_dict().items()
    return {name: tensor.clone() for name, tensor in state if not name.startswith("standardise.")}


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        (
            ["audio", "video"],
            ["audio", "video", "text"],
            r"from \S+old: audio, video, prototypes and classifier; random ones: text$",
        ),
        (
            ["audio", "video", "text"],
            ["text"],
            r"from \S+old: text, prototypes and classifier; not used: audio, video$",
        ),
        (
            ["text", "audio"],
            ["video", "text"],
            r"from \S+old: text, prototypes and classifier; random ones: video; not used: audio$",
        ),
    ],
)
def test_a_run_starts_from_a_model_of_other_modalities(
    tmp_path: Path, theirs: list[str], ours: list[str], told: str
) -> None:
    old = small_model(dtype=torch.float32, dims={name: THREE_DIMS[name] for name in theirs})
    old.save_pretrained(tmp_path / "old")
    torch.manual_seed(5)
    new = AWTPN(ModelConfig(shared_dim=8, modalities=ours), THREE_DIMS, CLASSES)  # type: ignore[arg-type]
    before = weights_of(new)
    assert re.search(told, init_from(tmp_path / "old", new).line)
    for name, tensor in weights_of(new).items():
        expected = weights_of(old).get(name)
        assert torch.equal(tensor, before[name] if expected is None else expected), name
    [taken] = set(theirs) & set(ours) if len(ours) < 3 else {"audio"}
    assert torch.equal(new.awm[taken].query, old.awm[taken].query)
    assert torch.equal(new.tpn.prototypes, old.tpn.prototypes)


def test_a_run_does_not_start_from_a_model_without_its_modalities(tmp_path: Path) -> None:
    old = small_model(dtype=torch.float32)
    old.save_pretrained(tmp_path / "old")
    new = small_model(dtype=torch.float32, dims={"text": 4})
    with pytest.raises(ValueError, match=r"old is a model of audio, video, and this run uses text: change"):
        init_from(tmp_path / "old", new)


def test_features_of_another_space_are_refused_in_modalities_in_common(tmp_path: Path) -> None:
    def space(width: int) -> dict[str, Any]:
        settings = {"id": "chargrams", "width": width}
        return {"features": {"text": {"space": space_of(settings), "settings": settings}}}

    old = small_model(dtype=torch.float32, dims=THREE_DIMS)
    old.provenance = space(512)
    old.save_pretrained(tmp_path / "old")
    new = small_model(dtype=torch.float32, dims=THREE_DIMS)
    new.provenance = space(256)
    with pytest.raises(ValueError, match=r"trained on other features than this run: text: .*512"):
        init_from(tmp_path / "old", new)
    without = small_model(dtype=torch.float32)
    without.provenance = space(256)
    assert "not used: text" in init_from(tmp_path / "old", without).line


def test_the_state_file_names_what_it_saved(saved: tuple[Path, AWTPN, torch.optim.AdamW]) -> None:
    state = json.loads((saved[0] / STATE_FILE).read_text())
    assert state["adam_step"] == 3
    assert set(state["files"]) == {WEIGHTS_FILE, OPTIMIZER_FILE, CARD_FILE}
