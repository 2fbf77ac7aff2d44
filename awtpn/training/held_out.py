"""What a run is judged on must not be what it was trained on, nor the test what chose the checkpoint.

Datasets are compared by content: a link, a copy, another split or other keys for the same arrays are found.
Where the arrays differ, as those of another dtype or of other encoders do, two datasets' keys are compared.
"""

from __future__ import annotations

import numpy as np

from shards import FeatureStream
from shards.streaming.common_utterances import (
    Common,
    common_by_content,
    common_by_key,
    content_hashes,
    same_dataset,
    same_shards,
    why_not_comparable,
)

FIX = "change data.select or the splits, or give other data.val and data.test"


def check_held_out(train: FeatureStream, val: FeatureStream | None, test: FeatureStream | None) -> list[str]:
    """Compare what is trained on, validated on and tested on; one process does it for all ranks.

    Returns:
        Warnings, a line each: parts that are the same, names that are, a validation on the test's utterances,
        or why there was no comparison by content.

    Raises:
        ValueError: all utterances of a judged split are trained on, or some of the very split that is
            trained on; or an index is damaged.
        OSError: a store cannot be reached.
    """
    judged = [stream for stream in (val, test) if stream is not None]
    for other in judged:  # what the manifests tell alone
        if (shared := train.overlap(other)) and same_shards(train, other):
            raise ValueError(
                f"{shared} utterances of {_named(other)} are both trained on and evaluated on: {FIX}"
            )
    if not judged:
        return []
    known, warnings, few = _contents([train, *judged])
    for other in judged:
        found = _common(train, other, known)
        if found.count == found.of:
            raise ValueError(
                f"all {found.of} utterances of {_named(other)} have the features of utterances that are "
                f"trained on{_names(found)}: {FIX}"
            )
        warnings += _told_of_parts(train, other, found, known, few)
    if val is not None and test is not None and (found := _common(val, test, known)).count:
        warnings.append(
            f"warning: {_counted(found)} of {_named(test)} are validated on, too{_names(found)}; the best "
            "checkpoint is chosen by what it is tested on, so the test flatters the model"
        )
    return warnings


def told_of_evaluated(train: FeatureStream, other: FeatureStream) -> str | None:
    """A line where utterances that a model was trained on are evaluated on; None where none are known to be.

    Raises:
        ValueError: an index is damaged.
        OSError: a store cannot be reached.
    """
    known, _, few = _contents([train, other])
    found = _common(train, other, known)
    if found.of in (found.count, train.overlap(other)):
        return f"note: {_named(other)}: these are the utterances that it was trained on"
    return " ".join(_told_of_parts(train, other, found, known, few)) or None


def _told_of_parts(
    train: FeatureStream,
    other: FeatureStream,
    found: Common,
    known: dict[int, np.ndarray | None],
    few: bool,
) -> list[str]:
    """Warnings of utterances that are the same (`found`), and of others that have the names of some."""
    warnings = []
    if found.count:
        warnings.append(
            f"warning: {_counted(found)} of {_named(other)} have the features of utterances that are "
            f"trained on{_names(found)}; the figures flatter the model"
        )
    # Keys such as "0001" may coincide, so they refuse nothing.
    if few and (alike := _alike(train, other, known)).count:
        warnings.append(
            f"warning: {_counted(alike)} of {_named(other)} have the names of training utterances"
            f"{_names(alike)}; if they are the same recordings, the figures say nothing"
        )
    return warnings


def _contents(streams: list[FeatureStream]) -> tuple[dict[int, np.ndarray | None], list[str], bool]:
    """`contents` of each stream by its id, None where it is not known; and a warning where it is not.

    Last, whether the streams are small enough to read all their indexes.
    """
    cause = why_not_comparable(streams)
    few = cause is None
    known = {id(stream): None if cause else content_hashes(stream) for stream in streams}
    if cause is None and any(found is None for found in known.values()):
        cause = "a dataset of an early version has no checksums; pack it again"
    if cause is None:
        return known, [], few
    told = (
        "warning: utterances that are trained on under other names or in other shards were not looked for "
        f"among those that are evaluated on: {cause}"
    )
    return known, [told], few


def _alike(train: FeatureStream, other: FeatureStream, known: dict[int, np.ndarray | None]) -> Common:
    """The utterances of `other`, of another dataset, that have keys of `train` and not its arrays."""
    if same_dataset(train, other):
        return Common(0, other.num_utterances, [])
    of_train, of_other = known[id(train)], known[id(other)]
    if of_train is None or of_other is None:
        return common_by_key(train, other)
    return common_by_key(train, other, np.isin(of_other, of_train[of_train != 0]))


def _common(one: FeatureStream, other: FeatureStream, known: dict[int, np.ndarray | None]) -> Common:
    """The utterances of `other` that `one` has, too; by the hashes of shards alone where no more is known."""
    of_one, of_other = known[id(one)], known[id(other)]
    if of_one is None or of_other is None:
        return Common(one.overlap(other), other.num_utterances, [])
    return common_by_content(of_one, of_other, other)


def _named(stream: FeatureStream) -> str:
    return f"{stream.url}, split {stream.split}"


def _counted(found: Common) -> str:
    return f"{'all' if found.count == found.of else found.count} of {found.of} utterances"


def _names(found: Common) -> str:
    more = found.count - len(found.names)
    return f" ({', '.join(found.names)}{f' and {more} more' if more else ''})" if found.names else ""
