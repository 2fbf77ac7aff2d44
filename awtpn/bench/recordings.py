"""Benchmark of recordings: what 10,000 utterances cost in each form, as features and as recorded.

Made-up utterances of 4 s at the median (log-normal, 0.7 to 20 s): sound at 16 kHz, and pictures at 10 per
second. A picture is a part of a photo that moves over it, so that JPEG finds real detail in it; faces are
smoother, and their files smaller. Readers run in one process without workers: this stream, and webdataset,
which decodes the same shards sample by sample. Everything is in the page cache; epochs of both alternate.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import shards
from awtpn.bench.readers import lengths
from shards.format.recording import FRAMES, WAVEFORM
from shards.safe_io.markdown import table

UTTERANCES, BATCH, SHARD_BYTES = 200, 32, 256 << 20
SCALED_TO = 10_000
RATE, FPS = 16_000, 10
STEPS_PER_SECOND = 30  # of the loader benchmark's lengths, whose median is then 4 s
WINDOW = 320  # pixels of the photo that a picture shows


@dataclass(frozen=True)
class Form:
    """A form of one modality: features per step of 0.1 s, or a recording."""

    name: str
    modality: str
    features: int = 0
    recording: shards.Recording | None = None


FORMS = [
    Form("logmel, float16", "audio", features=80),
    Form("WavLM-base, float16", "audio", features=768),
    Form("waveform, int16", "audio", recording=shards.Recording(WAVEFORM, RATE, [RATE // 10])),
    Form("descriptor, float16", "video", features=148),
    Form("CLIP-B/32, float16", "video", features=768),
    *(
        Form(
            f"frames of {side} x {side}, {f'JPEG {quality}' if quality else 'uint8'}",
            "video",
            recording=shards.Recording(FRAMES, FPS, [side, side, 3], quality),
        )
        for side in (112, 224)
        for quality in (None, 90)
    ),
]


def run(scratch: Path, rounds: int, count: int) -> str:
    """The table, in Markdown.

    Args:
        scratch: folder for the datasets.
        rounds: of which the median is taken.
        count: utterances of a dataset.
    """
    folders = [scratch / f"recordings-{number}" for number in range(len(FORMS))]
    manifests = [write(form, folder, count) for form, folder in zip(FORMS, folders, strict=True)]
    took: dict[tuple[int, str], list[float]] = {}
    for number, folder in enumerate(folders):
        readers = {"stream": open_stream(folder), "webdataset": open_webdataset(folder)}
        for epoch in range(rounds + 1):
            for name, read in readers.items():
                start = time.perf_counter()
                if read(epoch) != count:
                    raise RuntimeError(f"{name} has read another number of utterances than {count}")
                if epoch:  # the first warms up
                    took.setdefault((number, name), []).append(time.perf_counter() - start)
    rows = []
    for number, (form, manifest) in enumerate(zip(FORMS, manifests, strict=True)):
        split = manifest.splits["train"]
        stored = sum(shard.bytes for shard in split.shards) / count
        batch = split.steps[form.modality] * manifest.modalities[form.modality].step_bytes / count
        ours, theirs = (count / statistics.median(took[number, name]) for name in ("stream", "webdataset"))
        rows.append(
            [
                form.name,
                f"{stored / 1e3:,.1f} kB",
                f"{stored * SCALED_TO / 1e9:,.2f} GB",
                f"{batch * BATCH / 1e6:,.1f} MB",
                f"{ours:,.0f}",
                f"{theirs:,.0f}",
                f"{ours / theirs:.1f}x",
            ]
        )
    head = [
        "form",
        "an utterance",
        f"{SCALED_TO:,} utterances",
        f"batch of {BATCH} in memory",
        "this stream, utterances/s",
        "webdataset, utterances/s",
        "ratio",
    ]
    seconds = float(np.mean(lengths()[:count])) / STEPS_PER_SECOND
    what = f"{count} utterances of {seconds:.1f} s on average; medians of {rounds} rounds."
    return f"## Recordings\n\n{what}\n\n{table(head, rows, 'lr')}\n"


# --- Data ----------------------------------------------------------------------------------------


def write(form: Form, folder: Path, count: int) -> shards.Manifest:
    """Pack the made-up utterances in a form."""
    recordings = {form.modality: form.recording} if form.recording else {}
    return shards.pack(
        samples_of(form, count),
        str(folder),
        classes=["calm", "happy"],
        recordings=recordings,
        shard_bytes=SHARD_BYTES,
        overwrite=folder.exists(),
        progress=False,
    )


def samples_of(form: Form, count: int) -> Iterator[shards.Sample]:
    for i in range(count):
        seconds = float(lengths()[i]) / STEPS_PER_SECOND
        values = values_of(form, i, seconds)
        yield shards.Sample(f"u{i:05d}", "train", ["calm", "happy"][i % 2], {form.modality: values})


def values_of(form: Form, i: int, seconds: float) -> np.ndarray:
    """Utterance i: features [T, D], sound [samples] or pictures [N, side, side, 3]."""
    steps = max(1, int(seconds * 10))
    rng = np.random.default_rng(i)
    if form.recording is None:
        return rng.standard_normal((steps, form.features), np.float32)
    if form.recording.is_sound:
        return rng.integers(-3_000, 3_000, round(seconds * RATE), np.int16)
    return pictures(rng, max(1, round(seconds * FPS)), form.recording.shape[0])


def pictures(rng: np.random.Generator, number: int, side: int) -> np.ndarray:
    """uint8 [number, side, side, 3]: a window that moves slowly over one of two photos."""
    from shards.extraction.encoders.frames import crop_middle

    photo = photos()[int(rng.integers(2))]
    rooms = np.array(photo.shape[:2]) - WINDOW
    begin, speed = rng.uniform(0, rooms), rng.uniform(-3, 3, 2)
    corners = np.clip(begin + speed * np.arange(number)[:, None], 0, rooms).astype(int)
    windows = [photo[y : y + WINDOW, x : x + WINDOW] for y, x in corners]
    return crop_middle(np.stack(windows), side)


@functools.cache
def photos() -> list[np.ndarray]:
    """Two photos of 427 x 640 that come with scikit-learn, uint8 RGB.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise ImportError('its photos come with scikit-learn: pip install "awtpn-at-scale[bench]"') from None
    return list(load_sample_images().images)


# --- Readers -------------------------------------------------------------------------------------


def open_stream(folder: Path) -> Callable[[int], int]:
    """Reads an epoch in batches; returns the number of utterances."""
    stream = shards.FeatureStream(str(folder), global_batch_size=BATCH)
    return lambda epoch: sum(len(batch) for batch in stream.epoch(epoch))


def open_webdataset(folder: Path) -> Callable[[int], int]:
    """Reads each sample's array, or its pictures into one array; returns the number of samples."""
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8")
    return lambda epoch: sum(1 for sample in dataset if len(as_array(sample)))


def as_array(sample: dict[str, Any]) -> np.ndarray:
    jpegs = [value for name, value in sorted(sample.items()) if name.endswith(".jpg")]
    return np.stack(jpegs) if jpegs else next(v for name, v in sample.items() if name.endswith(".npy"))
