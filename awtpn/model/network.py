"""AWTPN: shared space -> prototype distances -> reliability weights -> fused emotion logits.

Each class below is one block of the paper. Only the blocks that own parameters are called with plain
tensors: DeepSpeed's ZeRO-3 gathers a block's parameters in hooks that see tensors, not dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from awtpn.model.attention import reliability_attention
from awtpn.model.files import (
    CARD_FILE,
    CHECKSUMS_FILE,
    WEIGHTS_FILE,
    read_card,
    read_weights,
    weight_shapes,
    write_checksums,
)
from awtpn.model.hub import locate
from awtpn.model.privacy import public_card
from awtpn.model.published_weights import translate
from awtpn.model.segments import segment_mean, segment_softmax, segment_sum, utterance_of_step
from awtpn.model.settings import ModelConfig
from shards import Ragged
from shards.safe_io.json_fields import from_record
from shards.safe_io.json_text import json_text

EPSILON = 1e-8  # of the weights' normalisation, as published


@dataclass
class StreamOutput:
    """What the model found in one modality. T steps in all, B utterances, D shared dim, C classes.

    Attributes:
        h: [T, D] steps in the shared space.
        distances: [T, C] scaled squared distance to each class's nearest prototype (Eq. 6-8).
        weights: [T] reliability weights, which sum to 1 within an utterance (Eq. 15-18).
        pooled: [B, D] reliability-weighted sum of steps; zero for an utterance without this modality.
        mean: [B, D] plain time mean, which the cross-modal losses compare.
        present: [B] bool: the utterance has at least one step of this modality.
        offsets: [B + 1] int64, where each utterance's steps begin.
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
    """What the model says of B utterances, and what led to it.

    Attributes:
        logits: [B, C], float32 or wider; their softmax is the probabilities.
        streams: by modality.
    """

    logits: Tensor
    streams: dict[str, StreamOutput]


class Float32Buffers(nn.Module):
    """A module whose buffers move with the model but never lose float32 precision.

    Engines cast whole modules to half precision; a feature mean of -18.4 or a slow moving average has no
    room in bfloat16.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Buffers:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.itemsize < buffer.itemsize:
                self._buffers[name] = buffer.to(moved.device)
        return self


class Standardise(Float32Buffers):
    """(x - mean) / std per feature, in float32, with the training utterances' statistics.

    Until `set_statistics` is called it is the identity, exactly.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take `mean` and `std` [D]; a feature that never varies keeps a divisor of 1."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, D] in any precision -> [T, D] in float32 or wider."""
        if x.device.type == "cpu":
            # Here a subtraction of mixed types widens into memory of its own, fresh from the kernel: 8 times
            # slower than in place.
            widened = x.to(torch.promote_types(x.dtype, self.mean.dtype), copy=True).sub_(self.mean)
        else:
            widened = x - self.mean  # one pass less over the largest tensor
        return widened.mul_(self.std.reciprocal())


class SES(nn.Linear):
    """Shared-space projection of one modality: `h = ReLU(W x + b)`; dropout follows in AWTPN."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, D_modality] -> [T, D], not negative."""
        return torch.relu(super().forward(x.to(self.weight.dtype)))


class TPN(Float32Buffers):
    """The prototype table `[C*K, D]` and each step's distance to each class (Eq. 6-8)."""

    prototypes: Tensor

    def __init__(self, classes: int, per_class: int, dim: int, learnable: bool) -> None:
        super().__init__()
        self.shape = (classes, per_class)
        table = 0.02 * torch.randn(classes * per_class, dim)
        if learnable:
            self.prototypes = nn.Parameter(table)
        else:
            # Moved by class means instead of gradients: a buffer, which no engine partitions or casts.
            self.register_buffer("prototypes", table)

    def forward(self, h: Tensor, scale: float) -> Tensor:
        """Scaled squared distances: `h` [T, D] -> [T, C], in float32 or wider."""
        wide = torch.promote_types(h.dtype, torch.float32)
        h, table = h.to(wide), self.prototypes.to(wide)
        with torch.autocast(h.device.type, enabled=False):
            # The expanded square costs one matrix product; rounding can push it below zero.
            square = h.square().sum(1, keepdim=True) + table.square().sum(1) - 2 * h @ table.T
        nearest = square.clamp(min=0).unflatten(1, self.shape).amin(-1)
        return scale * nearest


class AWM(nn.Module):
    """Reliability weights of one modality (Eq. 15-18): distances in, one weight per step out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5  # nn.Linear's own initialisation
        self.query = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.key = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))

    def forward(
        self, h: Tensor, distances: Tensor, offsets: Tensor, utterance: Tensor, host_offsets: Tensor
    ) -> Tensor:
        """`h` [T, D], `distances` [T, C] -> weights [T] that sum to 1 within each utterance."""
        reliability = segment_softmax(-distances.amin(-1), offsets, utterance)
        spread = self.attend(h, reliability, host_offsets)
        return spread / (segment_sum(spread, offsets, utterance) + EPSILON)[utterance]

    def attend(self, h: Tensor, r: Tensor, host_offsets: Tensor) -> Tensor:
        """See `awtpn.model.attention.reliability_attention`."""
        return reliability_attention(h, self.query, self.key, r, host_offsets)


class AWTPN(nn.Module, ModelHubMixin, library_name="awtpn"):
    """The whole network: packed features of B utterances -> logits [B, C] and what led to them.

        model = AWTPN.from_pretrained("my-model")
        model(batch.features).logits.softmax(-1)  # [B, C], of a batch as `shards.FeatureStream` yields them

    `save_pretrained(DIR)` and `push_to_hub(USER/MODEL)` are huggingface_hub's, in our format: config.json,
    model.safetensors and a model card.

    Attributes:
        config: its shape.
        feature_dims: features per step that it takes, by modality.
        classes: the emotions' names, in label order.
        provenance: how the features that it is trained on were made, as their manifest says.
        record: what else its card told: the dataset's name, results, a licence.
    """

    def __init__(
        self,
        config: ModelConfig,
        feature_dims: Mapping[str, int],
        classes: Sequence[str],
        learnable_prototypes: bool = True,
    ) -> None:
        """A network with random weights, drawn from torch's global generator.

        Args:
            config: widths, scales and weights.
            feature_dims: features per step of each modality in `config.modalities`; others are not used.
            classes: the emotions' names, in label order.
            learnable_prototypes: False when class means move the prototypes (`prototypes.update: ema`).

        Raises:
            ValueError: a setting that no model can have, or a modality that the features lack.
        """
        super().__init__()
        config.validate()
        missing = [m for m in config.modalities if m not in feature_dims]
        if missing:
            raise ValueError(
                f"model.modalities names {missing}, but the data has only {sorted(feature_dims)}"
            )
        self.config = config
        self.feature_dims = {m: int(feature_dims[m]) for m in config.modalities}
        self.classes = list(classes)
        self.learnable_prototypes = learnable_prototypes
        self.provenance: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        dim = config.shared_dim
        self.standardise = nn.ModuleDict({m: Standardise(d) for m, d in self.feature_dims.items()})
        self.ses = nn.ModuleDict({m: SES(d, dim) for m, d in self.feature_dims.items()})
        self.dropout = nn.Dropout(config.dropout)
        self.tpn = TPN(len(self.classes), config.prototypes_per_class, dim, learnable_prototypes)
        self.awm = nn.ModuleDict({m: AWM(dim) for m in config.modalities if config.awm == "adaptive"})
        self.classifier = nn.Linear(dim, len(self.classes))

    def forward(
        self, features: Mapping[str, Ragged], dropout: Mapping[str, Tensor] | None = None
    ) -> ModelOutput:
        """Logits and streams of B utterances; B may be 0.

        Args:
            features: per modality its steps packed one after another, as they were extracted: standardising
                them is the model's own first layer. An utterance may lack one modality, but not both.
            dropout: per modality the factors [T, D] to take for dropout; default: drawn here when training.
        """
        streams = {
            m: self.stream(m, features[m], None if dropout is None else dropout[m])
            for m in self.config.modalities
        }
        fused = self.fuse(streams)
        logits = self.classifier(fused.to(self.classifier.weight.dtype))
        return ModelOutput(logits.to(fused.dtype), streams)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Have torch compile all but the attention, which loops over lengths that differ in every batch.

        Takes torch.compile's arguments.
        """
        # Asked for only here: the compiler takes a second to import, which no other command should wait for.
        for awm in self.awm.values():
            awm.attend = torch.compiler.disable(awm.attend)
        super().compile(*args, **kwargs)

    def set_statistics(self, modality: str, mean: Tensor, std: Tensor) -> None:
        """Standardise a modality's features by these [D_modality] from now on; the model keeps them."""
        cast(Standardise, self.standardise[modality]).set_statistics(mean, std)

    def stream(self, modality: str, ragged: Ragged, dropout: Tensor | None = None) -> StreamOutput:
        """One modality's way through SES, TPN and AWM (Eq. 6-8, 15-18)."""
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
        return StreamOutput(h, distances, weights, pooled, mean, offsets.diff() > 0, offsets, utterance)

    def fuse(self, streams: Mapping[str, StreamOutput]) -> Tensor:
        """Weighted sum of the pooled streams [B, D] (Eq. 19-21); a lone stream has weight 1."""
        alone = torch.stack([s.present for s in streams.values()]).sum(0) == 1  # [B]
        shares = []
        for modality, stream in streams.items():
            weight = torch.full_like(stream.pooled[:, 0], self.config.fusion_weight(modality))
            shares.append(weight.masked_fill(alone, 1.0)[:, None] * stream.pooled)
        return torch.stack(shares).sum(0)

    def card(self) -> dict[str, Any]:
        """Everything but the weights that rebuilds this model; plain JSON."""
        return self.record | {
            "format": "awtpn",
            "format_version": 1,
            "model": asdict(self.config),
            "feature_dims": self.feature_dims,
            "classes": self.classes,
            "learnable_prototypes": self.learnable_prototypes,
            "provenance": self.provenance,
        }

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> AWTPN:
        """A model with fresh weights of the shape that `card()` described.

        Raises:
            ValueError: a setting that no model can have.
        """
        config = from_record(ModelConfig, card["model"], "the card's model", others=True)
        model = cls(config, card["feature_dims"], card["classes"], card["learnable_prototypes"])
        model.provenance = card.get("provenance") or {}
        model.record = {key: value for key, value in card.items() if key not in model.card()}
        return model

    @classmethod
    def from_pretrained(cls, place: str | Path, **hub: Any) -> AWTPN:  # type: ignore[override]
        """Load an export, a checkpoint, a run's best checkpoint, or a model of the Hugging Face Hub.

        It is on the CPU and in eval mode.

        Args:
            place: the folder, of which a model's holds `config.json` beside `model.safetensors`; or, where
                there is no such path, a hub id, "user/model".
            hub: `revision`, `token`, `cache_dir` and `local_files_only` for a hub id: see
                `awtpn.model.hub.locate`.

        Raises:
            ValueError: a file is missing, is not of this format or not as it was exported, or the hub has no
                such model.
        """
        from awtpn.model.files import find_model  # which knows runs, and imports this file

        folder = find_model(locate(place, (CARD_FILE, WEIGHTS_FILE), optional=(CHECKSUMS_FILE,), **hub))
        if not (folder / WEIGHTS_FILE).is_file():
            raise ValueError(f"{folder} is no whole model: it has no {WEIGHTS_FILE}")
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
        """The README.md that goes with the weights; huggingface_hub's mixin calls it."""
        from awtpn.model.model_card import render_card  # only a model that is shared needs one

        return ModelCard(render_card(self.card()))

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor],
        config: ModelConfig | None = None,
        classes: Sequence[str] | None = None,
    ) -> AWTPN:
        """Load the published code's checkpoint (`awtpn_best.pth`: a bare state_dict).

        Sizes are read from the tensors; `config` gives what the file doesn't hold (fusion weights, distance
        scales), `classes` the labels' names. Load the file itself with
        `torch.load(path, map_location="cpu", weights_only=True)`.

        Raises:
            ValueError: keys are missing or unknown; the message names them.
        """
        settings, dims, names, ours = translate(state_dict, asdict(config) if config else {}, classes)
        model = cls(ModelConfig(**settings), dims, names).to(ours["tpn.prototypes"].dtype)
        model.load_state_dict(ours, strict=False)  # the published code has no feature statistics
        return model.eval()


def check_shapes(card: Mapping[str, Any], folder: Path) -> None:
    """Compare the network that a card describes with the weights beside it, before either takes memory.

    Args:
        card: of `read_card`.
        folder: that holds the weights.

    Raises:
        ValueError: they differ, or it describes none; names the first tensor that differs.
    """
    there = weight_shapes(folder / WEIGHTS_FILE)
    try:
        with torch.device("meta"):  # tensors of a shape, without memory
            model = AWTPN.from_card(card)
    except (RuntimeError, ValueError) as error:  # of sizes whose product overflows, or of its settings
        raise ValueError(f"{folder / CARD_FILE}: {' '.join(str(error).split()):.200}") from None
    described = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in {**described, **there}:
        if described.get(name) != there.get(name):
            raise ValueError(
                f"{folder}: {CARD_FILE} describes another network than {WEIGHTS_FILE} holds: {name:.60} is "
                f"{described.get(name, 'missing')} by the card and {there.get(name, 'missing')} in the file"
            )
