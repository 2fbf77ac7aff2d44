"""Late fusion of mean-pooled perceptrons: the usual baseline that ignores the order of the steps.

Per modality the mean over time goes through one hidden layer; the logits are averaged over the modalities
that an utterance has:

    logits_m = W2 Dropout(ReLU(W1 mean_t x_t + b1)) + b2,   logits = mean_m logits_m

Source: the late fusion of T. Baltrusaitis, C. Ahuja, L.-P. Morency: "Multimodal machine learning: a survey
and taxonomy" (IEEE TPAMI 41, 2019), section 6.1, here of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from awtpn.model.baselines.layers import Linear, late_fusion
from awtpn.model.baselines.protocol import Network
from awtpn.model.compute.dropout import Dropout
from awtpn.model.segments import segment_mean, utterance_of_step
from shards import Ragged


class LateFusion(Network):
    """A perceptron per modality on the mean over time; no attention weights."""

    about = "a perceptron of each modality's mean over time, and the mean of their logits"

    def __init__(self, feature_dims: Mapping[str, int], outputs: int, width: int, dropout: float) -> None:
        super().__init__(feature_dims, outputs, width, dropout)
        self.heads = tuple(f"perceptrons.{m}.3." for m in feature_dims)
        self.perceptrons = nn.ModuleDict(
            {
                m: nn.Sequential(Linear(d, width), nn.ReLU(), Dropout(dropout), Linear(width, outputs))
                for m, d in feature_dims.items()
            }
        )

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        logits = [mlp(mean_over_time(features[m])) for m, mlp in self.perceptrons.items()]
        return late_fusion(logits, [features[m] for m in self.perceptrons])


def mean_over_time(ragged: Ragged) -> Tensor:
    """[B, F]; zero for an utterance without steps."""
    offsets = ragged.offsets.long()
    return segment_mean(ragged.values, offsets, utterance_of_step(offsets, len(ragged.values)))
