"""Made-up corpora with a setting for each property by which models differ.

`demo` is one such corpus; here its properties are settings. Each class c has a direction d_c per modality,
whose components have the standard deviation `signal`. An utterance expresses it in its own way:
m = d_c + N(0, signal_offset), the same at all its time steps. With noise e of deviation 1, of which
neighboring time steps are correlated by `smoothness`, and by `carrier` a time step is

    steps       m + signal_noise e if it is informative, else N(0, noise_offset) + noise e
    mean        m + noise e
    deviation   (noise + m) e
    both        m + (noise + m) e

and a speaker's offset is added to it. N(0, noise_offset) is one offset of an utterance, too. Metadata:
`true_label` (the class, also where the label is wrong), `speaker`, `fold` (of four, by speaker), and with the
carrier "steps" `informative_audio` and so on: positions of the informative steps.

A model that reads the mean over time does well with "mean", one that reads the deviation with "deviation",
and one that finds the informative steps with "steps".

Corpora for comparisons of models (`made_up.settings.PRESETS`; all else has its default):

    awtpn pack - data/synthetic-small --format synthetic --utterances 386 --val 0 --test 0 --steps 100 \\
        --carrier both --imbalance 2 --speaker_offset 1 --signal_offset 1.4 --smoothness 0.9 \\
        --dims audio=27 video=27
    awtpn pack - data/synthetic-long --format synthetic --utterances 1200 --steps 120 --informative 0.1 \\
        --imbalance 5 --missing 0.1 --label_noise 0.1

A corpus that is as hard as the demo of classes:

    awtpn pack - data/demo-like --format synthetic --utterances 2000 --steps 28 --classes 8 --speakers 0 \\
        --signal_noise 0.3 --signal_offset 0 --noise_offset 0.4
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from shards.format.schema import Sample
from shards.sources.base import Source, class_names
from shards.sources.made_up.features import draw_features
from shards.sources.made_up.labels import FOLDS, draw_labels
from shards.sources.made_up.settings import Settings

# To be raised when the same settings make another corpus.
VERSION = 1


def read(
    source: str | Path = "-",
    utterances: int = 1_000,
    val: int = 400,
    test: int = 400,
    steps: int = 40,
    informative: float = 0.15,
    classes: int = 6,
    imbalance: float = 1.0,
    missing: float = 0.0,
    useless: str | None = None,
    label_noise: float = 0.0,
    speakers: int = 24,
    speaker_offset: float = 0.0,
    carrier: Literal["steps", "mean", "deviation", "both"] = "steps",
    signal: float = 0.4,
    signal_noise: float = 0.6,
    signal_offset: float = 1.0,
    noise: float = 2.0,
    noise_offset: float = 0.0,
    smoothness: float = 0.0,
    dims: Sequence[str] = ("audio=32", "video=24"),
    seed: int = 0,
) -> Source:
    """Make a corpus.

    Args:
        source: not read; write -.
        utterances: of the training split.
        val: utterances for validation.
        test: utterances for the test; they are the same whatever the number of others.
        steps: median number of time steps of an utterance.
        informative: share of informative time steps, of the carrier steps; an utterance has at least one.
        classes: number of classes.
        imbalance: the largest class has this many times the utterances of the smallest; geometric between.
        missing: share of the utterances that lack one modality, each a random one.
        useless: a modality that is noise alone.
        label_noise: share of wrong labels in training and validation; the test has none.
        speakers: of the training split; val and test have half as many, others. 0: no speakers and folds.
        speaker_offset: deviation of an offset that a speaker adds to all time steps, as a multiple of signal.
        carrier: where the emotion is: in some time steps, in the mean over time, in the deviation over time,
            or in mean and deviation (both).
        signal: standard deviation of the components of the classes' directions.
        signal_noise: deviation of informative time steps around the emotion, of the carrier steps.
        signal_offset: deviation of an utterance's emotion from the direction of its class.
        noise: deviation of the other time steps; of other carriers of all.
        noise_offset: deviation of an offset that the other time steps of an utterance share, of the carrier
            steps.
        smoothness: correlation of the noise of neighboring time steps.
        dims: modalities, each NAME=FEATURES.
        seed: of all that is drawn.

    Raises:
        ValueError: a value is out of its range, or does not fit the others.
    """
    given = {name: value for name, value in locals().items() if name != "source"}
    return make(Settings(**given | {"dims": tuple(dims)}))


def make(settings: Settings) -> Source:
    """Make the corpus of these settings.

    Returns:
        Features [T, D] float32 per modality and utterance, of different lengths.
    """
    sizes = {"train": settings.utterances, "val": settings.val, "test": settings.test}
    classes = class_names(None, settings.classes, "classes")
    provenance = {"format": "synthetic", "version": VERSION, "settings": asdict(settings)}
    samples = (
        sample for split, size in sizes.items() for sample in _of_split(settings, split, size, classes)
    )
    return Source(samples, classes, provenance, sum(sizes.values()))


def _of_split(settings: Settings, split: str, size: int, classes: list[str]) -> Iterator[Sample]:
    labels = draw_labels(settings, split, size)
    modalities = list(settings.features)
    drawn = zip(*(draw_features(settings, split, name, labels) for name in modalities), strict=True)
    for i, of_modality in enumerate(drawn):
        meta: dict[str, Any] = {"true_label": classes[labels.true[i]]}
        if settings.speakers:
            speaker = int(labels.speaker[i])
            meta |= {"speaker": f"{split}-{speaker:03d}", "fold": speaker % FOLDS}
        features = {}
        for position, (name, (values, informative)) in enumerate(zip(modalities, of_modality, strict=True)):
            # It is drawn where it is missing, too, so that the other utterances stay as they are.
            is_missing = labels.lacks[i] == position
            features[name] = None if is_missing else values
            if settings.carrier == "steps":
                meta[f"informative_{name}"] = [] if is_missing else informative.tolist()
        yield Sample(f"{split}-{i:06d}", split, classes[labels.given[i]], features, meta)
