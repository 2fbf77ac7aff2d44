"""The configuration section `model`; imports no torch. The docstring under each key is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

WIDEST = 1 << 16  # a [WIDEST, WIDEST] query or key map takes 17 GB in float32


@dataclass
class ModelConfig:
    """The shape of the network (Eq. 6-8, 15-21)."""

    shared_dim: int = 256
    """D, the width of the space that all modalities share."""
    dropout: float = 0.1
    """Dropout after the projection into the shared space."""
    prototypes_per_class: int = 1
    """K; with more than one, a step's distance to a class is that to its nearest prototype."""
    alpha_audio: float = 0.3
    """Weight of audio in the fused vector; an utterance without video uses audio alone."""
    beta_video: float = 0.7
    """Weight of video in the fused vector; an utterance without audio uses video alone."""
    distance_scale_audio: float = 1.0
    """Factor on audio's squared distances; they grow with D, so wide models want about 1/D."""
    distance_scale_video: float = 1.0
    """Factor on video's squared distances."""
    modalities: list[str] = field(default_factory=lambda: ["audio", "video"])
    """Modalities to use: both, or one of "audio" and "video"."""
    awm: Literal["adaptive", "uniform"] = "adaptive"
    """adaptive: weigh steps by reliability (the paper); uniform: plain averages (its ablation)."""

    def validate(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a value is out of range; names the key.
        """
        if not self.modalities or set(self.modalities) - {"audio", "video"}:
            raise ValueError(f"model.modalities must name audio, video or both, not {self.modalities}")
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"model.modalities names a modality twice: {self.modalities}")
        for name in ("shared_dim", "prototypes_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > WIDEST:
                raise ValueError(f"model.{name} must be at most {WIDEST}, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must lie in [0, 1), not {self.dropout}")
        for name in ("distance_scale_audio", "distance_scale_video"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name} must be above 0, not {getattr(self, name)}")

    def fusion_weight(self, modality: str) -> float:
        """Weight of a modality's pooled vector in the fused one (Eq. 19-21)."""
        return self.alpha_audio if modality == "audio" else self.beta_video

    def distance_scale(self, modality: str) -> float:
        """Factor on a modality's squared distances to prototypes."""
        return self.distance_scale_audio if modality == "audio" else self.distance_scale_video
