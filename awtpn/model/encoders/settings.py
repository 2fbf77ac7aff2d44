"""The configuration section `encoder`: per modality an encoder that is trained with the model. No torch."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from shards.safe_io.json_fields import from_record

LAST_LAYERS = re.compile(r"last-([1-9]\d{0,3})-layers")
# As encoder.*.model: one that is made on first use.
DEMO_ENCODER = "demo-encoder"
TUNES = "frozen, lora, full or last-N-layers, such as last-2-layers"


@dataclass
class EncoderSettings:
    """One modality's encoder, a Hugging Face model, and how it is trained."""

    model: str
    """A model of the Hugging Face hub, by its id, or a folder that save_pretrained wrote. "demo-encoder" is a
    small one with random weights, made for the corpus "demo-recordings"."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tune: str = "lora"
    """What is trained of it: frozen (nothing), lora (low-rank additions to its attention), full (all weights)
    or last-N-layers, such as last-2-layers."""
    layer: int | None = None
    """Hidden layer whose output is used, as of `awtpn extract`; default: its own."""
    step_seconds: float | None = None
    """Seconds of a time step, over which its output is averaged, as of `awtpn extract`; default: its own."""
    lr: float | None = None
    """Peak learning rate of the encoder's weights; default: 1e-4 with tune lora, else 1e-5."""
    lr_decay: float = 1.0
    """Each layer's learning rate is that of the layer above it times this."""
    weight_decay: float | None = None
    """Weight decay of the encoder's weights; default: optim.weight_decay."""
    lora_rank: int = 8
    """Rank of the additions of tune lora."""
    lora_alpha: float = 16.0
    """Scale of these additions: they are multiplied by lora_alpha / lora_rank."""
    freeze_features: bool = True
    """Do not train what comes before the layers: convolutions, patch embeddings."""
    dropout: float | None = None
    """Every dropout within the encoder in training; default: those of its own configuration."""
    checkpointing: bool = False
    """Compute each layer again in the backward pass in place of keeping it: less memory, more time."""
    pass_seconds: float = 60.0
    """Sound: seconds, padding included, of one forward and backward pass. A longer utterance has its own."""
    pass_pictures: int = 64
    """Pictures of one forward and backward pass. An utterance of more has its own."""
    max_padding: float = 0.2
    """Sound: largest share of padding in a pass."""

    @property
    def trained_layers(self) -> int | None:
        """N of last-N-layers; None of another `tune`."""
        found = LAST_LAYERS.fullmatch(self.tune)
        return int(found[1]) if found else None

    @property
    def is_trained(self) -> bool:
        """Whether any weight of the encoder is trained."""
        return self.tune != "frozen"

    @property
    def peak_lr(self) -> float:
        """The peak learning rate of its top layer."""
        return (1e-4 if self.tune == "lora" else 1e-5) if self.lr is None else self.lr

    def validate(self, modality: str) -> None:
        """Check the settings.

        Raises:
            ValueError: a value is out of range; names the key.
        """
        at = f"encoder.{modality}"
        if not self.model:
            raise ValueError(f"{at}.model is missing: a model of the Hugging Face hub, or its folder")
        if self.tune not in ("frozen", "lora", "full") and self.trained_layers is None:
            raise ValueError(f"{at}.tune is {self.tune!r:.40}; it is {TUNES}")
        ranges: dict[str, tuple[float, float]] = {
            "step_seconds": (1e-6, math.inf),
            "lr": (1e-12, math.inf),
            "lr_decay": (1e-6, 1.0),
            "weight_decay": (0.0, math.inf),
            "lora_rank": (1, 1 << 16),
            "lora_alpha": (1e-6, math.inf),
            "dropout": (0.0, 0.99),
            "pass_seconds": (1e-3, math.inf),
            "pass_pictures": (1, math.inf),
            "max_padding": (0.0, 1.0),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and least <= value <= most):
                bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise ValueError(f"{at}.{name} must be {bounds}, not {value}")

    def record(self) -> dict[str, Any]:
        """The settings as plain data, for a card."""
        return asdict(self)


ENCODER_SETTINGS = tuple(f.name for f in fields(EncoderSettings))


def encoder_settings(value: Mapping[str, Any]) -> dict[str, EncoderSettings]:
    """The section `encoder` as settings by modality, of plain data or of settings.

    Raises:
        ValueError: a setting does not exist or has a wrong type; names the key.
    """
    if not isinstance(value, Mapping):
        raise ValueError(
            "encoder takes encoders by modality, such as {audio: {model: facebook/hubert-base-ls960}}, not "
            f"{value!r:.60}"
        )
    found = {}
    for name, given in value.items():
        if isinstance(given, EncoderSettings):
            found[name] = given
            continue
        key = f"encoder.{name}"
        if not isinstance(given, Mapping):
            raise ValueError(
                f"{key} takes settings such as {{model: facebook/hubert-base-ls960}}, not {given!r:.60}"
            )
        for setting in given:
            if setting not in ENCODER_SETTINGS:
                raise ValueError(
                    f"there is no {key}.{setting!s:.60}; an encoder has {', '.join(ENCODER_SETTINGS)}"
                )
        if "model" not in given:
            raise ValueError(f"{key}.model is missing: a model of the Hugging Face hub, or its folder")
        plain = {n: _number(v) if _is_float(n) else v for n, v in given.items()}
        found[name] = from_record(EncoderSettings, plain, key)
    return found


def _is_float(name: str) -> bool:
    return "float" in str(EncoderSettings.__dataclass_fields__[name].type)


def _number(value: Any) -> Any:
    """An integer, or text such as "1e-4" (YAML knows 1.0e-4 only), as a float; all else as it is."""
    with contextlib.suppress(ValueError):
        return float(value) if isinstance(value, int | str) and not isinstance(value, bool) else value
    return value
