"""Group norm over the valid frames of each wave, in place of all frames of a padded batch.

The first convolution of many models of sound has a norm over time. With padding, a wave's features would
depend on the longest wave of the batch. `awtpn extract` runs these convolutions on one wave at a time; in
training the number of calls of a module must not depend on the data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ValidGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, with the same weights under the same names, over each wave's first frames.

    Attributes:
        frames: valid frames of each wave of the next batch.
    """

    frames: tuple[int, ...] = ()

    def forward(self, values: Tensor) -> Tensor:
        """[B, channels, T] -> the same; zero from each wave's `frames` on."""
        assert len(self.frames) == len(values)
        longest = values.shape[-1]
        normed = [
            functional.pad(
                functional.group_norm(wave[None, :, :n], self.num_groups, self.weight, self.bias, self.eps),
                (0, longest - n),
            )
            for wave, n in zip(values, self.frames, strict=True)
        ]
        return torch.cat(normed)


def replace_group_norm(network: Any) -> ValidGroupNorm | None:
    """Put a `ValidGroupNorm` in place of the first convolution's group norm; None if there is none."""
    if getattr(network.config, "feat_extract_norm", None) != "group":
        return None
    first = network.feature_extractor.conv_layers[0]
    former = first.layer_norm
    norm = ValidGroupNorm(former.num_groups, former.num_channels, former.eps, device="meta")
    norm.weight, norm.bias = former.weight, former.bias
    first.layer_norm = norm
    return norm
