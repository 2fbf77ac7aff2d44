"""What balancing takes for the work of an utterance."""

from __future__ import annotations

import numpy as np

from shards.format.recording import Recording
from shards.format.schema import Modality
from shards.planning.balance import work_of

SOUND = Modality(1600, "int16", Recording("waveform", 16000.0, [1600]))
PICTURES = Modality(48, "uint8", Recording("frames", 10.0, [4, 4, 3], 90))


def test_work_is_time_steps_and_of_recordings_bytes() -> None:
    steps = {"audio": np.array([5, 0], np.int32), "video": np.array([2, 7], np.int32)}
    features = {"audio": Modality(80, "float16"), "video": Modality(512, "float32")}
    assert work_of(steps, features).tolist() == [7, 7]
    assert work_of(steps, {"audio": SOUND, "video": PICTURES}).tolist() == [5 * 3200 + 2 * 48, 7 * 48]
    assert work_of(steps, features | {"video": PICTURES}).tolist() == [5 * 160 + 2 * 48, 7 * 48]
    assert work_of(steps, {"audio": SOUND}).dtype == np.int64
