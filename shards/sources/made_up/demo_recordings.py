"""A made-up corpus of recordings, sound and pictures, that shows what training end to end is for.

`moments` says what is recorded. The class of an utterance is in an order of tones and in an arrangement of
stripes, both of which last for a moment. An encoder with random weights, which `small_encoders` makes, sees
the tones and stripes, which all classes have in common; what tells the classes apart has to be learned by the
encoder itself.

Lengths are log-normal and differ by 30 times, as those of real corpora do. The metadata `informative_audio`
and `informative_video` list the informative time steps: those of `STEP` samples, of which a word fills at
least half, and pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock

from shards.format.recording import FRAMES, WAVEFORM, Recording
from shards.format.schema import MANIFEST, Sample
from shards.sources.base import Source
from shards.sources.made_up import moments, small_encoders
from shards.sources.made_up.labels import generator

EMOTIONS = ("neutral", "happy", "sad", "angry")
SIZES = {"train": 1_600, "val": 200, "test": 400}
# Seconds of an utterance: log-normal, and clipped.
MEDIAN_SECONDS = 1.2
LENGTH_SPREAD = 0.7
SHORTEST, LONGEST = 0.4, 12.0
STEP = 320  # samples of a time step: 80 ms

RECORDINGS = {
    "audio": Recording(WAVEFORM, float(moments.RATE), [STEP]),
    "video": Recording(FRAMES, float(moments.FPS), [moments.SIDE, moments.SIDE, 3]),
}
# Names of the folders in the cache. They stay as long as the utterances, or the encoders, are the same, since
# a run resumes only on the data that it began with.
FOLDER = "demo-recordings-c06c75520a"
ENCODERS_FOLDER = "demo-encoders-62768b3d48"


def samples(
    seed: int = 0, train: int = SIZES["train"], val: int = SIZES["val"], test: int = SIZES["test"]
) -> Source:
    """Make the corpus.

    Args:
        seed: of the random generators.
        train, val, test: utterances per split, of the classes in turn.

    Returns:
        Per utterance sound int16 [samples] and pictures uint8 [N, height, width, 3], see `RECORDINGS`.
    """
    sizes = {split: size for split, size in (("train", train), ("val", val), ("test", test)) if size}
    provenance = {"format": "demo", "settings": {"seed": seed, **settings()}}
    return Source(_samples(seed, sizes), list(EMOTIONS), provenance, sum(sizes.values()))


def settings() -> dict[str, object]:
    """The constants that the corpus is made from."""
    own = ("EMOTIONS", "SIZES", "MEDIAN_SECONDS", "LENGTH_SPREAD", "SHORTEST", "LONGEST", "STEP")
    found = {name.lower(): globals()[name] for name in own}
    return found | {name.lower(): value for name, value in vars(moments).items() if name.isupper()}


def ensure_recordings(cache_dir: str | Path) -> str:
    """The dataset folder of the corpus under `cache_dir`, packed there on first use, as `ensure_demo` does.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(cache_dir).expanduser() / FOLDER
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        # The manifest is written last: where it is, the dataset is complete.
        if not (folder / MANIFEST).is_file():
            from shards.packing.pack import pack  # webdataset is slow to import; most starts find the demo

            source = samples()
            pack(
                source.samples,
                str(folder),
                classes=source.classes,
                recordings=RECORDINGS,
                provenance=source.provenance,
                total=source.total,
            )
    return str(folder)


def ensure_encoder(cache_dir: str | Path, modality: str) -> str:
    """The folder of the small encoder of a modality under `cache_dir`, made there on first use.

    Args:
        cache_dir: the folder of the encoders' folder.
        modality: "audio" or "video".

    Raises:
        OSError: the folder cannot be written.
        ImportError: transformers does not import.
    """
    folder = Path(cache_dir).expanduser() / ENCODERS_FOLDER / modality
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        # Renamed when it is complete.
        if not folder.is_dir():
            small_encoders.save(folder, modality)
    return str(folder)


def _samples(seed: int, sizes: dict[str, int]) -> Iterator[Sample]:
    for split, size in sizes.items():
        of_length, of_sound, of_pictures = (
            generator(seed, split, purpose) for purpose in ("length", "sound", "pictures")
        )
        for i in range(size):
            label = i % len(EMOTIONS)
            drawn = float(of_length.lognormal(math.log(MEDIAN_SECONDS), LENGTH_SPREAD))
            length = round(min(LONGEST, max(SHORTEST, drawn)) * moments.RATE)
            sound, words = moments.draw_sound(of_sound, label, length)
            whole_pictures = length * moments.FPS // moments.RATE
            pictures, of_class = moments.draw_pictures(of_pictures, label, whole_pictures)
            yield Sample(
                key=f"{split}-{i:06d}",
                split=split,
                label=EMOTIONS[label],
                features={"audio": sound, "video": pictures},
                meta={
                    "seconds": length / moments.RATE,
                    "informative_audio": informative_steps(words, length // STEP),
                    "informative_video": of_class,
                },
            )


def informative_steps(words: list[tuple[int, int]], steps: int) -> list[int]:
    """The time steps of `STEP` samples, among the first `steps`, of which words fill at least half."""
    filled = np.zeros((steps + 1) * STEP, bool)
    for begin, end in words:
        filled[begin:end] = True
    found: list[int] = np.flatnonzero(filled.reshape(-1, STEP).mean(1)[:steps] >= 0.5).tolist()
    return found
