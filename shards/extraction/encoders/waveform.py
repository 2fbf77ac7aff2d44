"""Sound as recorded, in place of features: 16-bit samples, which models are fine-tuned on.

A time step is a fixed number of samples, and an utterance's last step is filled up with zeros; its true
number of samples is stored, too. Sound of 16 bits in one channel at `rate` is kept exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shards.format.recording import WAVEFORM, Recording, as_int16, check_recording

RATE = 16000


class Waveform:
    """Audio "encoder" of recordings, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        rate: samples per second.
        step_seconds: seconds of a step; a whole number of samples.

    Raises:
        ValueError: a step is not a whole number of samples.
    """

    modality = "audio"
    name = "waveform"

    def __init__(self, *, rate: int = RATE, step_seconds: float = 0.1) -> None:
        samples = round(rate * step_seconds) if math.isfinite(step_seconds) else 0
        if samples < 1 or abs(samples - rate * step_seconds) > 1e-6:
            raise ValueError(
                f"waveform: step_seconds={step_seconds:g} at rate={rate} is {rate * step_seconds:g} samples; "
                "a step has a whole number of samples, and at least one"
            )
        self.rate = rate
        self.step_seconds = step_seconds
        self.recording = Recording(WAVEFORM, float(rate), [samples])
        check_recording(self.recording)
        self.dim = samples
        self.settings: dict[str, Any] = {
            "id": self.name,
            "version": 1,
            "rate": rate,
            "step_seconds": step_seconds,
        }

    def encode(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """int16 [samples] for each wave float32 [samples] at `rate`.

        Raises:
            ValueError: a wave has values that are not numbers, which int16 cannot hold.
        """
        if any(np.isnan(wave).any() for wave in waves):
            raise ValueError("its sound has values that are not numbers (NaN); write the file again")
        return [as_int16(wave) for wave in waves]
