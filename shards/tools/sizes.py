"""How much sound there is in a dataset; `awtpn shards info` tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from shards.format.index import ShardIndex
from shards.format.schema import Modality

SECONDS_OF_HOUR, SECONDS_OF_MINUTE = 3600, 60


def sound_seconds(indexes: Iterable[ShardIndex], modalities: Mapping[str, Modality]) -> dict[str, float]:
    """Seconds of sound by modality, from the true numbers of samples."""
    sound = {name: m.recording for name, m in modalities.items() if m.recording and m.is_sound}
    samples = dict.fromkeys(sound, 0)
    for index in indexes:
        for name in sound:
            samples[name] += int(index.samples[name].sum(dtype=np.int64))
    return {name: samples[name] / recording.rate for name, recording in sound.items()}


def format_duration(seconds: float) -> str:
    """Seconds as text: 12.5 s, 3.4 min, 61.2 h."""
    if seconds < 2 * SECONDS_OF_MINUTE:
        return f"{seconds:,.4g} s"
    if seconds < 2 * SECONDS_OF_HOUR:
        return f"{seconds / SECONDS_OF_MINUTE:,.1f} min"
    return f"{seconds / SECONDS_OF_HOUR:,.1f} h"
