"""TODO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NegativesForm = Literal["group", "global", "reference"]


@dataclass
class OptimConfig:
    """The optimiser and its schedule."""

    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: down to 0 at the run's last step; constant: stays at lr."""
    warmup_steps: int = 20
    """Optimizer steps over which the learning rate rises linearly from 0."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a setting that no optimiser can have."""
        if self.lr <= 0:
            raise ValueError(f"optim.lr must be above 0, not {self.lr}")
        for name in ("weight_decay", "grad_clip", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} must not be negative, but is {getattr(self, name)}")


@dataclass
class PrototypesConfig:
    """How the prototype table starts, moves and is watched."""

    update: Literal["gradient", "ema"] = "gradient"
    """gradient: learned like any parameter; ema: moving averages of class means."""
    init: Literal["random", "data"] = "random"
    """random: N(0, 0.02^2); data: class means (K = 1) or k-means++ within each class (K > 1)."""
    ema_decay: float = 0.99
    """Share of the old table that an EMA step keeps."""
    check_every: int = 100
    """Steps between comparisons of the table and all replicated weights over ranks; 0: never."""
    on_drift: Literal["error", "heal"] = "error"
    """When ranks differ: stop and name the rank, or take rank 0's tensors and optimizer state."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a setting that no table can have."""
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"prototypes.ema_decay must lie in [0, 1), not {self.ema_decay}")
        if self.check_every < 0:
            raise ValueError(f"prototypes.check_every must not be negative, but is {self.check_every}")


TERMS = ("align", "intra", "inter", "contrast", "ce", "mse")


WEIGHTS = ("lambda_align", "lambda_intra", "lambda_inter", "lambda_contrast", "eta_ce", "eta_mse")


@dataclass
class LossConfig:
    """Weights and forms of the loss terms."""

    lambda_align: float = 1.0
    """Weight of the steps' closeness to their class's prototype."""
    lambda_intra: float = 0.5
    """Weight of 1 - cos(audio mean, video mean) of an utterance."""
    lambda_inter: float = 0.5
    """Weight of the ranking of an utterance's own video over a negative's."""
    lambda_contrast: float = 0.2
    """Weight of the distances between audio mean and own / negative video mean."""
    eta_ce: float = 1.0
    """Weight of the cross-entropy."""
    eta_mse: float = 0.5
    """Weight of the squared error of the class probabilities."""
    align_form: Literal["prototypical", "reference"] = "prototypical"
    """prototypical: -log softmax(-tau d2) at the true class; reference: d2 itself, which collapses."""
    inter_form: Literal["margin", "reference"] = "margin"
    """margin: relu(m - cos(a,v) + cos(a,v_neg)); reference: the opposite signs, as published."""
    tau: float = 1.0
    """Sharpness of the prototypical align form."""
    margin_inter: float = 1.0
    """Margin m of inter."""
    margin_contrast: float = 1.0
    """Margin m of contrast."""
    negatives: NegativesForm = "group"
    """group: of another class, within negative_group places; global: of another class, the whole global
    batch (accumulation 1); reference: a permutation of the micro-batch, whatever the classes."""
    negative_group: int = 8
    """Consecutive places of the global batch that serve each other as negatives."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: cross-entropy weighs classes by utterances / (classes * utterances of the class)."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a setting that no loss can have."""
        if self.tau <= 0:
            raise ValueError(f"loss.tau must be above 0, not {self.tau}")
        for name in (*WEIGHTS, "margin_inter", "margin_contrast"):
            if not getattr(self, name) >= 0:  # nor NaN
                raise ValueError(f"loss.{name} must not be negative, but is {getattr(self, name)}")
        if self.negative_group < 2:
            raise ValueError(f"loss.negative_group must be at least 2, not {self.negative_group}")

    def weights(self) -> tuple[float, ...]:
        """The terms' weights, in the order of TERMS."""
        return tuple(getattr(self, name) for name in WEIGHTS)
