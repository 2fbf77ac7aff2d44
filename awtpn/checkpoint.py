"""Checkpoints in one layout-free form: saved under any engine, resumed under any other.

A checkpoint folder holds the full float32 weights (`model.safetensors`, with `config.json` beside it, so it
is a model that `AWTPN.from_pretrained` loads), Adam's moments under the same names (`optimizer.safetensors`)
and the run's position (`checkpoint.json`, with the size and sha256 of the others). No pickles.

It is written to a temporary folder, synced, renamed, and only then does the symlink `latest` move: whatever
kills a run, `latest` names a whole checkpoint. All ranks call `save`, since engines gather by collectives.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from awtpn.engine_state import gather_state, loss_scale, set_loss_scale, set_state
from awtpn.model import AWTPN, CARD_FILE, WEIGHTS_FILE, check_shapes
from awtpn.model_files import (
    CHECKSUMS_FILE,
    check_checksums,
    find_altered,
    parse_files,
    read_card,
    read_weights,
)
from awtpn.model_files import fingerprint as _fingerprint
from awtpn.records import from_record
from awtpn.sharing.hub import locate
from shards.bounded_json import read_json
from shards.feature_space import check_same_space
from shards.json_text import json_text
from shards.lfs import refuse_pointer

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "checkpoint.json"
FILES = (WEIGHTS_FILE, OPTIMIZER_FILE, CARD_FILE)  # whose fingerprints it holds
STEP = re.compile(r"step-(\d{8,15})")


@dataclass
class Position:
    """Where a run stands, and what must not change for it to go on."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    epoch_step: int = 0
    """Steps done of this epoch."""
    best_f1: float = -1.0
    best_entropy: float = 0.0
    """The best checkpoint's w-F1 and, which decides between equals, cross-entropy on validation data."""
    best_step: int = 0
    seed: int = 0
    global_batch_size: int = 0
    streams: int = 0
    data: str = ""
    """Digest of the training utterances: their manifest, split and selection."""
    validation_data: str = ""
    """Digest of the validation utterances that best_f1 is of; "" where an older version recorded none."""
    skipped: int = 0
    """Steps left out because a loss or gradient was not finite; train.skip_budget bounds them."""
    left_out: int = 0
    """Steps that changed nothing: `skipped`, and those with which fp16's loss scale found its range."""
    damaged: list[str] = field(default_factory=list)
    """Utterances left out because their shard or array is damaged or missing."""
    seconds: float = 0.0
    """Wall time that the run took so far, over all its starts, without getting ready."""
    rank_seconds: float = 0.0
    """The same times the ranks that took part."""
    validated: int = 0
    """The step of the last validation."""
    threads: int = 0
    """CPU threads of each rank: another number changes the last bits of sums."""
    began_from: str = ""
    """The checkpoint that `run.resume` named when the run began from one."""


# --- Save ----------------------------------------------------------------------------------------


def save(
    root: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    card: Mapping[str, Any],
    is_main: bool,
    best: bool = False,
) -> Path:
    """Write `root/step-...` and point `root/latest` at it, and `root/best` where it is the best so far.

    Every rank calls; the main rank writes.

    Returns:
        The checkpoint's folder. On other ranks it may not yet exist: put a barrier after.
    """
    weights, moments, adam_step = gather_state(model, optimizer, keep=is_main)
    folder = root / folder_name(position.step)
    if is_main:
        temporary = root / f".{folder.name}.tmp"
        for old in root.glob(".step-*.tmp"):  # what a killed run had half written
            shutil.rmtree(old)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / WEIGHTS_FILE)
        save_file(moments, temporary / OPTIMIZER_FILE)
        (temporary / CARD_FILE).write_text(json_text(dict(card), indent=1) + "\n")
        files = {name: _fingerprint(temporary / name) for name in FILES}
        state = {
            "format_version": 1,
            "position": asdict(position),
            "adam_step": adam_step,
            "loss_scale": loss_scale(model, optimizer),
            "files": files,
        }
        (temporary / STATE_FILE).write_text(json_text(state, indent=1) + "\n")
        for path in temporary.iterdir():
            _sync(path)
        old = root / f".{folder.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():  # a step saved twice, by a run stopped and resumed at an epoch's last step
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
        _sync(root)
        if best:
            point(root / "best", folder)
        point(root / "latest", folder)
    return folder


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def identity(folder: Path) -> dict[str, Any] | None:
    """Which weights a checkpoint holds: step and sha256 of the weights; None where nothing records them."""
    try:
        state = read_json(folder / STATE_FILE)
        return {"step": state["position"]["step"], "sha256": state["files"][WEIGHTS_FILE]["sha256"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_folder(run_dir: Path) -> Path | None:
    """The checkpoint that a run is judged by: its best, or else its latest one; None where it has neither."""
    root = run_dir / "checkpoints"
    found = ((root / name).resolve() for name in ("best", "latest") if (root / name / CARD_FILE).is_file())
    return next(found, None)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def point(link: Path, folder: Path) -> None:
    """Make `link` a relative symlink to its sibling `folder`, replacing an older one atomically."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, link)


def step_folders(root: Path) -> list[Path]:
    """The folders of checkpoints, by their step; what others put beside them is not ours to touch."""
    found = [folder for folder in root.glob("step-*") if STEP.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def prune(root: Path, keep_last: int) -> None:
    """Remove all but the last `keep_last` checkpoints, the best and the latest (main rank only)."""
    kept = {(root / name).resolve() for name in ("best", "latest") if (root / name).exists()}
    steps = step_folders(root)
    for folder in steps[: max(0, len(steps) - keep_last)]:
        if folder.resolve() not in kept:
            shutil.rmtree(folder)


# --- Load ----------------------------------------------------------------------------------------


def find_latest(root: Path) -> Path | None:
    """The folder that `latest` names, or None for a run that never saved.

    Where there is no such link (a copy that left links out), it is the newest whole checkpoint.

    Raises:
        ValueError: it names no checkpoint of this run.
    """
    link = root / "latest"
    if link.is_symlink():
        target = Path(os.readlink(link))
        here = target.parent == Path() or (root / target.parent).resolve() == root.resolve()
        if not here or not STEP.fullmatch(target.name):
            raise ValueError(
                f"{link} names {str(target)!r:.200}, which is no checkpoint of this run: remove this link, "
                "and the run goes on from its newest whole checkpoint"
            )
    if link.exists():
        return link.resolve()
    return _newest_sound(root)


def load_position(folder: Path) -> Position:
    """Where the run of a checkpoint stands; see `problem` for its other files.

    Raises:
        ValueError: that cannot be where a run stands. One line.
        OSError: its file cannot be read.
    """
    return _parse_position(_read_state(folder), folder)


def problem(folder: Path, names: Sequence[str] = FILES) -> str | None:
    """Why a checkpoint cannot be resumed from, naming the file; None if it is whole and as it was saved.

    With `names`, only these files are looked at: evaluating takes no moments.
    """
    path = folder / STATE_FILE
    if not path.exists() and (other := _other_than_checkpoint(folder)):
        return other
    try:
        state = _read_state(folder)
        _parse_position(state, folder)
        _parse_adam(state, folder)
        files = parse_files(state.get("files"), path.name)
    except (OSError, ValueError) as error:
        told = str(error).removeprefix(f"{path}: ")
        return f"{folder} is no whole checkpoint: {path.name} cannot be read ({told})"
    for name in names:
        if name not in files or not (folder / name).is_file():
            return f"{folder} is no whole checkpoint: {name} is missing"
    return find_altered(folder, files, names, "saved")


def _other_than_checkpoint(folder: Path) -> str | None:
    """What to do with a folder that is an export, or a run, and no checkpoint; None where it is neither."""
    has = [(folder / name).is_file() for name in FILES]
    if has == [name != OPTIMIZER_FILE for name in FILES]:
        return (
            f"{folder} is an export, which has no optimizer state to go on with: start from its weights with "
            f"--run.init_from {quote(str(folder))}"
        )
    if steps := step_folders(folder / "checkpoints"):
        return f"{folder} is a run and no checkpoint: name one of its checkpoints, such as {steps[-1]}"
    return None


def _read_state(folder: Path) -> dict[str, Any]:
    state = read_json(folder / STATE_FILE)
    if not isinstance(state, dict) or state.get("format_version") != 1:
        raise ValueError(f"{folder / STATE_FILE}: not of a checkpoint of format version 1")
    return state


def _parse_position(state: dict[str, Any], folder: Path) -> Position:
    at = f"{folder / STATE_FILE}: position"
    position = from_record(Position, state.get("position"), at, finite=False)
    for field_ in fields(position):
        value = getattr(position, field_.name)
        least = -1 if field_.name == "best_f1" else 0
        # A cross-entropy may be of any size.
        if isinstance(value, int | float) and field_.name != "best_entropy" and not least <= value < math.inf:
            raise ValueError(f"{at}.{field_.name} cannot be {value}")
    # An epoch has a step at least.
    for name, least in (
        ("epoch_step", position.epoch_step + position.epoch),
        ("best_step", position.best_step),
        ("validated", position.validated),
        ("skipped", position.skipped),
    ):
        if least > position.step:
            raise ValueError(
                f"{at}.{name} cannot be {getattr(position, name)} at step {position.step} of epoch "
                f"{position.epoch}"
            )
    return position


def _parse_adam(state: dict[str, Any], folder: Path) -> tuple[float, dict[str, float]]:
    """Adam's step, and where fp16's search for a loss scale stands."""
    step, scale = state.get("adam_step"), state.get("loss_scale", {})
    numbers = [step, *(scale.values() if isinstance(scale, dict) else [None])]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise ValueError(f"{folder / STATE_FILE}: adam_step or loss_scale cannot be {number!r:.60}")
    return float(cast(float, step)), scale


def offer_another(folder: Path) -> str:
    """The end of an error about a checkpoint: how to go on from the newest sound one beside it."""
    sound = _newest_sound(folder.parent, all_but=folder)
    return f"; {sound} is whole: go on from it with --run.resume {quote(str(sound))}" if sound else ""


def _newest_sound(root: Path, all_but: Path | None = None) -> Path | None:
    others = (other for other in reversed(step_folders(root)) if other != all_but)
    return next((other for other in others if problem(other) is None), None)


def load_weights(folder: Path, model: AWTPN) -> None:
    """Put a checkpoint's weights and buffers into a model that no engine has wrapped yet.

    Raises:
        ValueError: they are of a model of another shape.
    """
    weights, own = read_weights(folder / WEIGHTS_FILE), model.state_dict()
    other = [name for name in {**own, **weights} if shape_of(own, name) != shape_of(weights, name)]
    if other:
        name = other[0]
        raise ValueError(
            f"{folder} is of another model: {name} is {shape_of(weights, name)} there, and "
            f"{shape_of(own, name)} by the settings of model.* now: choose another run.dir, set them as in "
            "the run's config.yaml, or start from its weights with --run.init_from"
        )
    model.load_state_dict(weights)


def shape_of(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "missing"


def find_model(path: Path) -> Path:
    """The model that `path` means: an export or checkpoint folder itself, or a run's best checkpoint.

    A path that does not exist but looks like "user/model" is fetched from the Hugging Face Hub.

    Raises:
        ValueError: there is none; says what was looked for. Or it is not as it was saved or exported.
    """
    path = locate(path, (CARD_FILE, WEIGHTS_FILE), optional=(CHECKSUMS_FILE,))
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "latest"]
    for folder in candidates:
        if not (folder / CARD_FILE).is_file():
            continue
        folder = folder.resolve()
        refuse_pointer(folder / WEIGHTS_FILE)
        if (folder / STATE_FILE).exists() and (wrong := problem(folder, (WEIGHTS_FILE, CARD_FILE))):
            sound = _newest_sound(folder.parent, all_but=folder)
            raise ValueError(wrong + (f"; {sound} is whole: name that instead" if sound else ""))
        check_checksums(folder, (WEIGHTS_FILE, CARD_FILE))
        return folder
    raise ValueError(
        f"{path} is no run, checkpoint or export: none of {', '.join(map(str, candidates))} has {CARD_FILE}"
    )


def load_matching(folder: Path, model: AWTPN) -> None:
    """Start `model` from another model's weights; where the labels differ, its classes start afresh.

    Classes are what the classifier and the prototype table know; all else is taken over, the feature
    statistics of the new training data excepted.

    Raises:
        ValueError: the two models' shapes differ; names the tensor. Or their features do, even where their
            widths are the same: projections of one feature space mean nothing in another.
    """
    card = read_card(folder)
    check_shapes(card, folder)
    check_same_space(
        card.get("provenance") or {},
        model.provenance,
        model.feature_dims,
        f"run.init_from: {folder} was trained on other features than this run",
        "extract these with the same encoders, or start afresh without run.init_from",
    )
    weights = read_weights(folder / WEIGHTS_FILE)
    own = model.state_dict()
    fresh = ("standardise.",) if card["classes"] == model.classes else ("standardise.", "classifier.", "tpn.")
    taken = {name: tensor for name, tensor in weights.items() if not name.startswith(fresh) and name in own}
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"run.init_from: {name} is {tuple(tensor.shape)} in {folder}, but "
                f"{tuple(own[name].shape)} in this run: give both the "
                "same model.shared_dim, model.prototypes_per_class and features"
            )
    model.load_state_dict(taken, strict=False)


def load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore Adam's moments and step, masters and fp16's loss scale in the wrapped model; every rank calls.

    The weights must be in the model already (`load_weights`, before the engine wrapped it).
    """
    moments, weights = read_weights(folder / OPTIMIZER_FILE), read_weights(folder / WEIGHTS_FILE)
    for name, tensor in moments.items():
        if shape_of(moments, name) != shape_of(weights, name.rpartition(".")[0]):
            raise ValueError(f"{folder / OPTIMIZER_FILE}: {name:.80} has the shape {tuple(tensor.shape)}")
    adam_step, scale = _parse_adam(_read_state(folder), folder)
    if moments:  # none were saved before the first step
        set_state(model, optimizer, weights, moments, adam_step)
    set_loss_scale(model, optimizer, scale)
