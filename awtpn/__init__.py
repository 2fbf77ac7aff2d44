"""AWTPN, the Adaptive Weighted Temporal Prototype Network for multimodal emotion recognition."""

from awtpn.model import AWTPN, ModelConfig, ModelOutput
from awtpn.predictor import Prediction, Predictor

__all__ = ["AWTPN", "ModelConfig", "ModelOutput", "Prediction", "Predictor"]
