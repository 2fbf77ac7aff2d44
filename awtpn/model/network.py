"""The AWTPN network: shared space (SES) -> prototype distances (TPN) -> step weights (AWM) -> logits.

B utterances have T time steps in all, packed one after another without padding, with F features each. D is
the shared dim, C the number of classes, K that of prototypes per class. Per modality:

- `SES`, shared space: `h = Dropout(ReLU(W x + b))`, [T, F] -> [T, D]
- `TPN`, temporal prototypes (Eq. 6-8): `d2(t, c) = max(0, |h_t|^2 + |p_c|^2 - 2 h_t.p_c)` times the distance
  scale, the minimum over a class's K prototypes: [T, D] -> [T, C]
- `AWM`, adaptive weights (Eq. 15-18), within each utterance: `r = softmax_t(-min_c d2)`,
  `w = softmax(Q K^T / sqrt(D)) r`, then `w / (sum_t w + 1e-8)`: [T, D] and [T, C] -> [T]

Then over the modalities (Eq. 19-21): pooled `= sum_t w_t h_t` [B, D]; fused `= sum_m weight_m * pooled_m`
[B, D]; logits `= W fused + b` [B, C].

The paper has two modalities, audio and video, and calls their weights alpha_A and beta_V (0.3 and 0.7). Here
any modalities can be given, in an order that `model.modalities` sets. What this adds to the paper, equation
by equation:

- Eq. 6-8, 15-18 hold for each modality alone: it has its own W, b, query and key. All share the prototypes.
- Eq. 9 (align): a sum over the modalities, of each the mean over the utterances that have it.
- Eq. 10-12 (intra, inter, contrast): the mean over all pairs of modalities, weighted by `loss.pair_weights`.
  Of a pair, the earlier modality takes the place of a, the later that of v; negatives are of the later. Only
  utterances with both count, and in terms with a negative only those that have one.
- Eq. 19-21: a sum over all modalities, with the weights as given where all are present. In an utterance that
  lacks some, the weights of the present ones are divided by their sum, or are equal if that is 0. In a model
  of one modality its weight is 1. The paper's utterances are complete.
- Eq. 23-25 (cross-entropy, squared error, sum of all terms) take the logits, whatever they are fused of.

The paper has one class per utterance. For several labels at once, or values, `awtpn.model.task` says what the
prototypes and the logits stand for; the equations above hold for each state in the place of a class.

Training can hide modalities (`learning.modality_dropout`), which the paper does not do: they then count as
missing in all these equations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from awtpn.model.blocks import AWM, SES, TPN, Standardize, fusion_weights
from awtpn.model.files import (
    CARD_FILE,
    CARD_VERSION,
    CHECKSUMS_FILE,
    WEIGHTS_FILE,
    find_model,
    read_card,
    read_weights,
    weight_shapes,
    write_checksums,
)
from awtpn.model.published_weights import convert_state_dict
from awtpn.model.segments import segment_mean, segment_sum, utterance_of_step
from awtpn.model.settings import ModelConfig, modalities_as_map
from awtpn.model.sharing.hub import locate
from awtpn.model.sharing.privacy import public_card
from awtpn.model.task import Task, task_of_card
from shards import Ragged
from shards.safe_io.json_fields import from_record
from shards.safe_io.json_text import json_text


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
        present: [B] bool: the utterance has at least one step of this modality.
        offsets: [B + 1] int64: utterance u has the steps `offsets[u]` to `offsets[u + 1]`.
        utterance: [T] int64, the utterance that each step belongs to.
    """

    h: Tensor
    distances: Tensor
    weights: Tensor
    pooled: Tensor
    mean: Tensor
    present: Tensor
    offsets: Tensor
    utterance: Tensor


@dataclass
class ModelOutput:
    """The logits of B utterances, and the intermediate results.

    Attributes:
        logits: [B, C], float32 or wider; their softmax gives the class probabilities. In tasks without
            classes [B, outputs]: see `predicted_values` and `probabilities` of `awtpn.model.task`.
        streams: intermediate results by modality.
    """

    logits: Tensor
    streams: dict[str, ModalityOutput]


class AWTPN(nn.Module, ModelHubMixin, library_name="awtpn"):
    """The whole network: packed features of B utterances -> logits [B, C] and intermediate results.

        model = AWTPN.from_pretrained("my-model")
        model(batch.features).logits.softmax(-1)  # [B, C]; batch: a FeatureBatch of a shards.FeatureStream

    `save_pretrained(DIR)` and `push_to_hub(USER/MODEL)` come from huggingface_hub and write this package's
    format: config.json, model.safetensors and a model card.

    Attributes:
        config: sizes, scales and fusion weights.
        feature_dims: features per step, by modality.
        classes: class names in label order; none if the task has no classes.
        task: what is recognized.
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
    ) -> None:
        """Initialize with random weights, drawn from torch's global generator.

        Args:
            config: sizes, scales and fusion weights.
            feature_dims: features per step of each modality in `config.modalities`; others are ignored.
            classes: class names in label order.
            learnable_prototypes: False if class means update the prototypes (`prototypes.update: ema`).
            task: what to recognize; default: the classes.

        Raises:
            ValueError: a setting is out of range, or `feature_dims` lacks a modality.
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
        dim = config.shared_dim
        self.standardise = nn.ModuleDict({m: Standardize(d) for m, d in self.feature_dims.items()})
        self.ses = nn.ModuleDict({m: SES(d, dim) for m, d in self.feature_dims.items()})
        self.dropout = nn.Dropout(config.dropout)
        self.tpn = TPN(sum(self.task.group_sizes), config.prototypes_per_class, dim, learnable_prototypes)
        self.awm = nn.ModuleDict({m: AWM(dim) for m in config.modalities if config.awm == "adaptive"})
        self.classifier = nn.Linear(dim, self.task.outputs)

    def forward(
        self, features: Mapping[str, Ragged], dropout: Mapping[str, Tensor] | None = None
    ) -> ModelOutput:
        """Logits and intermediate results of B utterances; B may be 0.

        Args:
            features: per modality the packed steps as extracted, not standardized: the model does that in its
                first layer. An utterance may lack modalities, but not all.
            dropout: per modality the factors [T, D] that h is multiplied by; default: drawn here in training.
        """
        streams = {
            m: self.encode(m, features[m], None if dropout is None else dropout[m])
            for m in self.config.modalities
        }
        fused = self.fuse(streams)
        logits = self.classifier(fused.to(self.classifier.weight.dtype))
        return ModelOutput(logits.to(fused.dtype), streams)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but the attention, which loops over lengths that differ in every batch.

        Args:
            args, kwargs: of torch.compile.
        """
        # Not a decorator on `attend`: it would import the compiler, which takes a second, in every command.
        for awm in self.awm.values():
            awm.attend = torch.compiler.disable(awm.attend)
        super().compile(*args, **kwargs)

    def set_statistics(self, modality: str, mean: Tensor, std: Tensor) -> None:
        """Set the `mean` and `std` [F] that standardize a modality's features; they are saved as weights."""
        cast(Standardize, self.standardise[modality]).set_statistics(mean, std)

    def encode(self, modality: str, ragged: Ragged, dropout: Tensor | None = None) -> ModalityOutput:
        """SES, TPN and AWM of one modality (Eq. 6-8, 15-18)."""
        offsets = ragged.offsets.long()
        utterance = utterance_of_step(offsets, len(ragged.values))
        h = self.ses[modality](self.standardise[modality](ragged.values))
        h = self.dropout(h) if dropout is None else h * dropout
        distances = self.tpn(h, self.config.distance_scale(modality))
        wide = h.to(distances.dtype)
        mean = segment_mean(wide, offsets, utterance)
        if self.config.awm == "adaptive":
            weights = self.awm[modality](h, distances, offsets, utterance, ragged.host_offsets)
            pooled = segment_sum(weights[:, None] * wide, offsets, utterance)
        else:
            weights = (1 / offsets.diff().to(distances.dtype))[utterance]
            pooled = mean
        return ModalityOutput(h, distances, weights, pooled, mean, offsets.diff() > 0, offsets, utterance)

    def fuse(self, streams: Mapping[str, ModalityOutput]) -> Tensor:
        """Weighted sum of the modalities' pooled vectors, [B, D] (Eq. 19-21)."""
        present = torch.stack([output.present for output in streams.values()])
        pooled = torch.stack([output.pooled for output in streams.values()])
        weights = fusion_weights([self.config.fusion_weight(m) for m in streams], present, pooled.dtype)
        return (weights[..., None] * pooled).sum(0)

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
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> AWTPN:
        """Build the model that a `card()` describes, with random weights.

        Raises:
            ValueError: a setting is out of range.
        """
        settings = dict(card["model"])
        if isinstance(settings.get("modalities"), list):  # as in cards of earlier versions
            settings["modalities"] = modalities_as_map(settings["modalities"])
        config = from_record(ModelConfig, settings, "the card's model", ignore_unknown=True)
        model = cls(
            config, card["feature_dims"], card["classes"], card["learnable_prototypes"], task_of_card(card)
        )
        model.provenance = card.get("provenance") or {}
        model.record = {key: value for key, value in card.items() if key not in model.card()}
        return model

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub: Any) -> AWTPN:  # type: ignore[override]
        """Load an export, a checkpoint, a run's best checkpoint, or a model of the Hugging Face Hub.

        The model is on the CPU and in eval mode.

        Args:
            source: the folder of an export, checkpoint or run; or, if no such path exists, a hub id
                "user/model".
            hub: `revision`, `token`, `cache_dir` and `local_files_only` for a hub id: see
                `awtpn.model.sharing.hub.locate`.

        Raises:
            ValueError: a file is missing, has another format or differs from its checksum, or the hub has no
                such model.
        """
        folder = find_model(locate(source, (CARD_FILE, WEIGHTS_FILE), optional=(CHECKSUMS_FILE,), **hub))
        if not (folder / WEIGHTS_FILE).is_file():
            raise ValueError(f"{folder} is not a complete model: it has no {WEIGHTS_FILE}")
        card = read_card(folder)
        check_shapes(card, folder)
        model = cls.from_card(card)
        model.load_state_dict(read_weights(folder / WEIGHTS_FILE))
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """What `save_pretrained` and `push_to_hub` write; the mixin adds the model card."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, save_directory / WEIGHTS_FILE)
        (save_directory / CARD_FILE).write_text(json_text(public_card(self.card()), indent=1) + "\n")
        write_checksums(save_directory, (WEIGHTS_FILE, CARD_FILE))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The README.md to save beside the weights; huggingface_hub's mixin calls this."""
        from awtpn.model.sharing.model_card import render_card  # only a model that is shared needs one

        return ModelCard(render_card(self.card()))

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor],
        config: ModelConfig | None = None,
        classes: Sequence[str] | None = None,
    ) -> AWTPN:
        """Load a checkpoint of the published code (`awtpn_best.pth`: a bare state_dict).

        Args:
            state_dict: `torch.load(path, map_location="cpu", weights_only=True)`. It determines the sizes.
            config: what the file does not hold: fusion weights and distance scales.
            classes: class names; default "class_0", "class_1", ...

        Raises:
            ValueError: keys are missing or unknown, or the number of class names differs; names them.
        """
        settings, dims, names, weights = convert_state_dict(
            state_dict, vars(config) if config else {}, classes
        )
        model = cls(ModelConfig(**settings), dims, names).to(weights["tpn.prototypes"].dtype)
        model.load_state_dict(weights, strict=False)  # the published code has no feature statistics
        return model.eval()


def check_shapes(card: Mapping[str, Any], folder: Path) -> None:
    """Compare the tensor shapes that a card implies with those in the weights file, before memory is taken.

    A forged card could otherwise ask for any amount of memory.

    Args:
        card: of `read_card`.
        folder: that holds the weights.

    Raises:
        ValueError: the shapes differ, or the card's settings are out of range; names the first such tensor.
    """
    stored = weight_shapes(folder / WEIGHTS_FILE)
    try:
        with torch.device("meta"):  # tensors with a shape, but without memory
            model = AWTPN.from_card(card)
    except (RuntimeError, ValueError) as error:  # a product of sizes overflows, or a setting is out of range
        raise ValueError(f"{folder / CARD_FILE}: {' '.join(str(error).split()):.200}") from None
    described = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in {**described, **stored}:
        if described.get(name) != stored.get(name):
            raise ValueError(
                f"{folder}: {CARD_FILE} describes another network than {WEIGHTS_FILE} holds: {name:.60} is "
                f"{described.get(name, 'missing')} by the card and {stored.get(name, 'missing')} in the file"
            )
