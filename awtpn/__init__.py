"""AWTPN, the Adaptive Weighted Temporal Prototype Network for multimodal emotion recognition."""

from awtpn.model import AWTPN, ModelConfig, ModelOutput

__all__ = ["AWTPN", "ModelConfig", "ModelOutput"]
