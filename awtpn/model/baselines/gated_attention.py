"""Gated attention pooling of each modality, and late fusion of the logits.

An utterance is a bag of time steps. Per modality, with the element-wise product *:

    h_t = ReLU(W x_t + b)
    a = softmax_t(w^T (tanh(V h_t + c) * sigmoid(U h_t + d)))
    logits_m = W' Dropout(sum_t a_t h_t) + b',   logits = mean_m logits_m over the modalities present

Source: M. Ilse, J. M. Tomczak, M. Welling: "Attention-based deep multiple instance learning" (ICML 2018),
Eq. 9. Beside the paper: V and U have biases, the pooled vector has dropout, and the modalities are fused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from awtpn.model.baselines.layers import Linear, late_fusion, pool
from awtpn.model.baselines.protocol import Network
from awtpn.model.compute.dropout import Dropout
from awtpn.model.segments import utterance_of_step
from shards import Ragged


class GatedAttention(Network):
    """Gated attention pooling per modality; has attention weights."""

    about = "gated attention pooling of each modality's steps, and the mean of their logits"
    heads = ("classifiers.",)

    def __init__(self, feature_dims: Mapping[str, int], outputs: int, width: int, dropout: float) -> None:
        super().__init__(feature_dims, outputs, width, dropout)
        self.pools = nn.ModuleDict({m: GatedPooling(d, width) for m, d in feature_dims.items()})
        self.dropout = Dropout(dropout)
        self.classifiers = nn.ModuleDict({m: Linear(width, outputs) for m in feature_dims})

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        logits = [
            self.classifiers[m](self.dropout(pooled)) for m, (pooled, _) in self.pooled(features).items()
        ]
        return late_fusion(logits, [features[m] for m in self.pools])

    def weights(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        return {m: weights for m, (_, weights) in self.pooled(features).items()}

    def pooled(self, features: Mapping[str, Ragged]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per modality the pooled vectors [B, D] and the attention weights [T]."""
        return {m: pool_of(features[m].values, features[m].offsets) for m, pool_of in self.pools.items()}


class GatedPooling(nn.Module):
    """Steps of one modality -> pooled vectors and attention weights."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.project = Linear(features, width)
        self.content = Linear(width, width)
        self.gate = Linear(width, width)
        self.score = Linear(width, 1, bias=False)  # a bias would not change the softmax

    def forward(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """`values` [T, F], `offsets` [B + 1] -> [B, D] and [T]."""
        offsets = offsets.long()
        h = torch.relu(self.project(values))
        scores = self.score(torch.tanh(self.content(h)) * torch.sigmoid(self.gate(h)))
        return pool(h, scores, offsets, utterance_of_step(offsets, len(values)))
