"""A small cross-modal transformer: each modality attends to each other one, then to itself.

Of modality m with padded steps x_m, and LN a layer normalization:

    h_m = W_m x_m + b_m + positions (sines)
    h_mn = layer(h_m, h_n) for each other modality n: steps of m attend to steps of n
    g_m = layer(c_m, c_m) with c_m = [h_mn for all n], or h_m in a model of one modality
    logits = W Dropout([mean_t LN(g_m,t) for all m]) + b

    layer(q, s): r = q + attention(LN(q), LN(s), LN(s)),   r + W2 ReLU(W1 LN(r))

Source: Y.-H. H. Tsai, S. Bai, P. P. Liang, J. Z. Kolter, L.-P. Morency, R. Salakhutdinov: "Multimodal
transformer for unaligned multimodal language sequences" (ACL 2019). Smaller than the paper's: one layer of
each kind, W1 twice as wide as its input, no convolution, and a linear classifier on the mean over time. An
utterance that lacks n has no attention to it: h_mn is then of h_m alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from awtpn.model.baselines.layers import Linear, pad, widen
from awtpn.model.baselines.protocol import Network
from awtpn.model.compute.dropout import Dropout
from shards import Ragged


class CrossModal(Network):
    """A transformer over all modalities; no attention weights, because a step has many."""

    about = "a small transformer in which each modality attends to the others, and one classifier"

    def __init__(self, feature_dims: Mapping[str, int], outputs: int, width: int, dropout: float) -> None:
        super().__init__(feature_dims, outputs, width, dropout)
        others = {m: [n for n in feature_dims if n != m] for m in feature_dims}
        joint = width * max(1, len(feature_dims) - 1)
        self.project = nn.ModuleDict({m: Linear(d, width) for m, d in feature_dims.items()})
        self.cross = nn.ModuleDict(
            {m: nn.ModuleDict({n: Layer(width, dropout) for n in others[m]}) for m in feature_dims}
        )
        self.own = nn.ModuleDict({m: Layer(joint, dropout) for m in feature_dims})
        self.norm = nn.ModuleDict({m: nn.LayerNorm(joint) for m in feature_dims})
        self.dropout = Dropout(dropout)
        self.classifier = Linear(joint * len(feature_dims), outputs)

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        h, real = {}, {}
        for m, project in self.project.items():
            steps, real[m] = pad(project(features[m].values), features[m])
            h[m] = self.dropout(steps + positions(steps, self.classifier.weight.dtype))
        pooled = []
        for m, cross in self.cross.items():
            of_others = [layer(h[m], h[n], real[n]) for n, layer in cast(nn.ModuleDict, cross).items()]
            joint = torch.cat(of_others, 2) if of_others else h[m]
            joint = self.norm[m](self.own[m](joint, joint, real[m]))
            total = torch.where(real[m][..., None], widen(joint), 0.0).sum(1)
            pooled.append(total / real[m].sum(1).clamp(min=1)[:, None])
        logits: Tensor = self.classifier(self.dropout(torch.cat(pooled, 1)))
        return logits[: len(features[m])].to(pooled[0].dtype)


class Layer(nn.Module):
    """Attention of one sequence to another, or to itself, and a perceptron; both add to the sequence."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = next(heads for heads in (4, 2, 1) if width % heads == 0)
        self.norm_query, self.norm_source, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, width)
        self.perceptron = nn.Sequential(Linear(width, 2 * width), nn.ReLU(), Linear(2 * width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, real: Tensor) -> Tensor:
        """`x` [B, N, D] attends to `source` [B, M, D], where `real` [B, M] is not padding: [B, N, D]."""
        # A softmax over no step is NaN: without steps, attend to the first, padding, and drop the result.
        allowed, present = F.pad(real[:, 1:], (1, 0), value=True), real[:, :1, None]
        source = self.norm_source(source)
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(self.norm_query(x)), self.key(source), self.value(source))
        )
        # Its softmax is float32 or wider for half precision, too.
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None, None])
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2))) * present
        return x + self.dropout(self.perceptron(self.norm(x)))


def positions(h: Tensor, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of the time step, [M, D] in `dtype`, for steps `h` [B, M, D]."""
    longest, width = h.shape[1:]
    half = (width + 1) // 2
    wave = torch.exp(torch.arange(half, device=h.device) * (-math.log(10_000) / half))
    angle = torch.arange(longest, device=h.device)[:, None] * wave
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width].to(dtype)
