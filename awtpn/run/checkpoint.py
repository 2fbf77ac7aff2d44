"""Checkpoints in one layout-free form: saved under any engine, resumed under any other.

A checkpoint folder holds the full float32 weights (`model.safetensors`, with `config.json` beside it, so that
`AWTPN.from_pretrained` loads it), Adam's moments under the same names (`optimizer.safetensors`) and the run's
position (`checkpoint.json`, with the size and sha256 of the other files). No pickles.

With `train.ema_decay`, `model.safetensors` holds the averaged weights, which predict; the weights that
training goes on with are in `optimizer.safetensors`, as NAME.raw.

It is written to a temporary folder, synced and renamed; only then the symlink `latest` is moved. So `latest`
names a complete checkpoint whenever a run is killed. All ranks call `save`, because engines gather the state
by collectives.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from awtpn.distributed.engines import Engine
from awtpn.distributed.engines.base import averages_weights
from awtpn.learning.averaging import AVERAGE
from awtpn.model.base import ENCODERS, EmotionModel, check_shapes, config_of_card, load_saved
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.card import DECISIVE
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
from awtpn.model.models import model_of_card
from awtpn.model.task import task_of_card
from awtpn.run.position import Position, parse_adam, parse_position
from shards.format.feature_space import check_same_space, of_faces, recorded_spaces
from shards.safe_io.json_text import json_text

RAW = ".raw"  # after a weight's name: the weight, where `model.safetensors` holds its average

# --- Save ----------------------------------------------------------------------------------------


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
    """Write `root/step-...` and let `root/latest` point to it, and `root/best` if it is the best so far.

    Every rank calls it; the main rank writes.

    Returns:
        The checkpoint's folder. On other ranks it may not exist yet: a barrier must follow.
    """
    weights, moments, adam_step = engine.gather_state(model, optimizer, is_main)
    folder = root / folder_name(position.step)
    if is_main:
        temporary = root / f".{folder.name}.tmp"
        for old in root.glob(".step-*.tmp"):  # left by a killed run
            shutil.rmtree(old)
        temporary.mkdir(parents=True)
        predicting, training = split_averages(weights, moments)
        save_file(predicting, temporary / WEIGHTS_FILE)
        save_file(training, temporary / OPTIMIZER_FILE)
        (temporary / CARD_FILE).write_text(json_text(dict(card), indent=1) + "\n")
        files = {name: _fingerprint(temporary / name) for name in FILES}
        state = {
            "format_version": 1,
            "position": asdict(position),
            "adam_step": adam_step,
            "loss_scale": engine.loss_scale(model, optimizer),
            "files": files,
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


@dataclass(frozen=True)
class Copied:
    """What `init_from` copied.

    Attributes:
        line: for the user.
        statistics: modalities with encoders, of which the feature statistics were copied, too.
        everything: the model now answers as the other one does.
    """

    line: str
    statistics: list[str]
    everything: bool


def init_from(folder: Path, model: EmotionModel) -> Copied:
    """Copy another model's weights into `model`; a new classifier and new prototypes where the labels differ.

    A baseline's classifier is new also where the modalities differ: it may take those of all together.

    Of the modalities that both have, all weights are copied except the feature statistics, which are of the
    new training data. Other modalities keep their random weights.

    A model of features goes on with the encoders that made them: then all statistics are copied, too, since
    the features are the same.

    Raises:
        ValueError: the shapes of the two models differ; names the tensor. Or they have no modality in common,
            or their features are of different feature spaces, also if their widths agree: the projections of
            one do not fit another.
    """
    card = read_card(folder)
    check_shapes(card, folder, model_of_card)
    network = config_of_card(card).name
    if network != model.config.name:
        raise ValueError(
            f"run.init_from: {folder} is a model of model.name {network}, and this run has "
            f"{model.config.name}: set model.name {network}, or start afresh without run.init_from"
        )
    common = [name for name in model.feature_dims if name in card["feature_dims"]]
    if not common:
        raise ValueError(
            f"run.init_from: {folder} is a model of {', '.join(card['feature_dims'])}, and this run uses "
            f"{', '.join(model.feature_dims)}: change model.modalities, or start afresh without run.init_from"
        )
    check_same_space(
        card.get("provenance") or {},
        model.provenance,
        [name for name in common if name not in model.encoders],
        f"run.init_from: {folder} was trained on other features than this run",
        "extract these with the same encoders, or start afresh without run.init_from",
    )
    weights = read_weights(folder / WEIGHTS_FILE)
    own = model.state_dict()
    same_head = task_of_card(card) == model.task
    if network != "awtpn":
        same_head = same_head and list(card["feature_dims"]) == list(model.feature_dims)
    continued = [name for name in common if name in model.encoders]
    check_continues(card, model, continued, folder)
    others = [name for name in model.feature_dims if name not in continued]
    not_copied = (
        *(f"standardise.{name}." for name in others if not continued),
        *(() if same_head else model.heads),
    )
    taken = {
        name: tensor for name, tensor in weights.items() if not name.startswith(not_copied) and name in own
    }
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            least = "model.prototypes_per_class" if network == "awtpn" else "model.modalities"
            same = f"model.shared_dim, {least} and features"
            if name.startswith(ENCODERS):
                same = f"encoder.{name.split('.')[1]}.lora_rank"
            raise ValueError(
                f"run.init_from: {name} is {tuple(tensor.shape)} in {folder}, but "
                f"{tuple(own[name].shape)} in this run: give both the same {same}"
            )
    model.load_state_dict(taken, strict=False)
    head = "prototypes and classifier" if network == "awtpn" else "classifier"
    line = _describe_copy(folder, common, card["feature_dims"], model.feature_dims, head, same_head)
    # Of other modalities this run has random weights, or does without those of the other model.
    everything = same_head and bool(continued) and list(model.feature_dims) == list(card["feature_dims"])
    return Copied(line, continued, everything)


def check_continues(
    card: Mapping[str, Any], model: EmotionModel, modalities: Iterable[str], folder: Path
) -> None:
    """Check that a model's encoders make the features that another model was trained on.

    Args:
        card: of the other model, which takes features, or has encoders itself.
        model: with encoders of the modalities.
        folder: of the other model.

    Raises:
        ValueError: they make others, or the other model has trained the encoder in another way; names the
            setting.
    """
    for name in modalities:
        own = cast(Encoder, model.encoders[name])
        theirs = (card.get("encoders") or {}).get(name)
        made = recorded_spaces(card.get("provenance") or {}).get(name)
        record = theirs or made
        if record is None:
            continue  # nothing is known of its features
        recorded = recorded_spaces(model.provenance).get(name)
        if made and recorded and of_faces(made["settings"]) != of_faces(recorded["settings"]):
            kinds = ["faces" if of_faces(of["settings"]) else "whole pictures" for of in (made, recorded)]
            raise ValueError(
                f"run.init_from: {folder} was trained on {kinds[0]}, and the recordings of this run are "
                f"{kinds[1]}: record them in the same way (awtpn extract --faces)"
            )
        for key in DECISIVE:
            if record["settings"].get(key) != own.settings.get(key):
                raise ValueError(
                    f"run.init_from: the features of {name} of {folder} are of an encoder with {key} "
                    f"{record['settings'].get(key)!s:.80}, and encoder.{name} has "
                    f"{own.settings.get(key)!s:.80}: "
                    "give the same model, layer and step_seconds"
                )
        if theirs and theirs["config"]["tune"] not in ("frozen", own.config.tune):
            raise ValueError(
                f"run.init_from: {folder} trained its encoder of {name} by {theirs['config']['tune']}: "
                f"give the same encoder.{name}.tune, or merge it first (awtpn export --merge) and name the "
                "merged encoder"
            )


def _describe_copy(
    folder: Path, common: list[str], theirs: Iterable[str], ours: Iterable[str], head: str, same_head: bool
) -> str:
    """The line of `init_from`; `head` names what belongs to the task."""
    copied, new = list(common), [name for name in ours if name not in common]
    (copied if same_head else new).append(head)
    line = f"run.init_from: weights from {folder}: {', '.join(copied)}"
    if new:
        line += f"; random ones: {', '.join(new)}"
    if unused := [name for name in theirs if name not in common]:
        line += f"; not used: {', '.join(unused)}"
    return line


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
