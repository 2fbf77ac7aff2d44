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
from typing import Any, cast

import torch
from torch import Tensor, nn

from awtpn.model.base import EmotionModel, ModalityOutput, ModelOutput
from awtpn.model.blocks import (
    AWM,
    SES,
    TPN,
    Spread,
    Statistics,
    fusion_weights,
    mean_and_deviation,
    pooled_and_mean,
)
from awtpn.model.compute.dropout import Dropout, DropoutFactors
from awtpn.model.segments import segment_mean, utterance_of_step
from awtpn.model.settings import ModelConfig
from awtpn.model.sharing.published_weights import convert_state_dict
from shards import Ragged


class AWTPN(EmotionModel):
    """The whole network: packed features of B utterances -> logits [B, C] and intermediate results.

    model = AWTPN.from_pretrained("my-model")
    model(batch.features).logits.softmax(-1)  # [B, C]; batch: a FeatureBatch of a shards.FeatureStream
    """

    def build(self) -> None:
        """SES, TPN, AWM and the classifier, and the scales of relative distances."""
        config, dim = self.config, self.config.shared_dim
        self.ses = nn.ModuleDict({m: SES(d, dim) for m, d in self.feature_dims.items()})
        self.dropout = Dropout(config.dropout)
        self.tpn = TPN(
            sum(self.task.group_sizes), config.prototypes_per_class, dim, self.learnable_prototypes
        )
        self.awm = nn.ModuleDict({m: AWM(dim) for m in config.modalities if config.awm == "adaptive"})
        self.classifier = nn.Linear(dim, self.task.outputs)
        relative = config.distances == "relative"
        self.spread = nn.ModuleDict({m: Spread() for m in self.feature_dims if relative})
        outputs, p = self.task.outputs, config.dropout_of_statistics
        self.statistics = nn.ModuleDict(
            {m: Statistics(d, outputs, p) for m, d in self.feature_dims.items() if config.statistics}
        )

    def forward(self, features: Mapping[str, Ragged], dropout: DropoutFactors | None = None) -> ModelOutput:
        """Logits and intermediate results of B utterances; B may be 0.

        Args:
            features: per modality the packed steps as extracted, not standardized: the model does that in its
                first layer. An utterance may lack modalities, but not all.
            dropout: default: drawn here in training.
        """
        given, features = dropout or DropoutFactors({}, {}), self.encoded(features)
        streams = {m: self.encode(m, features[m], given.steps.get(m)) for m in self.config.modalities}
        fused = self.fuse(streams)
        logits = self.classifier(fused.to(self.classifier.weight.dtype))
        logits = logits.to(fused.dtype)
        for m, of_statistics in self.statistics.items():
            stream, factors = streams[m], given.statistics.get(m)
            logits = logits + of_statistics(stream.statistics, stream.present, factors)
        return ModelOutput(logits, streams)

    def step_weights(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        """Per modality the reliability weights [T] of the time steps (Eq. 15-18)."""
        features = self.encoded(features)
        return {m: self.encode(m, features[m]).weights for m in self.config.modalities}

    @property
    def heads(self) -> tuple[str, ...]:
        """Of the classifiers and the prototypes."""
        return ("classifier.", "tpn.", "statistics.")

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raise ValueError if `model.name` is that of a baseline."""
        if name != "awtpn":
            raise ValueError(f"this is a {name} model, not an AWTPN: load it with awtpn.load_model")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile all but the attention, which loops over lengths that differ in every batch.

        Args:
            args, kwargs: of torch.compile.
        """
        # Not a decorator on `attend`: it would import the compiler, which takes a second, in every command.
        for awm in self.awm.values():
            awm.attend = torch.compiler.disable(awm.attend)
        super().compile(*args, **kwargs)

    def encode(self, modality: str, ragged: Ragged, dropout: Tensor | None = None) -> ModalityOutput:
        """SES, TPN and AWM of one modality (Eq. 6-8, 15-18)."""
        offsets = ragged.offsets.long()
        utterance = utterance_of_step(offsets, len(ragged.values))
        x = self.standardise[modality](ragged.values, ragged.quantization)
        h = self.project(modality, x, dropout)
        distances = self.distances(modality, h)
        wide = h.to(distances.dtype)
        if self.config.awm == "adaptive":
            weights = self.awm[modality](h, distances, offsets, utterance, ragged.host_offsets)
            pooled, mean = pooled_and_mean(wide, weights, offsets, utterance)
        else:
            weights = (1 / offsets.diff().to(distances.dtype))[utterance]
            pooled = mean = segment_mean(wide, offsets, utterance)
        x = x if self.config.statistics else x[:, :0]
        statistics = mean_and_deviation(x, offsets, utterance)
        present = offsets.diff() > 0
        return ModalityOutput(h, distances, weights, pooled, mean, statistics, present, offsets, utterance)

    def project(self, modality: str, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """SES of a modality's standardized features, with dropout: `x` [T, F] -> [T, D].

        Args:
            modality: its name.
            x: of `standardise`.
            factors: [T, D] of the dropout; default: drawn here in training.
        """
        ses = cast(SES, self.ses[modality])
        if factors is None:
            shape = (len(x), self.config.shared_dim)
            factors = self.dropout.factors(shape, ses.weight.dtype, x.device)
        h: Tensor = ses(x, factors)
        return h if factors is not None else self.dropout(h)

    def distances(self, modality: str, h: Tensor) -> Tensor:
        """Scaled squared distances of a modality's steps to the classes: `h` [T, D] -> [T, C] (Eq. 6-8)."""
        distances: Tensor = self.tpn(h, self.config.distance_scale(modality))
        return self.spread[modality](distances) if modality in self.spread else distances

    def fuse(self, streams: Mapping[str, ModalityOutput]) -> Tensor:
        """Weighted sum of the modalities' pooled vectors, [B, D] (Eq. 19-21)."""
        present = torch.stack([output.present for output in streams.values()])
        pooled = torch.stack([output.pooled for output in streams.values()])
        weights = fusion_weights([self.config.fusion_weight(m) for m in streams], present, pooled.dtype)
        return (weights[..., None] * pooled).sum(0)

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
