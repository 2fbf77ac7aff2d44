"""Packing as int8: a pass over all samples finds the scales; at the end the manifest gets the errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from shards.format.schema import QUANTIZED, BadSample, Sample
from shards.format.split_names import meaning
from shards.format.statistics import Statistics
from shards.packing.quantization import (
    CLIPPED_SHARE,
    StepSample,
    check_quantized,
    choose_quantization,
    relative_error,
)
from shards.packing.shard_writer import ShardStats, merge_cast, sum_stats
from shards.packing.validation import PackingState, check_cast, refuse_transcript, validate_or_skip
from shards.safe_io.printable import get_logger

TRAINING = "train"

logger = get_logger(__name__)


def check_read_again(samples: Iterable[Any]) -> None:
    """Raise ValueError if samples can be read only once: the scales of int8 take a pass of their own."""
    if isinstance(samples, Iterator):
        raise ValueError(
            "dtype 'int8' reads the samples twice, and an iterator gives them once: give a list, or an "
            "object whose __iter__ begins anew; or pack float16, and that dataset with "
            "`awtpn pack DATASET OUT --format dataset --dtype int8`"
        )


def find_scales(
    samples: Iterable[Sample | BadSample], state: PackingState, on_bad: str, update: Callable[[], Any]
) -> tuple[PackingState, dict[str, list[str]]]:
    """Read all samples, check them, and choose the scales of their features.

    Args:
        samples: can be read again.
        state: at the start of the packing.
        on_bad: as of `pack`.
        update: called after each sample.

    Returns:
        A state at the start of the packing with the scales; and by modality the splits that they are of.

    Raises:
        ValueError: a bad sample (named), or a feature that float32 is too coarse for.
    """
    checked = replace(state, dtype=np.dtype(np.float32), keys=set(), dims=dict(state.dims))
    found: dict[tuple[str, bool], StepSample] = {}
    splits: dict[tuple[str, bool], list[str]] = {}
    casts: dict[str, tuple[Statistics, Statistics]] = {}
    for sample in samples:
        refuse_transcript(sample)
        encoded = validate_or_skip(sample, checked, on_bad, [])
        if encoded is not None:
            assert isinstance(sample, Sample)
            for name in encoded.arrays.keys() - state.recordings.keys():
                part = name, meaning(sample.split) == TRAINING
                if part not in found:
                    found[part], splits[part] = StepSample(encoded.arrays[name].shape[1]), []
                found[part].add(encoded.arrays[name])
                if sample.split not in splits[part]:
                    splits[part].append(sample.split)
            for name, cast in encoded.casts.items():
                casts[name] = merge_cast(casts.get(name), cast)
        update()
    check_cast(casts, checked.dtype)
    # Of the training split where it has the modality, else of all others.
    chosen = {name: (name, (name, True) in found) for name in sorted({name for name, _ in found})}
    scaled = replace(
        state,
        dims=checked.dims,
        quantizations={name: choose_quantization(found[part]) for name, part in chosen.items()},
    )
    return scaled, {name: splits[part] for name, part in chosen.items()}


def quantization_facts(stats: Mapping[str, ShardStats], scales_of: Mapping[str, list[str]]) -> dict[str, Any]:
    """For the manifest: of which splits the scales are, the largest errors, and how many values were clipped.

    A warning names splits of which a dimension has many clipped values.

    Args:
        stats: of all utterances, by split.
        scales_of: by modality the splits that its scales are of.

    Raises:
        ValueError: int8 is too coarse for a dimension, by these splits; names it.
    """
    errors = {}
    for name, splits in scales_of.items():
        total = sum_stats([stats[split] for split in splits])
        errors[name] = relative_error(total.errors[name], total.statistics[name])
    check_quantized(errors)
    clipped = {
        split: {name: int(error.clipped.sum()) for name, error in sorted(of.errors.items())}
        for split, of in stats.items()
    }
    for split, of in stats.items():
        for name, error in of.errors.items():
            share = error.clipped / max(of.statistics[name].count, 1)
            worst = int(np.argmax(share))
            if share[worst] > CLIPPED_SHARE:
                logger.warning(
                    "split %s: %.3g %% of the values of %s[%d] are clipped: outside of the range of split "
                    "%s; --dtype float16 clips nothing",
                    *(split, 100 * share[worst], name, worst, " and ".join(scales_of[name])),
                )
    return {
        QUANTIZED: {
            "scales_of": dict(scales_of),
            "largest_error": {name: float(f"{error.max():.4g}") for name, error in errors.items()},
            "clipped": clipped,
        }
    }
