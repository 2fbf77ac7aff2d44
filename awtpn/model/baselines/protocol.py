"""What a baseline network takes and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from shards import Ragged


class Network(nn.Module):
    """The protocol of all baselines: packed features of B utterances -> logits [B, outputs].

    An utterance may lack modalities, but not all; B may be 0. An utterance's logits do not depend on the
    others of its batch, except for rounding. Each forward calls every submodule and reaches every parameter,
    whatever is missing: DDP and ZeRO-3 need that. Nothing waits for the device.

    Attributes:
        about: what the network is, for a model card: it follows "A gru model: ".
        heads: how the names of the weights begin that belong to what is recognized, such as a classifier's.
            A model of another task, or of other modalities, starts with random ones (`run.init_from`).
    """

    about: ClassVar[str]
    heads: tuple[str, ...] = ("classifier.",)

    def __init__(self, feature_dims: Mapping[str, int], outputs: int, width: int, dropout: float) -> None:
        """Initialize with random weights, drawn from torch's global generator.

        Args:
            feature_dims: features per step of each modality that the network uses.
            outputs: logits per utterance.
            width: D, features per step in the hidden layers; the GRU needs an even number and rounds up.
            dropout: the probability to zero a hidden feature in training.
        """
        super().__init__()

    def forward(self, features: Mapping[str, Ragged]) -> Tensor:
        """Logits [B, outputs], float32 or wider.

        Args:
            features: per modality the packed steps, already standardized; others than those of
                `feature_dims` are ignored.
        """
        raise NotImplementedError

    def weights(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        """Per modality the attention weight [T] of each step; {} for a network without.

        They are float32 or wider, and sum to 1 within each utterance that has the modality.
        """
        return {}
