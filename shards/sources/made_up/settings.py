"""What the generator of made-up corpora takes: its settings, their ranges, and two named sets of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shards.format.schema import MODALITY_NAME

CARRIERS = ("steps", "mean", "deviation", "both")

# Smallest and largest value. All others are numbers of at least 0.
RANGES: dict[str, tuple[float, float]] = {
    "utterances": (1, 10_000_000),
    "val": (0, 10_000_000),
    "test": (0, 10_000_000),
    "steps": (1, 100_000),
    "informative": (0, 1),
    "classes": (2, 1_000),
    "imbalance": (1, 1_000),
    "missing": (0, 1),
    "label_noise": (0, 1),
    "speakers": (0, 10_000_000),
    "smoothness": (0, 0.999),
}

# Made-up corpora that comparisons of models use; all other settings have their defaults. The docstring of
# `sources.synthetic` has their command lines.
PRESETS: dict[str, dict[str, Any]] = {
    "synthetic-small": {
        "utterances": 386,
        "val": 0,
        "test": 0,
        "steps": 100,
        "carrier": "both",
        "imbalance": 2.0,
        "speaker_offset": 1.0,
        "signal_offset": 1.4,
        "smoothness": 0.9,
        "dims": ("audio=27", "video=27"),
    },
    "synthetic-long": {
        "utterances": 1_200,
        "steps": 120,
        "informative": 0.1,
        "imbalance": 5.0,
        "missing": 0.1,
        "label_noise": 0.1,
    },
}


@dataclass(frozen=True)
class Settings:
    """The settings of a made-up corpus; `sources.synthetic.read` says what each means.

    Raises:
        ValueError: a value is out of its range, or does not fit the others; names the setting.
    """

    utterances: int = 1_000
    val: int = 400
    test: int = 400
    steps: int = 40
    informative: float = 0.15
    classes: int = 6
    imbalance: float = 1.0
    missing: float = 0.0
    useless: str | None = None
    label_noise: float = 0.0
    speakers: int = 24
    speaker_offset: float = 0.0
    carrier: str = "steps"
    signal: float = 0.4
    signal_noise: float = 0.6
    signal_offset: float = 1.0
    noise: float = 2.0
    noise_offset: float = 0.0
    smoothness: float = 0.0
    dims: tuple[str, ...] = ("audio=32", "video=24")
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int | float):
                _check_range(name, value)
        if self.carrier not in CARRIERS:
            raise ValueError(f"carrier {self.carrier!r}: must be {' or '.join(CARRIERS)}")
        if self.utterances < self.classes:
            raise ValueError(
                f"utterances {self.utterances}: must be at least 1 for each of the {self.classes} classes"
            )
        if self.speaker_offset and not self.speakers:
            raise ValueError("speaker_offset needs speakers: set speakers to at least 1")
        names = list(self.features)
        if self.missing and len(names) == 1:
            raise ValueError(f"missing {self.missing:g}: must be 0, since the only modality is never missing")
        if self.useless is not None and (self.useless not in names or len(names) == 1):
            raise ValueError(
                f"useless {self.useless!r}: must be one of several modalities; dims has {', '.join(names)}"
            )

    @property
    def features(self) -> Mapping[str, int]:
        """Features per time step of each modality."""
        found: dict[str, int] = {}
        for word in self.dims:
            name, _, dim = word.partition("=")
            if not (MODALITY_NAME.fullmatch(name) and dim.isdecimal() and int(dim)) or name in found:
                raise ValueError(
                    f"dims {word!r}: write MODALITY=FEATURES, such as audio=32: a name of small letters, "
                    "digits and _, which no other modality has, and at least one feature"
                )
            found[name] = int(dim)
        if not found:
            raise ValueError("dims is empty: name at least one modality, such as audio=32")
        return found


def _check_range(name: str, value: float) -> None:
    low, high = RANGES.get(name, (0, math.inf))
    if not low <= value <= high or math.isinf(value):
        limits = f"from {low:g} to {high:,}" if high < math.inf else f"at least {low:g}"
        raise ValueError(f"{name} {value:g}: must be {limits}")
