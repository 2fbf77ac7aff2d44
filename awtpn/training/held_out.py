"""Finds utterances that two splits share: validation and test data must not be training data.

Datasets are compared by content: a link, a copy, another split or other keys for the same arrays are found.
Where the arrays differ, since they have another dtype or come from other encoders, keys are compared.
"""

from __future__ import annotations

import numpy as np

from shards import FeatureStream
from shards.streaming.common_utterances import (
    CommonUtterances,
    common_by_content,
    common_by_key,
    content_hashes,
    same_dataset,
    same_shards,
    why_not_comparable,
)

# Of text alone, other utterances may have the same features.
SAME_WORDS = "if that is not because short texts are the same, the figures flatter the model"
FIX = "change data.select or the splits, or give other data.val and data.test"


def check_held_out(train: FeatureStream, val: FeatureStream | None, test: FeatureStream | None) -> list[str]:
    """Compare training, validation and test data; one process does it for all ranks.

    Returns:
        Warnings, a line each: utterances that two splits share, keys that they share, or why their contents
        were not compared.

    Raises:
        ValueError: all utterances of an evaluated split are trained on, or some are of the same shards as
            those trained on; or an index is damaged.
        OSError: a store cannot be reached.
    """
    evaluated = [stream for stream in (val, test) if stream is not None]
    for other in evaluated:  # manifests alone tell this
        if (shared := train.overlap(other)) and same_shards(train, other):
            raise ValueError(
                f"{shared} utterances of {_named(other)} are both trained on and evaluated on: {FIX}"
            )
    if not evaluated:
        return []
    known, warnings, few = _contents([train, *evaluated])
    for other in evaluated:
        found = _common(train, other, known)
        if found.count == found.total:
            raise ValueError(
                f"all {found.total} utterances of {_named(other)} have the features of utterances that are "
                f"trained on{_names(found)}: {FIX}"
            )
        warnings += _partial_overlap(train, other, found, known, few)
    if val is not None and test is not None and (found := _common(val, test, known)).count:
        warnings.append(
            f"warning: {_counted(found)} of {_named(test)} are validated on, too{_names(found)}; the best "
            "checkpoint is chosen by what it is tested on, so the test flatters the model"
        )
    return warnings


def overlap_with_evaluation(train: FeatureStream, other: FeatureStream) -> str | None:
    """A line if utterances that a model was trained on are evaluated on; None if none are known to be.

    Raises:
        ValueError: an index is damaged.
        OSError: a store cannot be reached.
    """
    known, _, few = _contents([train, other])
    found = _common(train, other, known)
    if found.total in (found.count, train.overlap(other)):
        return f"note: {_named(other)}: these are the utterances that it was trained on"
    return " ".join(_partial_overlap(train, other, found, known, few)) or None


def _partial_overlap(
    train: FeatureStream,
    other: FeatureStream,
    found: CommonUtterances,
    known: dict[int, np.ndarray | None],
    few: bool,
) -> list[str]:
    """Warnings of utterances that are the same (`found`), and of others that have the same keys."""
    warnings = []
    if found.count:
        meaning = SAME_WORDS if set(other.modalities) == {"text"} else "the figures flatter the model"
        warnings.append(
            f"warning: {_counted(found)} of {_named(other)} have the features of utterances that are "
            f"trained on{_names(found)}; {meaning}"
        )
    # Keys such as "0001" may coincide, so they refuse nothing.
    if few and (alike := _alike(train, other, known)).count:
        warnings.append(
            f"warning: {_counted(alike)} of {_named(other)} have the names of training utterances"
            f"{_names(alike)}; if they are the same recordings, the figures say nothing"
        )
    return warnings


def _contents(streams: list[FeatureStream]) -> tuple[dict[int, np.ndarray | None], list[str], bool]:
    """Hashes of each stream's utterances.

    Returns:
        By id(stream) its `content_hashes`, None where they are not known; a warning if any are not; whether
        the streams are small enough to read all their indexes.
    """
    cause = why_not_comparable(streams)
    few = cause is None
    known = {id(stream): None if cause else content_hashes(stream) for stream in streams}
    if cause is None and any(found is None for found in known.values()):
        cause = "a dataset of an early version has no checksums; pack it again"
    if cause is None:
        return known, [], few
    told = (
        "warning: the evaluated utterances were not searched for training utterances under other names or in "
        f"other shards: {cause}"
    )
    return known, [told], few


def _alike(
    train: FeatureStream, other: FeatureStream, known: dict[int, np.ndarray | None]
) -> CommonUtterances:
    """Utterances of `other`, of another dataset, that have keys of `train` but not its arrays."""
    if same_dataset(train, other):
        return CommonUtterances(0, other.num_utterances, [])
    of_train, of_other = known[id(train)], known[id(other)]
    if of_train is None or of_other is None:
        return common_by_key(train, other)
    return common_by_key(train, other, np.isin(of_other, of_train[of_train != 0]))


def _common(
    one: FeatureStream, other: FeatureStream, known: dict[int, np.ndarray | None]
) -> CommonUtterances:
    """Utterances of `other` that `one` has, too; by the shards' hashes alone where contents are not known."""
    of_one, of_other = known[id(one)], known[id(other)]
    if of_one is None or of_other is None:
        return CommonUtterances(one.overlap(other), other.num_utterances, [])
    return common_by_content(of_one, of_other, other)


def _named(stream: FeatureStream) -> str:
    return f"{stream.url}, split {stream.split}"


def _counted(found: CommonUtterances) -> str:
    return f"{'all' if found.count == found.total else found.count} of {found.total} utterances"


def _names(found: CommonUtterances) -> str:
    more = found.count - len(found.examples)
    return f" ({', '.join(found.examples)}{f' and {more} more' if more else ''})" if found.examples else ""
