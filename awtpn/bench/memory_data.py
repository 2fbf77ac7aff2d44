"""Sizes and lengths of the data of a memory estimate: of a dataset, or as options give them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from awtpn.bench.encoder_memory.passes import exponential_quantiles, quantiles_of
from awtpn.bench.encoder_memory.shape import Shape, open_shape
from awtpn.config.schema import Config
from awtpn.run.data import check_encoded, check_features_only
from awtpn.run.demos import dataset_url, located_encoder
from shards.format.split_names import find_split
from shards.tools.info import Lengths, info

FEATURE_BYTES = 2  # of data that options describe: float16


@dataclass(frozen=True)
class Data:
    """Sizes and lengths of a corpus.

    Attributes:
        feature_dims: features per step, by modality; of an encoder its own.
        step_bytes: of a step in a batch.
        classes: number of classes.
        mean_steps, deviation, longest: mean, standard deviation and maximum of the stored time steps per
            utterance, by modality; an utterance without the modality counts as 0.
        quantiles: by modality the lengths from the shortest to the longest utterance.
        shapes: by modality the encoders.
    """

    feature_dims: dict[str, int]
    step_bytes: dict[str, int]
    classes: int
    mean_steps: dict[str, float]
    deviation: dict[str, float]
    longest: dict[str, int]
    quantiles: dict[str, NDArray[np.float64]]
    shapes: Mapping[str, Shape] = field(default_factory=dict)


def data_from_corpus(config: Config) -> Data:
    """Lengths and dims of the training split, from the manifest and the indexes.

    Raises:
        ValueError: there is no such dataset (names the options to use instead), it lacks a modality, a
            modality without an encoder holds recordings, or one with an encoder does not.
        OSError: the store cannot be reached.
    """
    data = config.data
    url = dataset_url(data.train, data.cache_dir)
    steps = " ".join(f"{m}=60" for m in config.model.modalities)
    features = " ".join(f"{m}=1024" for m in config.model.modalities if m not in config.encoder)
    fix = f"pack it, or give its sizes, such as --steps {steps}" + f" --features {features}" * bool(features)
    try:
        found = info(url, cache_dir=data.cache_dir, storage_options=data.storage_options)
    except ValueError as error:
        raise ValueError(f"{error}; {fix}") from None
    names = list(found.splits)
    split = found.splits[find_split("train", names) or names[0]]
    missing = [m for m in config.model.modalities if m not in found.manifest.modalities]
    if missing:
        raise ValueError(f"{found.url} has no {' and no '.join(missing)}: change model.modalities")
    chosen = {m: found.manifest.modalities[m] for m in config.model.modalities}
    plain = {m: modality for m, modality in chosen.items() if m not in config.encoder}
    check_features_only(plain, found.manifest.modalities, found.url)
    check_encoded(config.encoder, chosen, found.url)
    shapes = {
        m: open_shape(m, located_encoder(settings, m, data.cache_dir), chosen[m].recording)
        for m, settings in config.encoder.items()
    }
    return Data(
        feature_dims={
            m: shapes[m].layer.dim if m in shapes else modality.dim for m, modality in chosen.items()
        },
        step_bytes={m: modality.step_bytes for m, modality in chosen.items()},
        classes=len(found.manifest.classes),
        mean_steps={m: split.steps[m] / split.utterances for m in chosen},
        deviation={m: deviation(split.lengths[m]) for m in chosen},
        longest={m: split.lengths[m].most for m in chosen},
        quantiles={m: quantiles_of(split.lengths[m]) for m in chosen},
        shapes=shapes,
    )


def deviation(lengths: Lengths) -> float:
    """Standard deviation of the lengths, from their histogram; one without the modality counts as 0."""
    middles = (np.array(lengths.edges[:-1]) + np.array(lengths.edges[1:]) - 1) / 2
    counts = np.array([lengths.missing, *lengths.counts], np.float64)
    values = np.array([0.0, *middles])
    if counts.sum() == 0:
        return 0.0
    mean = np.average(values, weights=counts)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))


def data_from_options(options: argparse.Namespace, config: Config) -> Data:
    """Data of `--steps`, `--features` and `--classes`, for the modalities and encoders of a run.

    Assumes float16 features, recordings as `awtpn extract` stores them for the encoders, and lengths whose
    standard deviation is their mean and whose maximum is ten times their mean.

    Raises:
        ValueError: sizes of a modality are missing, or it is none of the model's; names the fix.
    """
    model, encoded = config.model, config.encoder
    steps, dims = parse_pairs(options.steps, "--steps"), parse_pairs(options.features or [], "--features")
    if needless := [m for m in dims if m in encoded]:
        raise ValueError(
            f"--features names {', '.join(needless)}, whose features encoder.* decides: leave it out"
        )
    if steps.keys() - encoded.keys() != dims.keys():
        raise ValueError(
            f"--steps names {sorted(steps)}, but --features {sorted(dims)}: give both for each modality"
            + " without an encoder" * bool(encoded)
        )
    if steps.keys() != model.modalities.keys():
        raise ValueError(
            f"--steps names {', '.join(steps)}, but model.modalities {', '.join(model.modalities)}: give the "
            f"sizes of all these, or --model.modalities {','.join(steps)}"
        )
    cache = config.data.cache_dir
    shapes = {m: open_shape(m, located_encoder(settings, m, cache)) for m, settings in encoded.items()}
    mean = {m: float(n) for m, n in steps.items()}
    return Data(
        feature_dims=dims | {m: shape.layer.dim for m, shape in shapes.items()},
        step_bytes={m: FEATURE_BYTES * dim for m, dim in dims.items()}
        | {m: shape.recording.dim * (2 if shape.is_sound else 1) for m, shape in shapes.items()},
        classes=options.classes,
        mean_steps=mean,
        deviation=mean,
        longest={m: 10 * n for m, n in steps.items()},
        quantiles={m: exponential_quantiles(n, 10 * n) for m, n in mean.items()},
        shapes=shapes,
    )


def parse_pairs(words: Sequence[str], option: str) -> dict[str, int]:
    """["text=30"] -> {"text": 30}."""
    found = {}
    for word in words:
        name, mark, number = word.partition("=")
        if not mark or not number.isdigit():
            raise ValueError(f"{option} takes NAME=NUMBER, such as text=30, not {word!r}")
        found[name] = int(number)
    return found
