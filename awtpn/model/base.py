"""What all models have in common: standardized features in, logits out, and the form in which they are saved.

`EmotionModel` is the class that trainer, evaluation, reports and sharing know. `awtpn.model.network.AWTPN` is
the one this project is about; `awtpn.model.baselines` has others to compare it with. `awtpn.model.models`
builds and loads whichever a configuration or a card names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from awtpn.model.blocks import Standardize
from awtpn.model.compute.dropout import DropoutFactors
from awtpn.model.encoders.base import Encoder
from awtpn.model.encoders.card import other_rank, records_of, reopen_encoders
from awtpn.model.encoders.merging import export_encoders
from awtpn.model.files import (
    CARD_FILE,
    CARD_VERSION,
    CHECKSUMS_FILE,
    WEIGHTS_FILE,
    check_checksums,
    files_of_encoders,
    find_model,
    read_card,
    read_weights,
    weight_shapes,
    write_checksums,
)
from awtpn.model.settings import FORMER_MODEL, ModelConfig, modalities_as_map
from awtpn.model.sharing.hub import locate
from awtpn.model.sharing.privacy import public_card
from awtpn.model.task import Task, task_of_card
from shards import Ragged
from shards.format.recording import DTYPE_OF, Recording
from shards.safe_io.json_fields import from_record
from shards.safe_io.json_text import json_text
from shards.storage.local_path import local_path

ENCODERS = "encoders."  # how the names of the encoders' weights begin
RECORDED = (torch.int16, torch.uint8)  # dtypes of recordings, which no features have


@dataclass
class ModalityOutput:
    """The intermediate results of one modality: T steps in all, B utterances, D shared dim, C classes.

    Attributes:
        h: [T, D] steps in the shared space.
        distances: [T, C] scaled squared distance to each class's nearest prototype (Eq. 6-8); in tasks
            without classes [T, S], to each state's (see `awtpn.model.task`).
        weights: [T] reliability weights, which sum to 1 within an utterance (Eq. 15-18).
        pooled: [B, D] sum of the steps times their weights; zero for an utterance without this modality.
        mean: [B, D] unweighted mean over the steps, which the cross-modal losses compare.
        statistics: [B, 2F] mean and standard deviation over the steps of the standardized features; [B, 0]
            in a model without `model.statistics`.
        present: [B] bool: the utterance has at least one step of this modality.
        offsets: [B + 1] int64: utterance u has the steps `offsets[u]` to `offsets[u + 1]`.
        utterance: [T] int64, the utterance that each step belongs to.
    """

    h: Tensor
    distances: Tensor
    weights: Tensor
    pooled: Tensor
    mean: Tensor
    statistics: Tensor
    present: Tensor
    offsets: Tensor
    utterance: Tensor


@dataclass
class ModelOutput:
    """The logits of B utterances, and the intermediate results.

    Attributes:
        logits: [B, C], float32 or wider; their softmax gives the class probabilities. In tasks without
            classes [B, outputs]: see `predicted_values` and `probabilities` of `awtpn.model.task`.
        streams: intermediate results by modality; empty for a baseline, which has none of these.
    """

    logits: Tensor
    streams: dict[str, ModalityOutput]


class EmotionModel(nn.Module, ModelHubMixin, library_name="awtpn"):
    """A model of emotions: packed features of B utterances -> logits [B, C].

    `save_pretrained(DIR)` and `push_to_hub(USER/MODEL)` come from huggingface_hub and write this package's
    format: config.json, model.safetensors and a model card.

    Attributes:
        config: name of the network, sizes, scales and fusion weights.
        feature_dims: features per step, by modality.
        classes: class names in label order; none if the task has no classes.
        task: what is recognized.
        encoders: by modality an `Encoder` that makes the features of recordings; empty if the data has
            features.
        provenance: how the features of its training data were made, from the dataset's manifest.
        record: the other fields of the card that it was loaded from: dataset name, results, license.
    """

    def __init__(
        self,
        config: ModelConfig,
        feature_dims: Mapping[str, int],
        classes: Sequence[str],
        learnable_prototypes: bool = True,
        task: Task | None = None,
        encoders: Mapping[str, Encoder] | None = None,
    ) -> None:
        """Initialize with random weights, drawn from torch's global generator.

        Args:
            config: sizes, scales and fusion weights.
            feature_dims: features per step of each modality in `config.modalities`; others are ignored.
            classes: class names in label order.
            learnable_prototypes: False if class means update the prototypes (`prototypes.update: ema`).
            task: what to recognize; default: the classes.
            encoders: of modalities that are recordings; `feature_dims` has the widths of their features.

        Raises:
            ValueError: a setting is out of range, `feature_dims` lacks a modality, or the network does not do
                this task.
        """
        super().__init__()
        config.validate()
        for m in config.modalities:
            if m not in feature_dims:
                raise ValueError(
                    f"model.modalities names {m}, but the data has only {', '.join(sorted(feature_dims))}"
                )
            if hasattr(nn.ModuleDict, m) or hasattr(nn.ModuleDict(), m):
                raise ValueError(
                    f"model.modalities names {m}, a name that PyTorch's modules use; pack it by another name"
                )
        self.config = config
        self.feature_dims = {m: int(feature_dims[m]) for m in config.modalities}
        self.task = task or Task("classification", list(classes))
        self.classes = list(self.task.names) if self.task.type == "classification" else []
        self.learnable_prototypes = learnable_prototypes
        self.provenance: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        self.encoders = nn.ModuleDict({m: e for m, e in (encoders or {}).items() if m in self.feature_dims})
        self.standardise = nn.ModuleDict({m: Standardize(d) for m, d in self.feature_dims.items()})
        self.build()

    def build(self) -> None:
        """Make the modules of the network, from the attributes."""
        raise NotImplementedError

    def forward(self, features: Mapping[str, Ragged], dropout: DropoutFactors | None = None) -> ModelOutput:
        """Logits and intermediate results of B utterances; B may be 0.

        Args:
            features: per modality the packed steps as extracted, not standardized: the model does that in its
                first layer. Of a modality with an encoder also recordings: see `encoded`. An utterance may
                lack modalities, but not all.
            dropout: of AWTPN only; default: drawn here in training.
        """
        raise NotImplementedError

    def encoded(self, features: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """The features, where recordings are replaced by what the model's encoders make of them.

        Args:
            features: per modality features [T, F], which stay as they are, or of a modality with an encoder
                a recording: sound int16 [steps, samples] or pictures uint8 [N, height, width, 3].
        """
        recorded = [m for m in self.encoders if features[m].values.dtype in RECORDED]
        return {**features, **{m: self.encoders[m](features[m]) for m in recorded}}

    @property
    def recordings(self) -> dict[str, Recording]:
        """By modality what its encoder takes; empty in a model of features."""
        return {m: cast(Encoder, encoder).recording for m, encoder in self.encoders.items()}

    def empty_features(self) -> dict[str, Ragged]:
        """Features, or recordings, of no utterances at all."""
        device = next(self.parameters()).device
        offsets = torch.zeros(1, dtype=torch.int32)
        found = {}
        for m, dim in self.feature_dims.items():
            if recording := self.recordings.get(m):
                dtype = getattr(torch, DTYPE_OF[recording.kind])
                values = torch.zeros(0, *recording.shape, dtype=dtype, device=device)
                samples = torch.zeros(0, dtype=torch.int64) if recording.is_sound else None
            else:
                values, samples = torch.zeros(0, dim, device=device), None
            found[m] = Ragged(values, offsets.to(device), offsets, samples)
        return found

    def is_saved(self, name: str) -> bool:
        """Whether a parameter or buffer belongs into a checkpoint: not what an encoder's base model has."""
        return not name.startswith(ENCODERS) or name in self.trained_of_encoders()

    def trained_of_encoders(self) -> set[str]:
        """Names of the encoders' weights that are trained."""
        named = self.encoders.named_parameters(prefix=ENCODERS.rstrip("."))
        return {name for name, parameter in named if parameter.requires_grad}

    def saved_state(self) -> dict[str, Tensor]:
        """What checkpoints and exports hold of `state_dict()`; see `is_saved`."""
        trained = self.trained_of_encoders()
        state = self.state_dict()
        return {n: tensor for n, tensor in state.items() if not n.startswith(ENCODERS) or n in trained}

    def step_weights(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        """Per modality the weights [T] of the time steps, which sum to 1 within an utterance; {} without."""
        raise NotImplementedError

    @property
    def heads(self) -> tuple[str, ...]:
        """How the names of the weights begin that belong to what is recognized; for `run.init_from`."""
        raise NotImplementedError

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raise ValueError if `model.name` is not of this class."""

    def set_statistics(self, modality: str, mean: Tensor, std: Tensor) -> None:
        """Set the `mean` and `std` [F] that standardize a modality's features; they are saved as weights."""
        cast(Standardize, self.standardise[modality]).set_statistics(mean, std)

    def card(self) -> dict[str, Any]:
        """All that is needed besides the weights to rebuild this model; plain JSON."""
        return self.record | {
            "format": "awtpn",
            "format_version": CARD_VERSION,
            "model": self.config.record(),
            "feature_dims": self.feature_dims,
            "classes": self.classes,
            "learnable_prototypes": self.learnable_prototypes,
            "provenance": self.provenance,
            **({} if self.task.is_classes else {"task": self.task.record()}),
            **({"encoders": records_of(self.encoders)} if len(self.encoders) else {}),
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any], encoders: Mapping[str, Encoder] | None = None) -> Self:
        """Build the model that a `card()` describes, with random weights.

        Args:
            card: of `card`.
            encoders: its encoders; default: they are opened with the weights of their base models.

        Raises:
            ValueError: a setting is out of range, or the card is of another network.
        """
        config = config_of_card(card)
        cls.check_name(config.name)
        model = cls(
            config,
            card["feature_dims"],
            card["classes"],
            card["learnable_prototypes"],
            task_of_card(card),
            reopen_encoders(card) if encoders is None else encoders,
        )
        model.provenance = card.get("provenance") or {}
        model.record = {key: value for key, value in card.items() if key not in model.card()}
        return model

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | Path, encoders: Mapping[str, str | Path] | None = None, **hub: Any
    ) -> Self:
        """Load an export, a checkpoint, a run's best checkpoint, or a model of the Hugging Face Hub.

        The model is on the CPU and in eval mode.

        Args:
            source: the folder of an export, checkpoint or run; or, if no such path exists, a hub id
                "user/model".
            encoders: by modality the folder of the base model of an encoder, if it is not where the card
                says.
            hub: `revision`, `token`, `cache_dir` and `local_files_only` for a hub id: see
                `awtpn.model.sharing.hub.locate`.

        Raises:
            ValueError: a file is missing, has another format or differs from its checksum, it is of another
                network, or the hub has no such model; or the base model of an encoder is missing, or another.
        """
        return load(source, cls.from_card, encoders, **hub)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` and `push_to_hub` write; the mixin adds the model card."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.saved_state().items()}
        save_file(state, save_directory / WEIGHTS_FILE)
        card = self.card()
        if any(cast(Encoder, encoder).folder for encoder in self.encoders.values()):
            card["encoders"] = export_encoders(self.encoders, save_directory)
        card = public_card(card)
        (save_directory / CARD_FILE).write_text(json_text(card, indent=1) + "\n")
        write_checksums(save_directory, (WEIGHTS_FILE, CARD_FILE, *files_of_encoders(card)))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README.md to save beside the weights; huggingface_hub's mixin calls this."""
        from awtpn.model.sharing.model_card import render_card  # only a model that is shared needs one

        return ModelCard(render_card(self.card()))


def config_of_card(card: Mapping[str, Any]) -> ModelConfig:
    """The section `model` of a card, also of an earlier version's: a key that it lacks has its former value.

    Raises:
        ValueError: a setting has a wrong type.
    """
    settings = FORMER_MODEL | card["model"]
    if isinstance(settings.get("modalities"), list):  # as in cards of earlier versions
        settings["modalities"] = modalities_as_map(settings["modalities"])
    return from_record(ModelConfig, settings, "the card's model", ignore_unknown=True)


Model = TypeVar("Model", bound=EmotionModel)
Build = Callable[[Mapping[str, Any], Mapping[str, Encoder]], Model]


def load(
    source: str | Path, build: Build[Model], encoders: Mapping[str, str | Path] | None = None, **hub: Any
) -> Model:
    """Load the model at `source`, built by `build` from its card; see `EmotionModel.from_pretrained`."""
    given = locate(source, (CARD_FILE, WEIGHTS_FILE), optional=(CHECKSUMS_FILE,), **hub)
    folder = find_model(given)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder} is not a complete model: it has no {WEIGHTS_FILE}")
    card = read_card(folder)
    if names := files_of_encoders(card):
        if given != local_path(source):  # of the hub: get these files, too, of the same commit
            locate(source, (CARD_FILE, *names), **hub | {"revision": folder.name})
        check_checksums(folder, names)
    check_shapes(card, folder, build)
    model = build(card, reopen_encoders(card, folder, encoders))
    load_saved(model, read_weights(folder / WEIGHTS_FILE), folder)
    return model.eval()


def load_saved(model: EmotionModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load what `saved_state` gave into a model; what its encoders' base models have stays.

    Raises:
        ValueError: the shapes of an encoder's weights differ; names the first such tensor.
    """
    own = {n: tuple(t.shape) for n, t in model.saved_state().items() if n.startswith(ENCODERS)}
    stored = {n: tuple(t.shape) for n, t in weights.items() if n.startswith(ENCODERS)}
    for name in {**own, **stored}:
        if own.get(name) != stored.get(name):
            raise ValueError(
                f"{folder}: {name:.80} is {stored.get(name, 'missing')} in {WEIGHTS_FILE}, and "
                f"{own.get(name, 'missing')} in an encoder by {CARD_FILE}: it is of another base model"
            )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith(ENCODERS) for name in missing), missing


def check_shapes(card: Mapping[str, Any], folder: Path, build: Build[EmotionModel]) -> None:
    """Compare the tensor shapes that a card implies with those in the weights file, before memory is taken.

    A forged card could otherwise ask for any amount of memory.

    Args:
        card: of `read_card`.
        folder: that holds the weights.
        build: makes the model of a card.

    Raises:
        ValueError: the shapes differ, or the card's settings are out of range; names the first such tensor.
    """
    stored = weight_shapes(folder / WEIGHTS_FILE)
    try:
        with torch.device("meta"):  # tensors with a shape, but without memory
            # Without encoders, whose base models are files: `load_saved` compares their shapes.
            model = build({key: value for key, value in card.items() if key != "encoders"}, {})
    except (RuntimeError, ValueError) as error:  # a product of sizes overflows, or a setting is out of range
        raise ValueError(f"{folder / CARD_FILE}: {' '.join(str(error).split()):.200}") from None
    described = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if other := other_rank(card, stored):
        raise ValueError(
            f"{folder}: {CARD_FILE} describes another network than {WEIGHTS_FILE} holds: {other}"
        )
    for name in {**described, **stored}:
        if card.get("encoders") and name.startswith(ENCODERS):
            continue
        if described.get(name) != stored.get(name):
            raise ValueError(
                f"{folder}: {CARD_FILE} describes another network than {WEIGHTS_FILE} holds: {name:.60} is "
                f"{described.get(name, 'missing')} by the card and {stored.get(name, 'missing')} in the file"
            )
