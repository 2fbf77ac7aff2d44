"""Utterances of CMU-MOSEI and CMU-MOSI: intervals, splits, scores, and the classes made of the scores.

The two corpora differ in the name of the labels' sequence and in its columns:

    CMU-MOSEI   All Labels               sentiment, happy, sad, anger, surprise, disgust, fear
    CMU-MOSI    Opinion Segment Labels   sentiment

Sentiment is from -3 to 3, an emotion's intensity from 0 (absent) to 3. Scores are means over annotators.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.format.targets import Target, values_of
from shards.sources.cmu import csd
from shards.sources.reading.sentiment_classes import SETS, class_of

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
EMOTION = "emotion"  # the label set of emotions
NONE = "none"
SEGMENT = re.compile(r"(?P<video>.+)\[(?P<number>\d+)\]")

SENTIMENT_TARGET = Target("regression", {"sentiment": [-3.0, 3.0]})
EMOTIONS_TARGET = Target("multilabel", {name: [0.0, 3.0] for name in EMOTIONS})


@dataclass(frozen=True)
class Corpus:
    """A corpus of the SDK.

    Attributes:
        name: of the corpus.
        sequence: name of the labels' sequence inside its file.
        labels_file, words_file: the files as the SDK distributes them.
        columns: of the labels.
        label_sets: names of sets of classes; the first one is the default.
        targets: targets that its labels give, by name.
    """

    name: str
    sequence: str
    labels_file: str
    words_file: str
    columns: tuple[str, ...]
    label_sets: tuple[str, ...]
    targets: dict[str, Target]


MOSEI = Corpus(
    name="CMU-MOSEI",
    sequence="All Labels",
    labels_file="CMU_MOSEI_Labels.csd",
    words_file="CMU_MOSEI_TimestampedWords.csd",
    columns=("sentiment", *EMOTIONS),
    label_sets=(EMOTION, *SETS),
    targets={"sentiment": SENTIMENT_TARGET, "emotions": EMOTIONS_TARGET},
)
MOSI = Corpus(
    name="CMU-MOSI",
    sequence="Opinion Segment Labels",
    labels_file="CMU_MOSI_Opinion_Labels.csd",
    words_file="CMU_MOSI_TimestampedWords.csd",
    columns=("sentiment",),
    label_sets=tuple(SETS),
    targets={"sentiment": SENTIMENT_TARGET},
)
CORPORA = (MOSEI, MOSI)


def find_labels(root: Path) -> tuple[Path, Corpus]:
    """The file of labels, and whose it is.

    Args:
        root: a folder, or the file.

    Raises:
        ValueError: there is none, or one of each corpus.
    """
    files = sorted(root.glob("*.csd")) if root.is_dir() else [root]
    by_name = {corpus.sequence: corpus for corpus in CORPORA}
    found: list[tuple[Path, Corpus]] = []
    damaged: ValueError | None = None
    for path in files:
        try:
            name = csd.name_of(path)
        except ValueError as error:  # a file that is not needed may be of any kind
            damaged = damaged or error
            continue
        if name in by_name:
            found.append((path, by_name[name]))
    if damaged and not found:
        raise damaged
    if not found:
        sequences = " or ".join(f"{corpus.sequence!r} ({corpus.name})" for corpus in CORPORA)
        wanted = " or ".join(corpus.labels_file for corpus in CORPORA)
        raise ValueError(
            f"{root}: no sequence {sequences} in it, only {[path.name for path in files]}; "
            f"add {wanted}, or name the file instead of the folder"
        )
    if len({corpus.name for _, corpus in found}) > 1:
        listed = " and ".join(f"{path.name} of {corpus.name}" for path, corpus in found)
        raise ValueError(f"{root}: holds {listed}; name the file of labels instead of the folder")
    return found[0]


def read_utterances(
    path: Path, corpus: Corpus, split_of: Mapping[str, str], label_set: str | None, no_emotion: str
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """The utterances of each video as records; and how many were left out, by cause.

    Args:
        path: the file of labels.
        corpus: of that file.
        split_of: the split of each video; utterances of other videos are left out.
        label_set: how scores become classes; None: utterances have no class.
        no_emotion: "drop" leaves utterances of the class `NONE` out.

    Returns:
        Records with number, split, label, meta and "at", the place for error messages; "cause" says why an
        utterance is bad.

    Raises:
        ValueError: labels of another form, or no utterance in a fold.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    left_out = {"in no fold": 0, "no emotion": 0}
    with csd.opened(path) as data:
        for entry in data:
            segment = SEGMENT.fullmatch(entry)
            video = segment["video"] if segment else entry
            values, intervals = csd.read_entry(data, entry, path)
            if values.shape[1:] != (len(corpus.columns),):
                many = f"{len(corpus.columns)} columns" if len(corpus.columns) > 1 else "1 column"
                raise ValueError(
                    f"{path}: {entry}: labels {values.shape}; expected {many}: {', '.join(corpus.columns)}"
                )
            if video not in split_of:
                left_out["in no fold"] += len(values)
                continue
            for row, (scores, (begin, end)) in enumerate(
                zip(values.tolist(), intervals.tolist(), strict=True)
            ):
                named = dict(zip(corpus.columns, scores, strict=True))
                utterance = {
                    "number": int(segment["number"]) if segment else row,
                    "split": split_of[video],
                    "label": None,
                    "meta": {"video": video, "begin": begin, "end": end, **named},
                    "at": f"{path}: {entry}, row {row}",
                }
                try:
                    for target in corpus.targets.values():
                        values_of(named, target)
                    utterance["label"] = label_set and label_of(named, label_set)
                except ValueError as error:
                    utterance["cause"] = str(error)
                if utterance["label"] == NONE and no_emotion == "drop":
                    left_out["no emotion"] += 1
                else:
                    found.setdefault(video, []).append(utterance)
    if not found:
        raise ValueError(f"{path}: none of its {left_out['in no fold']} utterances is in a fold")
    return found, left_out


def label_of(scores: Mapping[str, float], label_set: str) -> str:
    """The class of an utterance: its strongest emotion, the first of equal ones; or that of its sentiment."""
    if label_set != EMOTION:
        return class_of(scores["sentiment"], label_set)
    intensities = [scores[name] for name in EMOTIONS]
    strongest = int(np.argmax(intensities))
    return EMOTIONS[strongest] if intensities[strongest] > 0 else NONE
