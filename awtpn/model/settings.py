"""The configuration sections `model` and `task`; the docstring under each key is its `--help`. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from shards.format.schema import MODALITY_NAME

WIDEST = 1 << 16  # a [WIDEST, WIDEST] query or key map takes 17 GB in float32
MOST_LEVELS = 1000
# The paper's modalities, in its order, with their weights alpha_A and beta_V.
PUBLISHED_WEIGHTS = {"audio": 0.3, "video": 0.7}
# Of a modality without settings of its own.
DEFAULT_WEIGHT = 1.0
# By `model.distances`.
DEFAULT_DISTANCE_SCALE = {"relative": 5.0, "absolute": 1.0}
# Setting of a modality -> the key that the paper's symbol or an earlier version gave it.
OLD_KEYS = {
    "audio": {"weight": "alpha_audio", "distance_scale": "distance_scale_audio"},
    "video": {"weight": "beta_video", "distance_scale": "distance_scale_video"},
}
# The same by dotted keys: "model.alpha_audio" -> "model.modalities.audio.weight".
NEW_KEYS = {
    f"model.{old}": f"model.modalities.{modality}.{setting}"
    for modality, keys in OLD_KEYS.items()
    for setting, old in keys.items()
}


# Keys of ModelConfig that an earlier version did not have -> the value by which it behaved.
FORMER_MODEL: dict[str, Any] = {
    "name": "awtpn",
    "distances": "absolute",
    "statistics": False,
    "statistics_dropout": 0.0,
}


@dataclass
class ModalitySettings:
    """What the network does with one modality."""

    weight: float | None = None
    """Weight in the fused vector (Eq. 19-21); default: 1 (the paper: 0.3 for audio, 0.7 for video)."""
    distance_scale: float | None = None
    """Factor on its distances to prototypes; default: 5 for relative ones, 1 for absolute ones."""


SETTINGS = tuple(f.name for f in fields(ModalitySettings))


@dataclass
class ModelConfig:
    """The network and its shape (Eq. 6-8, 15-21)."""

    name: Literal["awtpn", "late-fusion", "gated-attention", "gru", "cross-modal"] = "awtpn"
    """awtpn, or a baseline to compare it with. A baseline takes shared_dim and dropout, and is trained by the
    cross-entropy alone: it has no prototypes, no reliability weights and no other loss terms."""
    shared_dim: int = 256
    """D, the width of the space that all modalities share."""
    dropout: float = 0.5
    """Dropout after the projection into the shared space."""
    prototypes_per_class: int = 1
    """K; with more than one, a step's distance to a class is that to its nearest prototype."""
    modalities: dict[str, ModalitySettings] = field(
        default_factory=lambda: {name: dict.fromkeys(SETTINGS) for name in PUBLISHED_WEIGHTS}  # type: ignore[misc]
    )
    """Modalities to use, each with its weight and distance_scale. A list of names selects among those that
    are configured: --model.modalities audio,text."""
    modality_dropout: float | dict[str, float] = 0.0
    """Probability to hide a modality of an utterance in training, for all or by name; never its last one."""
    alpha_audio: float | None = None
    """The paper's alpha_A: the same as modalities.audio.weight."""
    beta_video: float | None = None
    """The paper's beta_V: the same as modalities.video.weight."""
    distance_scale_audio: float | None = None
    """The same as modalities.audio.distance_scale."""
    distance_scale_video: float | None = None
    """The same as modalities.video.distance_scale."""
    awm: Literal["adaptive", "uniform"] = "adaptive"
    """adaptive: weigh steps by reliability (the paper); uniform: plain averages (its ablation)."""
    distances: Literal["relative", "absolute"] = "relative"
    """relative: squared distances to prototypes are divided by their spread over the time steps at the start
    of the training, whatever the width and the features; absolute: as they are (the paper). Then
    distance_scale multiplies them."""
    statistics: bool = True
    """Let the classifier also read the plain mean and standard deviation over time of the standardized
    features, as a linear model does; false: of the fused vector alone (the paper)."""
    statistics_dropout: float | None = None
    """Dropout of these means and deviations; null: model.dropout. Without it the classifier can learn noisy
    ones by heart."""

    def __post_init__(self) -> None:
        """Take `modalities` also as a name, a list of names, or plain mappings.

        Raises:
            ValueError: it is none of these.
        """
        self.modalities = {
            name: settings
            if isinstance(settings, ModalitySettings)
            else ModalitySettings(**checked_settings(name, settings))
            for name, settings in modalities_as_map(self.modalities).items()
        }

    def validate(self) -> None:
        """Check the settings.

        Raises:
            ValueError: a value is out of range, or two keys contradict each other; names the keys.
        """
        self.__post_init__()  # for a list that was assigned
        if not self.modalities:
            raise ValueError("model.modalities must name at least one modality")
        for name in self.modalities:
            if not MODALITY_NAME.fullmatch(name):
                raise ValueError(
                    f"model.modalities names {name!r:.60}, which no dataset can have: a name consists of "
                    "small letters, digits and _"
                )
        for name in ("shared_dim", "prototypes_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > WIDEST:
                raise ValueError(f"model.{name} must be at most {WIDEST}, not {getattr(self, name)}")
        for name in ("dropout", "statistics_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"model.{name} must lie in [0, 1), not {value}")
        self._check_old_keys()
        for name in self.modalities:
            if not 0 <= self.fusion_weight(name) < math.inf:
                key = self._key(name, "weight")
                raise ValueError(f"{key} must not be negative, but is {self.fusion_weight(name)}")
            if not 0 < self.distance_scale(name) < math.inf:
                key = self._key(name, "distance_scale")
                raise ValueError(f"{key} must be above 0, not {self.distance_scale(name)}")
        self._check_dropout()

    def _check_old_keys(self) -> None:
        for name, keys in OLD_KEYS.items():
            for setting, key in keys.items():
                old, new = getattr(self, key), getattr(self.modalities.get(name), setting, None)
                if old is not None and new is not None and old != new:
                    raise ValueError(
                        f"model.{key} is {old} and model.modalities.{name}.{setting} is {new}: they are the "
                        "same setting; give only one of them"
                    )

    def _check_dropout(self) -> None:
        given = self.modality_dropout
        if isinstance(given, Mapping) and (unknown := [n for n in given if n not in self.modalities]):
            raise ValueError(
                f"model.modality_dropout names {unknown[0]}, which is not among model.modalities "
                f"{', '.join(self.modalities)}"
            )
        for name in self.modalities:
            if not 0 <= self.dropout_of(name) < 1:
                raise ValueError(f"model.modality_dropout must lie in [0, 1), not {self.dropout_of(name)}")

    def _key(self, modality: str, setting: str) -> str:
        """The key by which a setting was given."""
        old = OLD_KEYS.get(modality, {}).get(setting)
        if old is not None and getattr(self, old) is not None:
            return f"model.{old}"
        return f"model.modalities.{modality}.{setting}"

    def has_old_key(self, modality: str, setting: str) -> bool:
        """Whether a modality's setting is given by its old key, such as `alpha_audio`."""
        old = OLD_KEYS.get(modality, {}).get(setting)
        return old is not None and getattr(self, old) is not None

    def _setting(self, modality: str, setting: str, default: float) -> float:
        given: float | None = getattr(self.modalities[modality], setting)
        if given is None and (old := OLD_KEYS.get(modality, {}).get(setting)):
            given = getattr(self, old)
        return default if given is None else given

    def fusion_weight(self, modality: str) -> float:
        """Weight of a modality's pooled vector in the fused one (Eq. 19-21)."""
        return self._setting(modality, "weight", DEFAULT_WEIGHT)

    def distance_scale(self, modality: str) -> float:
        """Factor on a modality's squared distances to prototypes."""
        return self._setting(modality, "distance_scale", DEFAULT_DISTANCE_SCALE[self.distances])

    @property
    def dropout_of_statistics(self) -> float:
        """Dropout of the means and deviations that the classifier reads; 0 if it reads none."""
        if not self.statistics:
            return 0.0
        return self.dropout if self.statistics_dropout is None else self.statistics_dropout

    def dropout_of(self, modality: str) -> float:
        """Probability that training hides a modality of an utterance."""
        given = self.modality_dropout
        return given.get(modality, 0.0) if isinstance(given, Mapping) else given

    def record(self) -> dict[str, Any]:
        """The section as plain data, with every modality's settings in the map and none by its old key.

        A model that is loaded from it stays as it was trained, whatever later defaults are.
        """
        plain = asdict(self)
        plain["modalities"] = {
            name: {"weight": self.fusion_weight(name), "distance_scale": self.distance_scale(name)}
            for name in self.modalities
        }
        old = {key for keys in OLD_KEYS.values() for key in keys.values()}
        return {key: value for key, value in plain.items() if key not in old}


@dataclass
class TaskConfig:
    """What the model recognizes; see `awtpn.model.task` for what the prototypes stand for in each task."""

    type: Literal["classification", "regression", "multilabel"] | None = None
    """One class, values, or several labels at once; default: the type of the data's target."""
    # Both chosen by measurement: see tests/benchmarks/results/targets-2026-11-29.md.
    levels: int = 7
    """Regression: values of each dimension that have prototypes, evenly spaced over its range."""
    head: Literal["levels", "linear"] = "levels"
    """Regression: how a value is read off. levels: the mean of the levels, by their probabilities; linear:
    one output per dimension."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for an invalid setting."""
        if not 2 <= self.levels <= MOST_LEVELS:
            raise ValueError(f"task.levels must lie in 2 to {MOST_LEVELS}, not {self.levels}")

    def check_task(self, task_type: str) -> None:
        """Raise ValueError, naming the key, for a setting that a task does not have."""
        for name, off in (("levels", TaskConfig.levels), ("head", TaskConfig.head)):
            if task_type != "regression" and getattr(self, name) != off:
                raise ValueError(f"task.{name} is for regression: set it to {off} for {task_type}")


def modalities_as_map(value: Any) -> dict[str, Any]:
    """`model.modalities` as a map from names to settings: of a map, a list of names, or "audio,text".

    Raises:
        ValueError: it is none of these, or names a modality twice.
    """
    if isinstance(value, str):
        value = [name.strip() for name in value.strip("[] ").split(",")]
    if isinstance(value, Mapping):
        return {str(name): {} if settings is None else settings for name, settings in value.items()}
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(
            "model.modalities takes names, such as [audio, video], or a map from a name to its settings, "
            f"not {value!r:.60}"
        )
    if len(set(value)) != len(value):
        raise ValueError(f"model.modalities names a modality twice: {', '.join(value)}")
    return {name: {} for name in value}


def select_modalities(configured: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """`value` as a map, where names without settings keep those of `configured`."""
    return {name: settings or configured.get(name, {}) for name, settings in modalities_as_map(value).items()}


def checked_settings(modality: str, settings: Any) -> dict[str, Any]:
    """The settings of one modality that are given.

    Raises:
        ValueError: not a mapping, a setting that does not exist, or not a number; names it.
    """
    key = f"model.modalities.{modality}"
    if not isinstance(settings, Mapping):
        raise ValueError(f"{key} takes settings such as {{weight: 0.5}}, not {settings!r:.60}")
    for name in settings:
        if name not in SETTINGS:
            raise ValueError(f"there is no {key}.{name:.60}; a modality has {', '.join(SETTINGS)}")
    return {name: _number(f"{key}.{name}", value) for name, value in settings.items() if value is not None}


def _number(key: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} takes a number, not {value!r:.60}")
    return number
