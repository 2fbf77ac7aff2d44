"""The benchmarks' baseline: a re-implementation of the published forward pass and losses.

Like the published code it pads batches to the longest utterance and forms the M x M attention matrix of every
utterance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Published(nn.Module):
    """The published network, for padded batches of audio and video."""

    def __init__(self, audio_dim: int, video_dim: int, dim: int, classes: int) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(audio_dim, dim), nn.ReLU(), nn.Dropout(0.1))
        self.video = nn.Sequential(nn.Linear(video_dim, dim), nn.ReLU(), nn.Dropout(0.1))
        self.prototypes = nn.Parameter(0.02 * torch.randn(classes, dim))
        self.q_a, self.k_a, self.q_v, self.k_v = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.classifier = nn.Linear(dim, classes)

    def distances(self, h: Tensor) -> Tensor:
        flat = h.reshape(-1, h.shape[-1]).float()
        prototypes = self.prototypes.float()
        square = flat.square().sum(1, keepdim=True) + prototypes.square().sum(1) - 2 * flat @ prototypes.T
        return square.clamp(min=0).view(*h.shape[:2], -1)

    @staticmethod
    def weights(h: Tensor, distances: Tensor, query: nn.Linear, key: nn.Linear) -> Tensor:
        reliability = torch.softmax(-distances.min(-1).values, -1)
        attention = torch.softmax(query(h) @ key(h).mT / h.shape[-1] ** 0.5, -1)
        weights = (attention @ reliability[..., None].to(attention.dtype))[..., 0]
        return weights / (weights.sum(-1, keepdim=True) + 1e-8)

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, ...]:
        """Padded `audio` [B, M, Da] and `video` [B, N, Dv] -> logits, and per modality h and distances."""
        a, v = self.audio(audio), self.video(video)
        d_a, d_v = self.distances(a), self.distances(v)
        w_a = self.weights(a, d_a, self.q_a, self.k_a)
        w_v = self.weights(v, d_v, self.q_v, self.k_v)
        fused = 0.3 * (w_a[..., None] * a).sum(1) + 0.7 * (w_v[..., None] * v).sum(1)
        return self.classifier(fused), a, v, d_a, d_v


def published_loss(model: Published, audio: Tensor, video: Tensor, label: Tensor) -> Tensor:
    """The six terms at the published weights."""
    logits, a, v, d_a, d_v = model(audio, video)
    index = label[:, None, None]
    align = sum(d.gather(2, index.expand(-1, d.shape[1], 1)).mean() for d in (d_a, d_v))
    a, v = a.mean(1), v.mean(1)
    cosine = F.cosine_similarity(a, v)
    v_neg = v[torch.randperm(len(v), device=v.device)]
    inter = F.relu(1 + cosine - F.cosine_similarity(a, v_neg)).mean()
    v_neg = v[torch.randperm(len(v), device=v.device)]
    contrast = (a - v).norm(dim=1).mean() + F.relu(1 - (a - v_neg).norm(dim=1)).mean()
    mse = (logits.softmax(-1) - F.one_hot(label, logits.shape[1])).square().mean()
    terms = align + 0.5 * (1 - cosine).mean() + 0.5 * inter + 0.2 * contrast
    return terms + F.cross_entropy(logits, label) + 0.5 * mse
