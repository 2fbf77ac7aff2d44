"""Start from the weights of another model (`run.init_from`), whose labels and modalities may differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from awtpn.model.base import ENCODERS, EmotionModel, check_shapes, config_of_card
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.card import DECISIVE
from awtpn.model.files import WEIGHTS_FILE, read_card, read_weights
from awtpn.model.models import model_of_card
from awtpn.model.task import task_of_card
from shards.format.feature_space import check_same_space, of_faces, recorded_spaces


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
