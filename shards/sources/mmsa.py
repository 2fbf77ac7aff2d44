"""MMSA's feature files: CMU-MOSI, CMU-MOSEI and CH-SIMS as one pickle each.

The files (`aligned_50.pkl`, `unaligned_50.pkl`, `unaligned_39.pkl`) are linked from
https://github.com/thuiar/MMSA; MMSA-FET writes the same form from any corpus:

    {"train" | "valid" | "test": {
        "id":      [U] names, such as "video$_$3",
        "audio":   [U, T, D] padded with zeros,     "vision":  [U, T, D], "text": [U, T, D],
        "audio_lengths": [U],                       "vision_lengths": [U],     (unaligned files)
        "raw_text": [U] what is said,
        "classification_labels": [U] 0, 1, 2,       "regression_labels": [U] -3..3 (CH-SIMS: -1..1), ...}}

Files of other origin with the same form may have scores only, some as "labels" [U, 1, 1]: these are read as
regression labels and need a label set of sentiments. Splits named "valid", "dev" or "validation" become
"val". Padding is cut off: by the lengths if the file has them, otherwise all-zero steps at both ends.
`vision` becomes the modality "video". Text is either `text`, the features that the file has, or made of
`raw_text` by an encoder; an empty one is a missing modality. Infinite values and NaN become 0, counted in the
manifest's provenance. The pickle is read by `reading.restricted_pickle`, which runs no code of it, and is
loaded into memory whole.

Label sets: `classification` (default), or cut from the regression labels `sentiment2`, `sentiment3` or
`sentiment7` (see `reading.sentiment_classes`). The literature reports two and seven classes for MOSI and
MOSEI; CH-SIMS' labels are within -1..1, where seven classes have no meaning.

Targets: the classes, or with `target` the regression labels: `sentiment` (the column "sentiment"), or in
CH-SIMS `sentiment-by-modality` (sentiment_text, sentiment_audio and sentiment_video). What is not the
dataset's own target is a further one, which a run chooses with `--data.target sentiment`. Their range is
found from the values, see `reading.mmsa_labels`, and is in the manifest.

From the archive to a trained model:

    awtpn pack MOSEI/Processed/unaligned_50.pkl data/mosei --format mmsa --label_set sentiment3
    awtpn shards info data/mosei
    awtpn train --config configs/mosei.yaml --data.train data/mosei

Text alone:

    awtpn extract MOSEI/Processed/unaligned_50.pkl data/mosei-text --format mmsa --audio none --video none \\
        --text chargrams
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.format.schema import BadSample, Sample
from shards.format.split_names import meaning
from shards.sources.base import (
    TRANSCRIPTS,
    Source,
    TranscribedSample,
    class_names,
    key_of,
    log_unused,
    logger,
    replace_nonfinite,
)
from shards.sources.reading import restricted_pickle
from shards.sources.reading.mmsa_labels import (
    BY_MODALITY,
    MODALITY_SCORES,
    SENTIMENT,
    Scores,
    class_name,
    has_classes,
    label_array,
    own_and_further,
    read_labels,
    read_scores,
)
from shards.sources.reading.sentiment_classes import SETS
from shards.sources.reading.transcripts import checked_text, transcript_of

SPLITS = ("train", "val", "test")
# Names in the file, by modality.
MODALITIES = {"audio": "audio", "video": "vision", "text": "text"}
RAW_TEXT = "raw_text"
POLARITY = ["negative", "neutral", "positive"]
LABEL_SETS = ("classification", *SETS)
# The scores that are the dataset's own target, by the option.
SCORES_OF = {
    "classification": None,
    "regression": SENTIMENT,
    SENTIMENT: SENTIMENT,
    BY_MODALITY: BY_MODALITY,
}


def read(
    source: str | Path,
    labels: list[str] | None = None,
    label_set: str = "classification",
    text: bool = False,
    text_encoder: str | None = None,
    modalities: tuple[str, ...] = ("audio", "video"),
    target: Literal["classification", "regression", "sentiment", "sentiment-by-modality"] = "classification",
) -> Source:
    """Read an MMSA pickle.

    Args:
        source: the `.pkl` file; code in it is never run. It may lack splits.
        labels: names of the classes 0, 1, ... of `classification`; default negative, neutral, positive.
        label_set: classification, sentiment2, sentiment3 or sentiment7.
        text: also take the features of text that the file has.
        text_encoder: makes features of text from the transcripts, `raw_text`.
        modalities: of the file's features; besides `text`.
        target: what is to be recognized: classification (the label set), sentiment (the same as regression),
            or sentiment-by-modality (CH-SIMS).

    Returns:
        Utterances by split. With a text encoder they are `TranscribedSample`s.

    Raises:
        ValueError: no such file, anything but arrays in it, an array missing or of another length, or labels
            that do not fit the label set.
    """
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the .pkl file, such as unaligned_50.pkl")
    if label_set not in LABEL_SETS:
        raise ValueError(f"label_set {label_set!r}: must be one of {', '.join(LABEL_SETS)}")
    if labels is not None and label_set != "classification":
        raise ValueError(
            f"labels name the classes of 'classification'; {label_set!r} has its own, leave them out"
        )
    if text and text_encoder is not None:
        raise ValueError(
            f"{path}: --text takes the features of text that it has, --text_encoder makes others of its "
            "raw_text; give one of the two"
        )
    if target not in SCORES_OF:
        raise ValueError(f"target {target!r}: must be one of {', '.join(SCORES_OF)}")
    needed = SCORES_OF[target]
    content = restricted_pickle.load(path)
    named = _named_splits(content, path)
    in_classes = needed is None or label_set != "classification" or has_classes(content, named)
    if labels is not None and not in_classes:
        raise ValueError(
            f"{path}: labels name classes, but it has no 'classification_labels'; leave them out"
        )
    features = {MODALITIES[name]: name for name in (*modalities, *(["text"] if text else []))}
    has_transcripts = text_encoder is not None
    splits = {
        split: _split(
            content[name], features, has_transcripts, label_set if in_classes else None, f"{path}: {name}"
        )
        for split, name in named.items()
    }
    either_name = needed == SENTIMENT or label_set != "classification"
    scores = read_scores({s: content[name] for s, name in named.items()}, needed, either_name, str(path))
    own, further = own_and_further(scores, needed)
    used = {"id", "classification_labels", "regression_labels", "labels", *features}
    used |= {f"{name}_lengths" for name in features} | ({RAW_TEXT} if has_transcripts else set())
    used |= {name for column, name in MODALITY_SCORES.items() if column in scores.columns}
    unused = {key for name in named.values() for key in content[name]} - used
    log_unused(unused, str(path), "keys of its splits are")
    if "text" in unused and not has_transcripts:
        logger.warning(
            "%s: its text is not used; --text takes its features, --text_encoder encodes its raw_text", path
        )
    if not in_classes:
        classes: list[str] = []
    elif label_set == "classification":
        highest = max((_highest(record["label"]) for record in splits.values()), default=-1)
        names = labels if labels or highest >= len(POLARITY) else POLARITY
        classes = class_names(names, highest + 1, str(path))
    else:
        classes = list(SETS[label_set])
        _check_scale(splits, label_set, path)
    repaired: dict[str, int] = {}
    return Source(
        samples=_samples(splits, classes, label_set, scores, has_transcripts, repaired, path),
        classes=classes,
        # The counts grow while samples are read; the manifest is written after the last one.
        provenance={
            "format": "mmsa",
            "source": str(source),
            **({"label_set": label_set} if in_classes else {}),
            **({TRANSCRIPTS: RAW_TEXT} if has_transcripts else {}),
            "repaired_steps": repaired,
        },
        total=sum(len(record["id"]) for record in splits.values()),
        text_encoder=text_encoder,
        target=own,
        targets=further,
    )


def _named_splits(content: Any, path: Path) -> dict[str, str]:
    """The name in the file of each split; other keys of the file are logged.

    Raises:
        ValueError: no splits, or two names that mean the same one.
    """
    found: dict[str, str] = {}
    for name in content if isinstance(content, dict) else ():
        split = meaning(str(name))
        if split in found:
            raise ValueError(
                f"{path}: {found[split]!r} and {name!r} both mean the split {split!r}; remove one"
            )
        if split in SPLITS:
            found[split] = name
    if not found:
        there = f"; it has {sorted(map(str, content))[:8]}" if isinstance(content, dict) else ""
        raise ValueError(f"{path}: must be a dict of 'train', 'valid' and 'test'{there}")
    log_unused([name for name in content if name not in found.values()], str(path), "keys are")
    return {split: found[split] for split in SPLITS if split in found}


def _highest(label: np.ndarray) -> int:
    there = label[~np.isnan(label)]
    return int(there.max(initial=-1))


def _split(
    record: Any, modalities: dict[str, str], has_transcripts: bool, label_set: str | None, at: str
) -> dict[str, Any]:
    """What is needed of one split: `id` [U], `label` [U], per modality features and lengths ([U] or None).

    With transcripts also `raw_text` [U], else it is None. Without a label set all labels are NaN.
    """
    label_name = None
    if label_set is not None:
        label_name = label_array(record, label_set, at) if isinstance(record, dict) else "regression_labels"
    raw_text = (RAW_TEXT,) if has_transcripts else ()
    for name in ("id", *([label_name] if label_name else []), *modalities, *raw_text):
        if not isinstance(record, dict) or name not in record:
            there = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{at}: {name!r} is missing; it has {there}")
    given = {f"{name}_lengths": record.get(f"{name}_lengths") for name in modalities}
    given = {name: lengths for name, lengths in given.items() if lengths is not None}
    lists = {name: record[name] for name in ("id", *modalities, *raw_text)}
    for name, values in (lists | given).items():
        _check_list(values, f"{at}: {name}")
    utterances = len(record["id"])
    label = (
        np.full(utterances, np.nan)
        if label_name is None
        else read_labels(record[label_name], label_name, label_set, at)
    )
    ids = [_name(identity, f"{at}: id[{i}]") for i, identity in enumerate(record["id"])]
    read: dict[str, Any] = {"id": ids, "label": label, "features": {}, RAW_TEXT: record.get(RAW_TEXT)}
    lengths = {label_name or "label": len(label), **{name: len(record[name]) for name in raw_text}}
    for name, modality in modalities.items():
        features, steps = record[name], record.get(f"{name}_lengths")
        read["features"][modality] = (features, steps)
        lengths[name] = len(features)
        if steps is not None:
            lengths[f"{name}_lengths"] = len(steps)
    for name, length in lengths.items():
        if length != utterances:
            raise ValueError(f"{at}: {name} has {length} utterances, id {utterances}")
    return read


def _check_list(values: Any, at: str) -> None:
    """Raise ValueError for what has no entry per utterance."""
    fits = values.ndim > 0 if isinstance(values, np.ndarray) else isinstance(values, list | tuple)
    if not fits:
        # What is said is not quoted.
        found = f"of type {type(values).__name__}" if at.endswith(RAW_TEXT) else f"{values!r:.60}"
        raise ValueError(f"{at} is {found}; expected an array or list, one entry per utterance")


def _check_scale(splits: dict[str, dict[str, Any]], label_set: str, path: Path) -> None:
    largest = max(
        (float(np.nanmax(np.abs(record["label"]), initial=0)) for record in splits.values()), default=0
    )
    if label_set == "sentiment7" and 0 < largest <= 1:
        raise ValueError(
            f"{path}: its regression labels lie within -1..1, as CH-SIMS' do; sentiment7 needs -3..3, "
            "use --label_set sentiment2 or sentiment3"
        )


def _samples(
    splits: dict[str, dict[str, Any]],
    classes: list[str],
    label_set: str,
    scores: Scores,
    has_transcripts: bool,
    repaired: dict[str, int],
    path: Path,
) -> Iterator[Sample | BadSample]:
    for split, record in splits.items():
        for i in range(len(record["id"])):
            name = record["id"][i]
            key = key_of(name.replace("$_$", "_"))  # MMSA puts "$_$" before the segment
            label = record["label"][i]
            at = f"{path}: {split}[{i}]"
            try:
                features: dict[str, np.ndarray | None] = {
                    modality: _steps(values[i], None if lengths is None else lengths[i], modality, repaired)
                    for modality, (values, lengths) in record["features"].items()
                }
                text = transcript_of(checked_text(record[RAW_TEXT][i])) if has_transcripts else None
                named = class_name(label, classes, label_set) if classes else None
            except ValueError as error:
                yield BadSample(key, str(error), at)
                continue
            meta: dict[str, Any] = {"id": name, **scores.meta_of(split, i)}
            described = (key, split, named, features, meta, at)
            yield TranscribedSample(*described, text) if has_transcripts else Sample(*described)


def _name(identity: Any, at: str) -> str:
    """An utterance's id; some files give it as a list of its parts, some as bytes.

    Raises:
        ValueError: bytes that are not UTF-8, or parts of parts.
    """
    try:
        parts = np.asarray(identity).reshape(-1).tolist()
        return "_".join(part.decode() if isinstance(part, bytes) else str(part) for part in parts)
    except UnicodeDecodeError as error:
        raise ValueError(f"{at} is {error.object!r:.60}, which is not UTF-8; save it as text") from None
    except ValueError:
        raise ValueError(f"{at} is {identity!r:.60}; expected a text, or a list of its parts") from None


def _steps(padded: Any, length: Any, modality: str, repaired: dict[str, int]) -> np.ndarray | None:
    """One utterance's steps [T, D] without padding; None where there are none.

    Raises:
        ValueError: not [T, D], or its padding is not where its length says.
    """
    values = np.asarray(padded)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(f"{modality} is {values.dtype}, shape {values.shape}; expected numbers [steps, D]")
    filled = np.flatnonzero((values != 0).any(axis=1))
    if len(filled) == 0:
        return None
    first, last = int(filled[0]), int(filled[-1]) + 1
    if length is not None:
        try:
            steps = int(length)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{modality} has {length!r:.40} as its number of steps") from None
        if last <= steps <= len(values):
            first, last = 0, steps
        elif first >= len(values) - steps >= 0:
            # MMSA-FET can pad in front.
            first, last = len(values) - steps, len(values)
        else:
            raise ValueError(
                f"{modality} has {steps} steps by its length, but values at steps {first} to {last - 1} of "
                f"{len(values)}"
            )
    return replace_nonfinite(values[first:last], repaired, modality)
