"""The parts of the network: standardization, SES, TPN, AWM, and the weights of the fusion.

The blocks that own parameters take and give plain tensors: the hooks in which DeepSpeed's ZeRO-3 gathers a
block's parameters find tensors among its inputs and outputs, but not those within a dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from awtpn.model.attention import reliability_attention
from awtpn.model.compute.cpu_passes import (
    ReluTimes,
    SquaredDistances,
    StepSums,
    in_few_passes,
    mean_and_variance,
    standardized,
)
from awtpn.model.compute.dropout import Dropout
from awtpn.model.segments import mean_of_sum, segment_mean, segment_softmax, segment_sum

LEAST_SPREAD = 1e-4  # of a statistic of standardized features, to be divided by
EPSILON = 1e-8  # added to the sum that normalizes the weights, as in the published code


class Float32Buffers(nn.Module):
    """A module whose buffers follow the model to its device, but are never cast to half precision.

    Engines cast whole modules to half precision. bfloat16 has 8 significant bits: too few for feature means
    such as -18.4, and for moving averages that change by 1 % a step.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float32Buffers:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.itemsize < buffer.itemsize:
                self._buffers[name] = buffer.to(moved.device)
        return self


class Standardize(Float32Buffers):
    """(x - mean) / std per feature, in float32, with statistics of the training utterances.

    The identity, bit for bit, until `set_statistics` is called. Of int8 features q, which stand for
    q * scale + offset, one multiplication and one addition give (q * scale + offset - mean) / std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set `mean` and `std` [F]; a feature that is constant up to rounding is divided by 1."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, torch.ones_like(std)))

    def forward(self, x: Tensor, quantization: Tensor | None = None) -> Tensor:
        """`x` [T, F] in any precision -> [T, F] in float32 or wider.

        Args:
            x: the features.
            quantization: scale and offset [2, F] of int8 features, as `Ragged.quantization`.

        Raises:
            ValueError: int8 features without scale and offset.
        """
        if quantization is not None:
            scale, offset = quantization.to(self.mean.dtype)
            # Of [F] numbers first, so that both maps cost as much as one.
            factor, shift = scale / self.std, (offset - self.mean) / self.std
            # On a CPU in place, and on a GPU with the cast: as below.
            scaled = x.to(factor.dtype).mul_(factor) if x.device.type == "cpu" else x * factor
            return scaled.add_(shift)
        if x.dtype == torch.int8:
            raise ValueError("int8 features need their scale and offset: give a Ragged with `quantization`")
        if in_few_passes(self.mean) and not x.requires_grad:
            return standardized(x, self.mean, self.std.reciprocal())
        if x.device.type == "cpu":
            # On a CPU, x - mean of mixed dtypes writes to newly mapped memory: 8 times slower than in place.
            centered = x.to(torch.promote_types(x.dtype, self.mean.dtype), copy=True).sub_(self.mean)
        else:
            centered = x - self.mean  # casts and subtracts in one pass over the largest tensor
        return centered.mul_(self.std.reciprocal())


class SES(nn.Linear):
    """Projection of one modality into the shared space: `h = ReLU(W x + b)`, times the dropout's factors."""

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """`x` [T, F] -> [T, D], not negative.

        Args:
            x: standardized features.
            factors: [T, D] each 0 or 1 / (1 - p); default: no dropout.
        """
        z = super().forward(x.to(self.weight.dtype))
        if factors is None:
            return torch.relu(z)
        if in_few_passes(z):
            h: Tensor = ReluTimes.apply(z, factors)
            return h
        return torch.relu(z) * factors


class Statistics(Float32Buffers):
    """Logits from one modality's mean and standard deviation over time, beside those of the fused vector.

    The rows are standardized by their own mean and deviation over training utterances, so that features that
    hardly differ between utterances count as others do. The map begins at zero: a model begins as without it.
    Zero for an utterance without the modality. Dropout of single values keeps the map from learning the
    training utterances by heart, which would leave nothing to learn to the weights of time steps.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * dim))
        self.register_buffer("std", torch.ones(2 * dim))
        self.dropout = Dropout(dropout)
        self.weight = nn.Parameter(torch.zeros(outputs, 2 * dim))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set `mean` and `std` [2F]; a value that is constant up to rounding is divided by 1."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > LEAST_SPREAD, std, torch.ones_like(std)))

    def forward(self, rows: Tensor, present: Tensor, dropout: Tensor | None = None) -> Tensor:
        """`rows` [B, 2F] of `mean_and_deviation`, `present` [B] bool -> [B, outputs].

        Args:
            dropout: factors [B, 2F]; default: drawn here in training.
        """
        units = torch.where(present[:, None], (rows - self.mean) / self.std, 0.0)
        units = self.dropout(units) if dropout is None else units * dropout
        return nn.functional.linear(units.to(self.weight.dtype), self.weight)


def mean_and_deviation(x: Tensor, offsets: Tensor, utterance: Tensor) -> Tensor:
    """Mean and standard deviation over each utterance's steps: `x` [T, F] -> [B, 2F]; 0 without steps.

    A deviation of 0, as of a single step, has the gradient 0.
    """
    if in_few_passes(x) and not x.requires_grad:
        mean, variance = mean_and_variance(x, offsets, utterance)
    else:
        mean = segment_mean(x, offsets, utterance)
        # Of the differences: a mean of squares minus a squared mean can cancel.
        variance = segment_mean((x - mean[utterance]).square(), offsets, utterance)
    # The gradient of a root at 0 is infinite, which times 0 is NaN.
    differs = variance > 0
    deviation = torch.where(differs, torch.where(differs, variance, 1.0).sqrt(), 0.0)
    return torch.cat([mean, deviation], 1)


class TPN(Float32Buffers):
    """The prototypes [C * K, D], K consecutive rows per class, and the distances to them (Eq. 6-8)."""

    prototypes: Tensor

    def __init__(self, classes: int, per_class: int, dim: int, learnable: bool) -> None:
        super().__init__()
        self.shape = (classes, per_class)
        prototypes = 0.02 * torch.randn(classes * per_class, dim)
        if learnable:
            self.prototypes = nn.Parameter(prototypes)
        else:
            # Updated by class means, not by gradients. A buffer: engines partition and cast parameters.
            self.register_buffer("prototypes", prototypes)

    def forward(self, h: Tensor, scale: float) -> Tensor:
        """Scaled squared distances: `h` [T, D] -> [T, C], in float32 or wider."""
        wide = torch.promote_types(h.dtype, torch.float32)
        h, p = h.to(wide), self.prototypes.to(wide)
        with torch.autocast(h.device.type, enabled=False):
            # |h - p|^2 expanded, so that it takes one matrix product; rounding can make it negative.
            if in_few_passes(h):
                square = SquaredDistances.apply(h, p)
            else:
                square = h.square().sum(1, keepdim=True) + p.square().sum(1) - 2 * h @ p.T
        nearest = square.clamp(min=0).unflatten(1, self.shape).amin(-1)
        return scale * nearest


class Spread(Float32Buffers):
    """The spread of one modality's distances, to divide them by; 1 until it is set from training data."""

    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("spread", torch.ones(1))

    def forward(self, distances: Tensor) -> Tensor:
        """`distances` [T, C] -> the same over the spread."""
        return distances / self.spread


class AWM(nn.Module):
    """Reliability weights of one modality, one per step (Eq. 15-18)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5  # as nn.Linear initializes its weights
        self.query = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.key = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))

    def forward(
        self, h: Tensor, distances: Tensor, offsets: Tensor, utterance: Tensor, host_offsets: Tensor
    ) -> Tensor:
        """Weights [T] that sum to 1 within each utterance.

        Args:
            h: [T, D] steps in the shared space.
            distances: [T, C] of TPN.
            offsets: [B + 1] int64, where each utterance's steps begin.
            utterance: [T] int64, the utterance of each step.
            host_offsets: `offsets` on the host, so that the lengths are known without waiting for the device.
        """
        reliability = segment_softmax(-distances.amin(-1), offsets, utterance)
        w = self.attend(h, reliability, host_offsets)
        return w / (segment_sum(w, offsets, utterance) + EPSILON)[utterance]

    def attend(self, h: Tensor, r: Tensor, host_offsets: Tensor) -> Tensor:
        """See `awtpn.model.attention.reliability_attention`."""
        return reliability_attention(h, self.query, self.key, r, host_offsets)


def pooled_and_mean(h: Tensor, weights: Tensor, offsets: Tensor, utterance: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of each utterance's steps times their weights, and their plain mean: `h` [T, D] -> [B, D] each."""
    if not in_few_passes(h):
        pooled = segment_sum(weights[:, None] * h, offsets, utterance)
        return pooled, segment_mean(h, offsets, utterance)
    pooled, total = StepSums.apply(h, weights, utterance, len(offsets) - 1)
    return pooled, mean_of_sum(total, offsets)


def fusion_weights(given: Sequence[float], present: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [M, B] of each modality's pooled vector in each utterance (Eq. 19-21).

    Args:
        given: of each of M modalities, in an utterance that has all of them. In one that lacks some, the
            present ones' weights are divided by their sum; if that is 0, they are equal. So an only modality
            has weight 1, in an utterance and in a model.
        present: [M, B] bool.
        dtype: of the result.
    """
    weights = torch.stack([present[m].new_full((), weight, dtype=dtype) for m, weight in enumerate(given)])
    of_present = torch.where(present, weights[:, None], 0.0)
    total = of_present.sum(0)
    equal = present.to(dtype) / present.sum(0).clamp(min=1)
    shares = torch.where(total > 0, of_present / torch.where(total > 0, total, 1.0), equal)
    return shares if len(given) == 1 else torch.where(present.all(0), weights[:, None], shares)
