"""A bidirectional GRU with additive attention over the steps of each modality.

Per modality, then over all M of them:

    h_t = GRU forward and backward in time, [D / 2] each
    a = softmax_t(u^T tanh(W h_t + b)),   z_m = sum_t a_t h_t, zero where the modality is missing
    logits = W' Dropout([z_1 .. z_M]) + b'

Source: S. Mirsamadi, E. Barsoum, C. Zhang: "Automatic speech emotion recognition using recurrent neural
networks with local attention" (ICASSP 2017), which has an LSTM and scores h_t by a product with u alone; the
score here is the additive one of D. Bahdanau, K. Cho, Y. Bengio: "Neural machine translation by jointly
learning to align and translate" (ICLR 2015).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from awtpn.model.baselines.layers import Linear, pool
from awtpn.model.baselines.protocol import Network
from awtpn.model.compute.dropout import Dropout
from awtpn.model.device import to_device_async
from awtpn.model.segments import utterance_of_step
from shards import Ragged


class GRUAttention(Network):
    """A bidirectional GRU with attention per modality, one classifier; has attention weights."""

    about = "a bidirectional GRU with attention over the steps of each modality, and one classifier"

    def __init__(self, feature_dims: Mapping[str, int], outputs: int, width: int, dropout: float) -> None:
        super().__init__(feature_dims, outputs, width, dropout)
        half = (width + 1) // 2
        self.pools = nn.ModuleDict({m: RecurrentPooling(d, half) for m, d in feature_dims.items()})
        self.dropout = Dropout(dropout)
        self.classifier = Linear(2 * half * len(feature_dims), outputs)

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        pooled = [vectors for vectors, _ in self.pooled(features).values()]
        logits: Tensor = self.classifier(self.dropout(torch.cat(pooled, 1)))
        return logits.to(pooled[0].dtype)

    def weights(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        return {m: weights for m, (_, weights) in self.pooled(features).items()}

    def pooled(self, features: Mapping[str, Ragged]) -> dict[str, tuple[Tensor, Tensor]]:
        """Per modality the pooled vectors [B, D] and the attention weights [T]."""
        found = {}
        for m, pool_of in self.pools.items():
            order, batch_sizes = time_order(features[m].host_offsets)
            values, offsets = features[m].values, features[m].offsets
            found[m] = pool_of(values, offsets, to_device_async(order.numpy(), values.device), batch_sizes)
        return found


class RecurrentPooling(nn.Module):
    """Steps of one modality -> pooled vectors and attention weights."""

    def __init__(self, features: int, half: int) -> None:
        super().__init__()
        self.gru = GRU(features, half, bidirectional=True)
        self.hidden = Linear(2 * half, 2 * half)
        self.score = Linear(2 * half, 1, bias=False)  # a bias would not change the softmax

    def forward(
        self, values: Tensor, offsets: Tensor, order: Tensor, batch_sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`values` [T, F], `offsets` [B + 1] and what `time_order` gives -> [B, D] and [T]."""
        offsets = offsets.long()
        if len(values):
            by_time = self.gru(values[order], batch_sizes)
            h = torch.empty_like(by_time).index_copy(0, order, by_time)
        else:
            # The GRU takes at least one step. Here its output is cut off, so its gradient is zero; also that
            # of an encoder that made `values`, which engines wait for.
            one = torch.cat([values, values.new_zeros(1, values.shape[1])])
            h = self.gru(one, batch_sizes.new_ones(1))[:0]
        scores = self.score(torch.tanh(self.hidden(h)))
        return pool(h, scores, offsets, utterance_of_step(offsets, len(values)))


class GRU(nn.GRU):
    """nn.GRU with tensors as input and output, in which ZeRO-3's hooks look for gradients."""

    weight_ih_l0: Tensor

    def forward(self, steps: Tensor, batch_sizes: Tensor) -> Tensor:  # type: ignore[override]
        """`steps` [T, F] in the order of `time_order`, `batch_sizes` on the host -> [T, 2 H]."""
        # Rounding would accumulate over hundreds of steps: no autocast.
        with torch.autocast(steps.device.type, enabled=False):
            packed = PackedSequence(steps.to(self.weight_ih_l0.dtype), batch_sizes)
            output: Tensor = super().forward(packed)[0].data
        return output


def time_order(host_offsets: Tensor) -> tuple[Tensor, Tensor]:
    """How to pack the steps for a GRU without padding: longest utterance first, then time by time.

    Args:
        host_offsets: [B + 1] on the host.

    Returns:
        On the host: the row [T] of each step in this order; the number of utterances that have a t-th step,
        [longest].
    """
    lengths, order = host_offsets.diff().sort(descending=True, stable=True)
    steps = torch.arange(int(lengths[0]) if len(lengths) else 0)[:, None]
    there = steps < lengths
    return (host_offsets[:-1][order].long() + steps)[there], there.sum(1)
