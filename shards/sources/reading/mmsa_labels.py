"""Labels of MMSA's pickles: classes, and scores of sentiment, in CH-SIMS also one per modality.

`classification_labels` are 0, 1, 2; files may lack them.

`regression_labels` are of what is seen, heard and said together; CH-SIMS also has `regression_labels_T`, `_A`
and `_V`, annotated of text, sound and picture alone. The scores are from -3 to 3 in CMU-MOSI and CMU-MOSEI,
from -1 to 1 in CH-SIMS, and the files do not say which: scores that are all within -1..1 are taken for the
latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shards.format.targets import CLASSES, Target
from shards.safe_io.printable import get_logger
from shards.sources.base import MOST_CLASSES
from shards.sources.reading.sentiment_classes import class_of

logger = get_logger(__name__)

SENTIMENT, BY_MODALITY = "sentiment", "sentiment-by-modality"
# Names of the arrays by column. Files of other origin may have the first one as "labels".
SCORES = "regression_labels"
OTHER_NAME = "labels"
MODALITY_SCORES = {
    "sentiment_text": "regression_labels_T",
    "sentiment_audio": "regression_labels_A",
    "sentiment_video": "regression_labels_V",
}


@dataclass(frozen=True)
class Scores:
    """The scores of a file.

    Attributes:
        columns: by column and split the scores [U]; NaN where one is missing.
        targets: "sentiment" and "sentiment-by-modality", as far as the file has them.
    """

    columns: dict[str, dict[str, np.ndarray]]
    targets: dict[str, Target]

    def meta_of(self, split: str, place: int) -> dict[str, float | None]:
        """The scores of an utterance by column; None where one is missing."""
        values = {name: float(of[split][place]) for name, of in self.columns.items()}
        return {name: None if value != value else value for name, value in values.items()}


def score_name(record: Mapping[str, Any]) -> str:
    """Name of the array of a split that holds its scores."""
    return next((name for name in (SCORES, OTHER_NAME) if name in record), SCORES)


def read_scores(records: Mapping[str, Any], needed: str | None, either_name: bool, at: str) -> Scores:
    """The scores of all splits.

    Scores that are not needed are left out, with a warning, where they are no scores of every utterance;
    infinite ones of these are missing values.

    Args:
        records: what the file has of each split, among it `id`.
        needed: the dataset's own target, "sentiment" or "sentiment-by-modality"; None: it is the classes.
        either_name: "labels" are scores, too.
        at: the file, for error messages.

    Raises:
        ValueError: the file has not what is needed, or not between -3 and 3; names the array.
    """
    columns = {}
    for column, name in {SENTIMENT: SCORES, **MODALITY_SCORES}.items():
        is_needed = needed == (SENTIMENT if column == SENTIMENT else BY_MODALITY)
        try:
            if of := _of_all_splits(records, name, is_needed, either_name, at):
                columns[column] = of if is_needed else _finite(of, column, at)
        except ValueError as error:
            if is_needed:
                raise
            logger.warning("%s; %r is left out", error, column)
    if any(column not in columns for column in MODALITY_SCORES):
        columns = {column: of for column, of in columns.items() if column not in MODALITY_SCORES}
    bounds = _bounds(columns, needed, at)
    names = {SENTIMENT: [SENTIMENT], BY_MODALITY: list(MODALITY_SCORES)}
    return Scores(
        columns,
        {
            target: Target("regression", dict.fromkeys(of, bounds), _misses([columns[name] for name in of]))
            for target, of in names.items()
            if of[0] in columns
        },
    )


def _misses(columns: list[dict[str, np.ndarray]]) -> bool:
    """Whether an utterance lacks one of these scores, or all of them."""
    return any(bool(np.isnan(values).any()) for of in columns for values in of.values())


def _finite(of: dict[str, np.ndarray], column: str, at: str) -> dict[str, np.ndarray]:
    """The scores with NaN in place of infinities, which are logged."""
    if infinite := sum(int(np.isinf(values).sum()) for values in of.values()):
        logger.warning("%s: %d scores of %r are infinite: taken as missing", at, infinite, column)
    return {split: np.where(np.isinf(values), np.nan, values) for split, values in of.items()}


def _of_all_splits(
    records: Mapping[str, Any], name: str, is_needed: bool, either_name: bool, at: str
) -> dict[str, np.ndarray] | None:
    """An array of each split as float64 [U]; None where no split has it.

    Raises:
        ValueError: some splits have it, or it is not one number per utterance.
    """
    found = {}
    names = {
        split: score_name(record) if name == SCORES and either_name else name
        for split, record in records.items()
    }
    absent = [split for split, record in records.items() if names[split] not in record]
    if len(absent) == len(records) and not is_needed:
        return None
    if absent:
        hint = "; to recognize its classes, leave --target out" if is_needed else ""
        raise ValueError(f"{at}: {absent[0]}: {name!r}, scores of sentiment, is missing{hint}")
    for split, record in records.items():
        where = f"{at}: {split}: {names[split]}"
        try:
            values = np.asarray(record[names[split]], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} must be numbers ({error})") from None
        utterances = len(record["id"])
        if values.ndim == 0 or values.size != len(values) or len(values) != utterances:
            raise ValueError(
                f"{where} has shape {list(values.shape)}; expected one number of each of {utterances} "
                "utterances"
            )
        found[split] = values.reshape(-1)
    return found


def _bounds(columns: Mapping[str, Mapping[str, np.ndarray]], needed: str | None, at: str) -> Any:
    """The range of the scores; None where it is neither of the two.

    Raises:
        ValueError: it is neither, but the scores are needed.
    """
    values = [of for by_split in columns.values() for of in by_split.values()]
    finite = np.concatenate([np.zeros(1), *(of[np.isfinite(of)] for of in values)])
    largest = float(np.abs(finite).max())
    if 0 < largest <= 1:
        return [-1.0, 1.0]
    if largest <= 3:
        return [-3.0, 3.0]
    message = (
        f"{at}: its scores go from {finite.min():g} to {finite.max():g}, while sentiment is from -3 to 3 "
        "(MOSI, MOSEI) or from -1 to 1 (CH-SIMS)"
    )
    if needed:
        raise ValueError(f"{message}; scale them back, or leave --target out")
    logger.warning("%s: the range of the target 'sentiment' is not known", message)
    return None


def own_and_further(scores: Scores, needed: str | None) -> tuple[Target, dict[str, Target]]:
    """The dataset's own target, of which every utterance has a value, and its further ones.

    An utterance may lack all values of a further target: that does not make it a bad one.
    """
    further = {name: target for name, target in scores.targets.items() if name != needed}
    if needed is None:
        return CLASSES, further
    own = scores.targets[needed]
    return replace(own, missing=own.missing and len(own.columns) > 1), further


# --- Classes -------------------------------------------------------------------------------------


def has_classes(content: Any, named: dict[str, str]) -> bool:
    """Whether the file has a class of any utterance; MMSA-FET writes NaN where there is no annotation."""
    for record in (content[name] for name in named.values()):
        if isinstance(record, dict) and "classification_labels" in record:
            try:
                if not np.isnan(np.asarray(record["classification_labels"], dtype=np.float64)).all():
                    return True
            except (TypeError, ValueError):
                return True  # reading them names what is wrong
    return False


def label_array(record: dict[str, Any], label_set: str, at: str) -> str:
    """Name of the array of a split that holds the labels.

    Raises:
        ValueError: the one that the label set needs is missing.
    """
    scores = score_name(record)
    if label_set != "classification":
        return scores
    if "classification_labels" not in record and scores in record:
        raise ValueError(
            f"{at}: 'classification_labels' is missing, but {scores!r} is there: if those are sentiment "
            "scores, make them the target with --target sentiment, or cut classes from them with --label_set "
            "sentiment2, sentiment3 or sentiment7"
        )
    return "classification_labels"


def read_labels(given: Any, name: str, label_set: str | None, at: str) -> np.ndarray:
    """The labels of a split as float64 [U].

    Raises:
        ValueError: not one number per utterance, or not whole numbers where they are classes.
    """
    try:
        label = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{at}: {name} must be numbers ({error})") from None
    if label.ndim == 0 or label.size != len(label):
        raise ValueError(f"{at}: {name} has shape {list(label.shape)}; expected one number per utterance")
    label = label.reshape(-1)
    known = label[~np.isnan(label)]
    whole = (known >= 0) & (known < MOST_CLASSES) & (known == np.floor(known))
    if label_set == "classification" and not whole.all():
        raise ValueError(f"{at}: {name} must be 0, 1, ...; use --label_set sentiment3")
    return label


def class_name(label: float, classes: list[str], label_set: str) -> str:
    """The class of an utterance.

    Raises:
        ValueError: it has none.
    """
    if np.isnan(label):
        raise ValueError("has no label (nan)")
    return classes[int(label)] if label_set == "classification" else class_of(float(label), label_set)
