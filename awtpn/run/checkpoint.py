"""Checkpoints in one layout-free form: saved under any engine, resumed under any other.

A checkpoint folder holds the full float32 weights (`model.safetensors`, with `config.json` beside it, so that
`AWTPN.from_pretrained` loads it), Adam's moments under the same names (`optimizer.safetensors`) and the run's
position (`checkpoint.json`, with the size and sha256 of the other files). No pickles.

With `train.ema_decay`, `model.safetensors` holds the averaged weights, which predict; the weights that
training goes on with are in `optimizer.safetensors`, as NAME.raw.

It is written to a temporary folder, synced and renamed; only then the symlink `latest` is moved. So `latest`
names a complete checkpoint whenever a run is killed. All ranks call `gather`, because engines gather the
state by collectives; the main rank then calls `write`, which training does in a thread (`checkpoint_writer`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from awtpn.distributed.engines import Engine
from awtpn.distributed.engines.base import averages_weights
from awtpn.distributed.host_copies import HostCopies
from awtpn.learning.averaging import AVERAGE
from awtpn.model.base import EmotionModel, load_saved
from awtpn.model.encoders.base import Encoder
from awtpn.model.files import (
    CARD_FILE,
    FILES,
    OPTIMIZER_FILE,
    STATE_FILE,
    STEP,
    WEIGHTS_FILE,
    find_corruption,
    newest_intact,
    read_card,
    read_state,
    read_weights,
    step_folders,
)
from awtpn.model.files import fingerprint as _fingerprint
from awtpn.run.position import Position, parse_adam, parse_position
from shards.safe_io.json_text import json_text

RAW = ".raw"  # after a weight's name: the weight, where `model.safetensors` holds its average

# --- Save ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What a checkpoint will hold, on the host; it stays as it is while training goes on.

    Attributes:
        weights, moments, adam_step: as `gather_state` returned them.
        loss_scale: of fp16.
        position: of the run, as a dictionary.
        card: the content of config.json.
        copies: holds the tensors.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    adam_step: float
    loss_scale: dict[str, float]
    position: dict[str, Any]
    card: str
    copies: HostCopies

    @property
    def step(self) -> int:
        return int(self.position["step"])


def save(
    root: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    card: Mapping[str, Any],
    is_main: bool,
    best: bool = False,
    *,
    engine: Engine,
) -> Path:
    """`gather` and `write`. Every rank calls it; the main rank writes.

    Returns:
        The checkpoint's folder. On other ranks it may not exist yet: a barrier must follow.
    """
    contents = gather(model, optimizer, position, card, is_main, engine, HostCopies())
    if contents is not None:
        write(root, contents, best)
    return root / folder_name(position.step)


def gather(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    card: Mapping[str, Any],
    is_main: bool,
    engine: Engine,
    copies: HostCopies,
) -> Contents | None:
    """Copy the state of the run to the host of the main rank; every rank calls.

    Args:
        copies: get the tensors; nothing may still read what they hold.

    Returns:
        On the main rank what `write` takes, in any thread; else None.
    """
    weights, moments, adam_step = engine.gather_state(model, optimizer, is_main, copies)
    if not is_main:
        return None
    text = json_text(dict(card), indent=1) + "\n"
    scale = engine.loss_scale(model, optimizer)
    return Contents(weights, moments, adam_step, scale, asdict(position), text, copies)


def write(root: Path, contents: Contents, best: bool = False) -> Path:
    """Write `root/step-...` and let `root/latest` point to it, and `root/best` if it is the best so far.

    It calls no collective.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError, SafetensorError: it cannot be written; other checkpoints and the links are as they were.
    """
    folder = root / folder_name(contents.step)
    temporary = root / f".{folder.name}.tmp"
    for old in root.glob(".step-*.tmp"):  # left by a killed run
        shutil.rmtree(old)
    temporary.mkdir(parents=True)
    contents.copies.wait()
    predicting, training = split_averages(contents.weights, contents.moments)
    save_file(predicting, temporary / WEIGHTS_FILE)
    save_file(training, temporary / OPTIMIZER_FILE)
    (temporary / CARD_FILE).write_text(contents.card)
    state = {
        "format_version": 1,
        "position": contents.position,
        "adam_step": contents.adam_step,
        "loss_scale": contents.loss_scale,
        "files": {name: _fingerprint(temporary / name) for name in FILES},
    }
    (temporary / STATE_FILE).write_text(json_text(state, indent=1) + "\n")
    for path in temporary.iterdir():
        _sync(path)
    old = root / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():  # a run stopped and resumed at the last step of an epoch saves it twice
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    _sync(root)
    if best:
        update_symlink(root / "best", folder)
    update_symlink(root / "latest", folder)
    return folder


def split_averages(
    weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """From what `gather_state` returned, the contents of `model.safetensors` and `optimizer.safetensors`."""
    ending = f".{AVERAGE}"
    averages = {name.removesuffix(ending): t for name, t in moments.items() if name.endswith(ending)}
    raw = {name + RAW: weights[name] for name in averages}
    others = {name: t for name, t in moments.items() if not name.endswith(ending)}
    return {**weights, **averages}, {**others, **raw}


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def update_symlink(link: Path, folder: Path) -> None:
    """Make `link` a relative symlink to its sibling `folder`, replacing an older one atomically."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, link)


def prune(root: Path, keep_last: int) -> None:
    """Remove all but the last `keep_last` checkpoints, the best and the latest (main rank only)."""
    kept = {(root / name).resolve() for name in ("best", "latest") if (root / name).exists()}
    steps = step_folders(root)
    for folder in steps[: max(0, len(steps) - keep_last)]:
        if folder.resolve() not in kept:
            shutil.rmtree(folder)


# --- Load ----------------------------------------------------------------------------------------


def find_latest(root: Path) -> Path | None:
    """The folder that `latest` points to, or None for a run that never saved.

    Without such a link (a copy may leave links out), it is the newest complete checkpoint.

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
                "and the run resumes from its newest complete checkpoint"
            )
    if link.exists():
        return link.resolve()
    return newest_intact(root, find_problem=find_resume_problem)


def find_resume_problem(folder: Path, names: Sequence[str] = FILES) -> str | None:
    """Why a run cannot resume from a checkpoint, naming the file; None if it can.

    Args:
        names: the files whose checksums are compared.
    """
    if problem := find_corruption(folder, names):
        return problem
    try:
        state = read_state(folder)
        parse_position(state, folder)
        parse_adam(state, folder)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{folder / STATE_FILE}: ")
        return f"{folder} is not a complete checkpoint: {STATE_FILE} cannot be read ({reason})"
    return None


def suggest_intact(folder: Path) -> str:
    """The end of an error about a checkpoint: how to resume from the newest intact one beside it."""
    intact = newest_intact(folder.parent, folder, find_resume_problem)
    return f"; {intact} is intact: resume from it with --run.resume {quote(str(intact))}" if intact else ""


def load_weights(folder: Path, model: EmotionModel, to_train: bool = False) -> None:
    """Load a checkpoint's weights and buffers into a model that no engine has wrapped yet.

    Args:
        folder: of the checkpoint.
        model: gets the weights.
        to_train: take those that training goes on with, where the checkpoint has averages of them.

    Raises:
        ValueError: they are of a model with other shapes; names the tensor.
    """
    weights, own = read_weights(folder / WEIGHTS_FILE), model.saved_state()
    if to_train:
        weights |= raw_weights(read_weights(folder / OPTIMIZER_FILE, ending=RAW))
    other = [name for name in {**own, **weights} if shape_of(own, name) != shape_of(weights, name)]
    if other:
        name = other[0]
        raise ValueError(
            f"{folder} is of another model: {name} is {shape_of(weights, name)} there, and "
            f"{shape_of(own, name)} by the settings of model.* and task.* now: choose another run.dir, set "
            "them as in the run's config.yaml, or start from its weights with --run.init_from"
        )
    load_saved(model, weights, folder)


def check_base_models(folder: Path, model: EmotionModel) -> None:
    """Check that encoders begin from the base models that a checkpoint's did: it holds their changes only.

    Raises:
        ValueError: one is another model; names the key.
    """
    records = read_card(folder).get("encoders") or {}
    for name, encoder in model.encoders.items():
        then = records.get(name, {}).get("settings", {})
        now = cast(Encoder, encoder).settings
        if "sha256" in then and then["sha256"] != now["sha256"]:
            raise ValueError(
                f"{folder} was trained from the encoder of {name} {then.get('id')!s:.80}, and "
                f"encoder.{name}.model names other files ({now['id']!s:.80}, another sha256): name the same "
                "model, or choose another run.dir"
            )


def raw_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By parameter name the weights in the content of `optimizer.safetensors`; none without averages."""
    return {name.removesuffix(RAW): t for name, t in stored.items() if name.endswith(RAW)}


def shape_of(tensors: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "missing"


def load_optimizer(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, engine: Engine
) -> None:
    """Restore Adam's moments and step, master and averaged weights, and fp16's loss scale; every rank calls.

    The weights must be in the model already (`load_weights`, before the engine wrapped it). Where the
    checkpoint has no averages and the optimizer keeps some, they begin as the weights.
    """
    moments, averages = read_weights(folder / OPTIMIZER_FILE), read_weights(folder / WEIGHTS_FILE)
    weights = averages | raw_weights(moments)
    for name, tensor in moments.items():
        if shape_of(moments, name) != shape_of(weights, name.rpartition(".")[0]):
            raise ValueError(f"{folder / OPTIMIZER_FILE}: {name:.80} has the shape {tuple(tensor.shape)}")
    adam_step, scale = parse_adam(read_state(folder), folder)
    if moments:  # none were saved before the first step
        if averages_weights(optimizer):
            moments |= {f"{name}.{AVERAGE}": tensor for name, tensor in averages.items()}
        engine.set_state(model, optimizer, weights, moments, adam_step)
    engine.set_loss_scale(model, optimizer, scale)
