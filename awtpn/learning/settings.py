"""Configuration of the losses, the prototypes, the optimizer and the augmentation; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

# Two modalities that the cross-modal terms compare: the anchor, and the one that the negative is of.
Pair = tuple[str, str]


@dataclass
class OptimConfig:
    """The optimizer and its schedule."""

    lr: float = 3e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.3
    """AdamW's decoupled weight decay."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: falls to 0 at the run's last step; constant: stays at lr."""
    warmup_steps: int | None = None
    """Optimizer steps over which the learning rate rises linearly from 0; default: by warmup_share."""
    warmup_share: float = 0.05
    """The same as a share of the run's steps, where warmup_steps is not given."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for an invalid setting."""
        if self.lr <= 0:
            raise ValueError(f"optim.lr must be above 0, not {self.lr}")
        for name in ("weight_decay", "grad_clip", "warmup_steps"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"optim.{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"optim.warmup_share must lie in [0, 1), not {self.warmup_share}")

    def steps_of_warmup(self, total_steps: int) -> int:
        """Optimizer steps over which the learning rate rises, in a run of `total_steps`."""
        given = self.warmup_steps
        return round(self.warmup_share * total_steps) if given is None else given


@dataclass
class PrototypesConfig:
    """How prototypes are initialized, updated and compared over ranks."""

    update: Literal["gradient", "ema"] = "gradient"
    """gradient: learned like any parameter; ema: moving averages of class means."""
    init: Literal["random", "data"] = "random"
    """random: N(0, 0.02^2); data: class means (K = 1) or k-means++ within each class (K > 1)."""
    ema_decay: float = 0.99
    """Share of the old prototypes that an EMA step keeps."""
    check_every: int = 100
    """Steps between comparisons of prototypes and all replicated weights over ranks; 0: never."""
    on_drift: Literal["error", "heal"] = "error"
    """If ranks differ: stop and name the rank, or copy rank 0's tensors and optimizer state to all."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for an invalid setting."""
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"prototypes.ema_decay must lie in [0, 1), not {self.ema_decay}")
        if self.check_every < 0:
            raise ValueError(f"prototypes.check_every must not be negative, but is {self.check_every}")


# Keys of `AugmentConfig` that turn on what changes recorded sound, recorded pictures, or both.
SOUND_KEYS = ("noise_snr", "gain", "drop_time", "drop_frequency")
PICTURE_KEYS = ("flip", "brightness", "contrast", "shift")
LARGEST_COUNT = 1000


@dataclass
class AugmentConfig:
    """Random changes of recordings in training, before an encoder; by default none."""

    crop: list[float] | None = None
    """Range of the share of an utterance that is kept, such as [0.8, 1.0]: a span of sound and pictures."""
    noise_snr: list[float] | None = None
    """Range of the signal-to-noise ratio, in dB, of white noise that is added to sound, such as [10, 30]."""
    noise_probability: float = 1.0
    """Share of utterances whose sound gets noise, where noise_snr is given."""
    gain: list[float] | None = None
    """Range of the gain of sound, in dB, such as [-6, 6]."""
    drop_time: int = 0
    """Most spans of sound that are set to 0; each utterance draws a number from 0 to this one."""
    drop_time_seconds: list[float] = field(default_factory=lambda: [0.0625, 0.125])
    """Range of the length of such a span; all together, they are at most half of an utterance."""
    drop_frequency: int = 0
    """Most frequency bands that are removed from sound; each utterance draws a number from 0 to this one."""
    drop_frequency_width: float = 0.1
    """Width of such a band, as a share of all frequencies of the recording."""
    flip: float = 0.0
    """Share of utterances whose pictures are mirrored, left to right."""
    brightness: list[float] | None = None
    """Range of the factor of the pictures' values, such as [0.8, 1.2]."""
    contrast: list[float] | None = None
    """Range of the factor of their distances from the utterance's mean value, such as [0.8, 1.2]."""
    shift: float = 0.0
    """Largest shift of an utterance's pictures, as a share of height and width; edges are repeated."""

    def keys_in_use(self, keys: Iterable[str] = ("crop", *SOUND_KEYS, *PICTURE_KEYS)) -> list[str]:
        """Those of `keys` that change recordings."""
        return [key for key in keys if getattr(self, key)]

    def validate(self) -> None:
        """Raise ValueError, naming the key, for an invalid setting."""
        ranges = {
            "crop": (0.001, 1.0),
            "noise_snr": (-100.0, 200.0),
            "gain": (-100.0, 100.0),
            "drop_time_seconds": (0.0001, 3600.0),
            "brightness": (0.001, 1000.0),
            "contrast": (0.001, 1000.0),
        }
        for name, (least, most) in ranges.items():
            given = getattr(self, name)
            if given is None:
                continue
            # Written so that NaN is refused, too.
            if len(given) != 2 or not least <= given[0] <= given[1] <= most:
                raise ValueError(
                    f"augment.{name} takes a range [LOW, HIGH] from {least:g} to {most:g}, not {given!s:.60}"
                )
        for name in ("noise_probability", "flip", "shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must lie in [0, 1], not {getattr(self, name)}")
        for name in ("drop_time", "drop_frequency"):
            if not 0 <= getattr(self, name) <= LARGEST_COUNT:
                raise ValueError(
                    f"augment.{name} must be from 0 to {LARGEST_COUNT}, not {getattr(self, name)}"
                )
        if not 0 < self.drop_frequency_width < 1:
            raise ValueError(
                f"augment.drop_frequency_width must be above 0 and below 1, not {self.drop_frequency_width}"
            )


# Loss term -> the key of its weight in LossConfig. Training, metrics.jsonl, TensorBoard, reports and
# ablations take the terms and their order from here; `losses.py` holds a function for each.
TERMS = {
    "align": "lambda_align",
    "intra": "lambda_intra",
    "inter": "lambda_inter",
    "contrast": "lambda_contrast",
    "ce": "eta_ce",
    "mse": "eta_mse",
}


# Terms that compare two modalities of an utterance.
CROSS_MODAL = ("intra", "inter", "contrast")


def terms_of(network: str) -> tuple[str, ...]:
    """The loss terms that a model of this `model.name` is trained by, in the order of TERMS."""
    return tuple(TERMS) if network == "awtpn" else ("ce",)


@dataclass
class LossConfig:
    """Weights and forms of the loss terms."""

    lambda_align: float = 0.2
    """Weight of the distance of time steps to their class's prototype."""
    lambda_intra: float = 0.05
    """Weight of 1 - cos(a, v), of the means of an utterance's modalities, such as audio and video."""
    lambda_inter: float = 0.05
    """Weight of the hinge that ranks an utterance's own second modality above a negative's."""
    lambda_contrast: float = 0.005
    """Weight of the distances between the mean of the first modality and own or negative ones."""
    eta_ce: float = 1.0
    """Weight of the cross-entropy: of the classes, of each label, or of the levels of values."""
    eta_mse: float = 0.5
    """Weight of the squared error of the probabilities, or of the error of values in eighths of the range."""
    align_form: Literal["prototypical", "reference"] = "prototypical"
    """prototypical: -log softmax(-tau d2) at the true class; reference: d2, which can collapse."""
    inter_form: Literal["margin", "reference"] = "margin"
    """margin: relu(m - cos(a,v) + cos(a,v_neg)); reference: the opposite signs, as published."""
    tau: float = 1.0
    """Factor of the distances in the prototypical align form."""
    margin_inter: float = 1.0
    """Margin m of inter."""
    margin_contrast: float = 1.0
    """Margin m of contrast."""
    negatives: Literal["group", "global", "reference"] = "group"
    """group: of another class, within negative_group places; global: of another class, from the whole global
    batch; reference: a permutation of the micro-batch, of any class. Where a negative can lie in another
    micro-batch (group: micro-batches that negative_group does not divide; global: accumulation), a step has
    one more forward pass."""
    negative_group: int = 8
    """Consecutive places of the global batch that form a group to draw negatives from; it divides
    train.global_batch_size."""
    pair_weights: dict[str, float] = field(default_factory=dict)
    """Weights of pairs of modalities in intra, inter and contrast, such as {audio-video: 1, audio-text: 2};
    the terms are weighted means over pairs; default: 1 each."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weigh classes in the cross-entropy by utterances / (classes * utterances of the class); of
    several labels, weigh the absence and the presence of each in the same way. Labels that most utterances
    lack need it to be found, and get higher probabilities than their share."""
    focal_gamma: float = 0.0
    """Exponent of the focal factor (1 - p)^gamma in the cross-entropy, p the probability of the truth."""
    label_smoothing: float = 0.0
    """Share of the cross-entropy's target that is spread evenly over all classes."""
    value_error: Literal["squared", "absolute"] = "squared"
    """Regression: the error that eta_mse weighs, in eighths of the range: squared or absolute (L1), for which
    eta_mse 2 is a good weight."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for an invalid setting."""
        if self.tau <= 0:
            raise ValueError(f"loss.tau must be above 0, not {self.tau}")
        for name in (*TERMS.values(), "margin_inter", "margin_contrast"):
            if not getattr(self, name) >= 0:  # nor NaN
                raise ValueError(f"loss.{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1 or not self.focal_gamma >= 0:
            raise ValueError(
                "loss.label_smoothing must lie in [0, 1) and loss.focal_gamma must not be negative, but they "
                f"are {self.label_smoothing} and {self.focal_gamma}"
            )
        if self.negative_group < 2:
            raise ValueError(f"loss.negative_group must be at least 2, not {self.negative_group}")

    def check_task(self, task_type: str) -> None:
        """Raise ValueError, naming the key, for a setting that a task does not have."""
        if task_type == "regression":
            for name, off in (("class_weights", "none"), ("focal_gamma", 0.0), ("label_smoothing", 0.0)):
                if getattr(self, name) != off:
                    raise ValueError(f"loss.{name} is for classes and labels: set it to {off} for regression")
        elif self.value_error != "squared":
            raise ValueError(f"loss.value_error is for regression: set it to squared for {task_type}")

    def check_pairs(self, modalities: Iterable[str]) -> None:
        """Check the weights of pairs for a model of these modalities.

        Raises:
            ValueError: there is no such pair, or a weight is out of range; names it.
        """
        pairs = ["-".join(pair) for pair in combinations(modalities, 2)]
        for name, weight in self.pair_weights.items():
            if name not in pairs:
                raise ValueError(
                    f"loss.pair_weights names {name!r:.60}; with these model.modalities, in their order, "
                    f"{'the pairs are ' + ', '.join(pairs) if pairs else 'there is no pair'}"
                )
            if not 0 <= weight < math.inf:
                raise ValueError(f"loss.pair_weights.{name} must not be negative, but is {weight}")
        if pairs and not any(self.pair_weights.get(name, 1.0) for name in pairs):
            raise ValueError(
                "loss.pair_weights are all 0; to leave the cross-modal terms out, set loss.lambda_intra, "
                "loss.lambda_inter and loss.lambda_contrast to 0"
            )

    def shares_of_pairs(self, modalities: Iterable[str]) -> dict[Pair, float]:
        """The pairs to compare, in the order of `modalities`, with weights that sum to 1."""
        pairs = combinations(modalities, 2)
        weights = {pair: self.pair_weights.get("-".join(pair), 1.0) for pair in pairs}
        total = sum(weights.values())
        return {pair: weight / total for pair, weight in weights.items() if weight}

    def weights(self, terms: Iterable[str] = TERMS) -> tuple[float, ...]:
        """The weights of these terms, in their order."""
        return tuple(getattr(self, TERMS[name]) for name in terms)
