"""The models that `model.name` chooses from, AWTPN and baselines, and how one is built or loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from awtpn.model.base import EmotionModel, ModelOutput, load
from awtpn.model.baselines import NETWORKS
from awtpn.model.compute.dropout import DropoutFactors
from awtpn.model.encoders.base import Encoder
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.model.task import Task
from shards import Ragged


class Baseline(EmotionModel):
    """A network of `awtpn.model.baselines`: it has neither prototypes nor reliability weights.

    It is trained by cross-entropy alone, and `ModelOutput.streams` is empty.
    """

    def build(self) -> None:
        """The network that `model.name` names.

        Raises:
            ValueError: it has no loss for this task.
        """
        config = self.config
        if self.task.head == "linear":
            raise ValueError(
                f"model.name {config.name} is trained by cross-entropy: set task.head to levels, not linear"
            )
        self.network = NETWORKS[config.name](
            self.feature_dims, self.task.outputs, config.shared_dim, config.dropout
        )

    def forward(self, features: Mapping[str, Ragged], dropout: DropoutFactors | None = None) -> ModelOutput:
        """Logits of B utterances; see `EmotionModel`."""
        return ModelOutput(self.network(self.standardized(features)), {})

    def step_weights(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        """Per modality the attention weights [T] of the time steps, of the networks that have them."""
        weights: dict[str, Tensor] = self.network.weights(self.standardized(features))
        return weights

    @property
    def heads(self) -> tuple[str, ...]:
        """Of the network's classifiers."""
        return tuple(f"network.{name}" for name in self.network.heads)

    def standardized(self, features: Mapping[str, Ragged]) -> dict[str, Ragged]:
        """The features of the model's modalities, standardized [T, F], in the dtype of the weights."""
        dtype = next(self.parameters()).dtype
        features = self.encoded(features)
        given = {m: features[m] for m in self.feature_dims}
        return {
            m: Ragged(
                self.standardise[m](ragged.values, ragged.quantization).to(dtype),
                ragged.offsets,
                ragged.host_offsets,
            )
            for m, ragged in given.items()
        }

    @classmethod
    def check_name(cls, name: str) -> None:
        """Raise ValueError if `model.name` is not that of a baseline."""
        if name not in NETWORKS:
            raise ValueError(f"this is no baseline but {name}: load it with awtpn.load_model")


def model_class(name: str) -> type[AWTPN] | type[Baseline]:
    """The class of the models of this `model.name`."""
    return AWTPN if name == "awtpn" else Baseline


def build_model(
    config: ModelConfig,
    feature_dims: Mapping[str, int],
    classes: Sequence[str],
    learnable_prototypes: bool = True,
    task: Task | None = None,
    encoders: Mapping[str, Encoder] | None = None,
) -> EmotionModel:
    """The model that `config.name` names, with random weights; the arguments are those of `EmotionModel`."""
    return model_class(config.name)(config, feature_dims, classes, learnable_prototypes, task, encoders)


def model_of_card(card: Mapping[str, Any], encoders: Mapping[str, Encoder] | None = None) -> EmotionModel:
    """The model that a card describes, with random weights; see `EmotionModel.from_card`.

    Raises:
        ValueError: a setting is out of range.
    """
    return model_class(card["model"].get("name", "awtpn")).from_card(card, encoders)


def load_model(
    source: str | Path, encoders: Mapping[str, str | Path] | None = None, **hub: Any
) -> EmotionModel:
    """Load a model of any name; see `EmotionModel.from_pretrained`."""
    return load(source, model_of_card, encoders, **hub)
