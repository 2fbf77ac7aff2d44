"""Checkpoints in one layout-free form: saved under any engine, resumed under any other.

A checkpoint folder holds the full float32 weights (`model.safetensors`, with `config.json` beside it, so it
is a model that `AWTPN.from_pretrained` loads), Adam's moments under the same names (`optimizer.safetensors`)
and the run's position (`checkpoint.json`, with the size and sha256 of the others). No pickles.

It is written to a temporary folder, synced, renamed, and only then does the symlink `latest` move: whatever
kills a run, `latest` names a whole checkpoint. All ranks call `save`, since engines gather by collectives.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from awtpn.engine_state import gather_state, loss_scale, set_loss_scale, set_state
from awtpn.model import AWTPN, CARD_FILE, WEIGHTS_FILE
from awtpn.sharing.hub import locate
from shards.feature_space import check_same_space

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "checkpoint.json"
FILES = (WEIGHTS_FILE, OPTIMIZER_FILE, CARD_FILE)  # whose fingerprints it holds


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
    skipped: int = 0
    """Steps left out because a loss or gradient was not finite."""
    damaged: list[str] = field(default_factory=list)
    """Utterances left out because their shard or array is damaged or missing."""
    seconds: float = 0.0
    """Wall time that the run took so far, over all its starts, without getting ready."""
    rank_seconds: float = 0.0
    """The same times the ranks that took part."""
    validated: int = 0
    """The step of the last validation."""
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
        (temporary / CARD_FILE).write_text(json.dumps(dict(card), indent=1) + "\n")
        files = {name: _fingerprint(temporary / name) for name in FILES}
        state = {
            "format_version": 1,
            "position": asdict(position),
            "adam_step": adam_step,
            "loss_scale": loss_scale(model, optimizer),
            "files": files,
        }
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=1) + "\n")
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


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


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


def prune(root: Path, keep_last: int) -> None:
    """Remove all but the last `keep_last` checkpoints, the best and the latest (main rank only)."""
    kept = {(root / name).resolve() for name in ("best", "latest") if (root / name).exists()}
    steps = sorted(root.glob("step-*"))
    for folder in steps[: max(0, len(steps) - keep_last)]:
        if folder.resolve() not in kept:
            shutil.rmtree(folder)


# --- Load ----------------------------------------------------------------------------------------


def find_latest(root: Path) -> Path | None:
    """The folder that `latest` names, or None for a run that never saved.

    Where there is no such link (a copy that left links out), it is the newest whole checkpoint.
    """
    link = root / "latest"
    if link.exists():
        return link.resolve()
    return _newest_sound(root)


def load_position(folder: Path) -> Position:
    """Where the run of a checkpoint stands; see `problem` for checking it."""
    return Position(**json.loads((folder / STATE_FILE).read_text())["position"])


def problem(folder: Path, names: Sequence[str] = FILES) -> str | None:
    """Why a checkpoint cannot be resumed from, naming the file; None if it is whole and as it was saved.

    With `names`, only these files are looked at: evaluating takes no moments.
    """
    path = folder / STATE_FILE
    try:
        load_position(folder)
        files = json.loads(path.read_text())["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{folder} is no whole checkpoint: {path.name} cannot be read ({error})"
    for name, expected in files:
        if name not in names:
            continue
        if not (folder / name).is_file():
            return f"{folder} is no whole checkpoint: {name} is missing"
        if _fingerprint(folder / name) != expected:
            return f"{folder / name} is not the file that was saved: its size or sha256 differs"
    return None


def offer_another(folder: Path) -> str:
    """The end of an error about a checkpoint: how to go on from the newest sound one beside it."""
    sound = _newest_sound(folder.parent, all_but=folder)
    return f"; {sound} is whole: go on from it with --run.resume {quote(str(sound))}" if sound else ""


def _newest_sound(root: Path, all_but: Path | None = None) -> Path | None:
    others = (other for other in sorted(root.glob("step-*"), reverse=True) if other != all_but)
    return next((other for other in others if problem(other) is None), None)


def load_weights(folder: Path, model: AWTPN) -> None:
    """Put a checkpoint's weights and buffers into a model that no engine has wrapped yet.

    Raises:
        ValueError: they are of a model of another shape.
    """
    weights, own = load_file(folder / WEIGHTS_FILE), model.state_dict()
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
        ValueError: there is none; says what was looked for. Or it is of a checkpoint and not as it was saved.
    """
    path = locate(path, (CARD_FILE, WEIGHTS_FILE))
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "latest"]
    for folder in candidates:
        if not (folder / CARD_FILE).is_file():
            continue
        folder = folder.resolve()
        if (folder / STATE_FILE).exists() and (wrong := problem(folder, (WEIGHTS_FILE, CARD_FILE))):
            sound = _newest_sound(folder.parent, all_but=folder)
            raise ValueError(wrong + (f"; {sound} is whole: name that instead" if sound else ""))
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
    card = json.loads((folder / CARD_FILE).read_text())
    check_same_space(
        card.get("provenance") or {},
        model.provenance,
        model.feature_dims,
        f"run.init_from: {folder} was trained on other features than this run",
        "extract these with the same encoders, or start afresh without run.init_from",
    )
    weights = load_file(folder / WEIGHTS_FILE)
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
    moments, state = load_file(folder / OPTIMIZER_FILE), json.loads((folder / STATE_FILE).read_text())
    if moments:  # none were saved before the first step
        set_state(model, optimizer, load_file(folder / WEIGHTS_FILE), moments, state["adam_step"])
    set_loss_scale(model, optimizer, state.get("loss_scale", {}))
