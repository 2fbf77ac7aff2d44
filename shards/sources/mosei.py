"""CMU-MOSEI: opinions from YouTube, as the computational sequences of the CMU Multimodal SDK.

The sequences (Zadeh et al., 2018) are HDF5 files, linked from
https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK. Needed are the labels, and at least one of the others:

    CMU_MOSEI/
      CMU_MOSEI_Labels.csd           All Labels/data/VIDEO/{features [utterances, 7], intervals [.., 2]}
      CMU_MOSEI_COVAREP.csd          COVAREP/data/VIDEO/{features [steps, D], intervals [steps, 2]}: seconds
      CMU_MOSEI_VisualFacet42.csd    the same; or CMU_MOSEI_VisualOpenFace2.csd, or whatever you made
      CMU_MOSEI_TimestampedWords.csd        the same of words: features [words, 1] are byte strings
      CMU_MOSEI_TimestampedWordVectors.csd  the same of their GloVe vectors
      cmu_mosei_std_folds.py         the standard folds, a file of the SDK; or a JSON file:
                                     {"train": [VIDEO, ...], "val": [...], "test": [...]}

The seven columns of the labels are sentiment (-3..3), happy, sad, anger, surprise, disgust, fear (0..3). The
steps of an utterance are those whose middle is in its interval. Sequences that the SDK has aligned have one
entry per utterance, `VIDEO[3]`, and are used unchanged. Infinite values (COVAREP has logarithms of 0) and NaN
become 0, counted in the manifest's provenance. An utterance without any step of a modality lacks it; without
any of all it is listed as bad.

Text is a sequence of vectors, packed as they are, or of words, of which an encoder makes features: one step
per word. The entries "sp" of words are pauses, and are left out.

Label sets:

- `emotion`: the strongest of the six emotions; of equal ones the first in the order above. Utterances with
  none (all six 0) are left out, or with no_emotion="keep" a seventh class "none";
- `sentiment2`, `sentiment3`, `sentiment7`: see `shards.sources.reading.sentiment_classes`.

From the archive to a trained model (with `--dtype float32` where packing finds float16 too coarse):

    awtpn pack CMU_MOSEI data/mosei --format mosei --audio CMU_MOSEI_COVAREP.csd \\
        --video CMU_MOSEI_VisualFacet42.csd --text CMU_MOSEI_TimestampedWords.csd \\
        --folds cmu_mosei_std_folds.py
    awtpn shards info data/mosei
    awtpn train --config configs/mosei.yaml --data.train data/mosei

Text alone, of CMU_MOSEI_TimestampedWords.csd:

    awtpn extract CMU_MOSEI data/mosei-text --format mosei --audio none --video none --text chargrams \\
        --folds cmu_mosei_std_folds.py
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.format.feature_space import space_of
from shards.format.schema import BadSample, Sample
from shards.format.split_names import meaning
from shards.safe_io.bounded_json import parse_json
from shards.sources import mosei_csd
from shards.sources.base import (
    TRANSCRIPTS,
    Source,
    TranscribedSample,
    key_of,
    log_unused,
    logger,
    replace_nonfinite,
)
from shards.sources.reading.sentiment_classes import SETS, class_of
from shards.sources.transcripts import Transcript, split_words

LABELS = "All Labels"
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
NONE = "none"
LABEL_SETS = ("emotion", *SETS)
WORDS = "CMU_MOSEI_TimestampedWords.csd"
PAUSE = "sp"
TEXT_ENCODER = "chargrams"
FOLDS = ("train", "val", "test")
SEGMENT = re.compile(r"(?P<video>.+)\[(?P<number>\d+)\]")


def read(
    source: str | Path,
    audio: str | Path | None = None,
    video: str | Path | None = None,
    text: str | Path | None = None,
    text_encoder: str | None = None,
    folds: str | Path | None = None,
    label_set: str = "emotion",
    no_emotion: Literal["drop", "keep"] = "drop",
) -> Source:
    """Read CMU-MOSEI.

    Args:
        source: the folder of the sequences (.csd), or the file of labels.
        audio: the sequence (.csd) of audio features: a name in SOURCE, or a path.
        video: the sequence (.csd) of video features: a name in SOURCE, or a path.
        text: the sequence (.csd) of words, or of their vectors: a name in SOURCE, or a path. One of the three
            is enough.
        text_encoder: what encodes the words (default: chargrams, if TEXT holds words).
        folds: the SDK's cmu_mosei_std_folds.py, or JSON: a name in SOURCE, or a path. Videos in no fold are
            left out.
        label_set: emotion, sentiment2, sentiment3 or sentiment7.
        no_emotion: utterances without any emotion: leave them out, or give them the label "none".

    Returns:
        Utterances by video, keys `VIDEO_3`: number 3 is the row of the labels (and `VIDEO[3]` of the SDK).
        Metadata: video, begin and end (seconds), sentiment and the six intensities. With words they are
        `TranscribedSample`s.

    Raises:
        ValueError: a file is missing or of another form, or no such option; names the file and the fix.
    """
    if label_set not in LABEL_SETS:
        raise ValueError(f"label_set {label_set!r}: must be one of {', '.join(LABEL_SETS)}")
    if no_emotion not in ("drop", "keep"):
        raise ValueError(f"no_emotion {no_emotion!r}: must be 'drop' or 'keep'")
    root = Path(source)
    if not root.exists():
        raise ValueError(f"{root}: no such folder; give the one with CMU_MOSEI_Labels.csd")
    folder = root if root.is_dir() else root.parent
    if text_encoder is not None and text is None:
        text = WORDS
    files = {"audio": audio, "video": video, "text": text}
    named = {name: _path(folder, file) for name, file in files.items() if file}
    if not named:
        raise ValueError(
            f"{root}: no features named; give --audio FILE.csd, --video FILE.csd, --text FILE.csd or several"
        )
    words = named["text"] if "text" in named and mosei_csd.holds_words(named["text"]) else None
    if text_encoder is not None and words is None:
        raise ValueError(
            f"{named['text']}: holds vectors, which are packed as they are; leave --text_encoder out, or "
            f"give words, such as --text {WORDS}"
        )
    if folds is None:
        raise ValueError(
            f"{root}: no folds named; give --folds FILE: the SDK's cmu_mosei_std_folds.py, or JSON"
        )
    split_of = read_folds(_path(folder, folds))
    labels = _labels_file(root)
    if root.is_dir():
        unused = {path.name for path in root.glob("*.csd")} - {labels.name, *(p.name for p in named.values())}
        log_unused(unused, str(root), "sequences are")
    utterances, left_out = _utterances(labels, split_of, label_set, no_emotion)
    for cause, count in left_out.items():
        if count:
            logger.warning("%s: %d utterances are left out: %s", labels, count, cause)
    repaired: dict[str, int] = {}
    vectors = {name: path for name, path in named.items() if path != words}
    if label_set == "emotion":
        classes = [*EMOTIONS, NONE] if no_emotion == "keep" else list(EMOTIONS)
    else:
        classes = list(SETS[label_set])
    return Source(
        samples=_samples(utterances, vectors, words, repaired),
        classes=classes,
        # The counts grow while samples are read; the manifest is written after the last one.
        provenance={
            "format": "mosei",
            "source": str(labels),
            "files": {name: path.name for name, path in named.items()},
            "features": {name: _feature_space(path) for name, path in vectors.items()},
            **({TRANSCRIPTS: words.name} if words else {}),
            "folds": Path(folds).name,
            "label_set": label_set,
            "left_out": left_out,
            "repaired_steps": repaired,
        },
        total=sum(len(of_video) for of_video in utterances.values()),
        text_encoder=(text_encoder or TEXT_ENCODER) if words else None,
    )


# --- Folds ---------------------------------------------------------------------------------------


def read_folds(path: Path) -> dict[str, str]:
    """The split of each video.

    Args:
        path: JSON, {"train": [VIDEO, ...], "val" (or "valid", "dev"): [...], "test": [...]}; or the SDK's
            Python file, whose lists (`standard_train_fold = [...]`) are read without running it.

    Raises:
        ValueError: no such file, not of that form, or a video in two folds.
    """
    try:
        text = path.read_text(encoding="utf-8")
        named = _literals(text) if path.suffix == ".py" else parse_json(text, path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: deep nesting
        raise ValueError(f"{path}: neither JSON nor plain lists in Python ({error})") from None
    split_of: dict[str, str] = {}
    for name, videos in named.items() if isinstance(named, dict) else ():
        splits = {meaning(word) for word in re.split("[^a-z]+", name.lower())} & {*FOLDS}
        if len(splits) != 1 or not isinstance(videos, list):
            raise ValueError(f"{path}: {name!r} must be a list of videos, named after train, val or test")
        split = splits.pop()
        for video in map(str, videos):
            if split_of.setdefault(video, split) != split:
                raise ValueError(f"{path}: video {video!r} is in {split_of[video]!r} and in {split!r}")
    if not split_of:
        raise ValueError(f'{path}: no folds; expected {{"train": [...], "val": [...], "test": [...]}}')
    return split_of


def _literals(text: str) -> dict[str, Any]:
    """Names and values of the lists that a Python file assigns."""
    return {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


# --- Labels --------------------------------------------------------------------------------------


def _utterances(
    labels: Path, split_of: Mapping[str, str], label_set: str, no_emotion: str
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """The utterances of each video as records; and how many were left out, by cause."""
    found: dict[str, list[dict[str, Any]]] = {}
    left_out = {"in no fold": 0, "no emotion": 0}
    with mosei_csd.opened(labels) as data:
        for entry in data:
            segment = SEGMENT.fullmatch(entry)
            video = segment["video"] if segment else entry
            values, intervals = mosei_csd.read_entry(data, entry, labels)
            if values.shape[1:] != (1 + len(EMOTIONS),):
                columns = ", ".join(("sentiment", *EMOTIONS))
                raise ValueError(f"{labels}: {entry}: labels {values.shape}; expected 7 columns: {columns}")
            if video not in split_of:
                left_out["in no fold"] += len(values)
                continue
            for row, (scores, (begin, end)) in enumerate(
                zip(values.tolist(), intervals.tolist(), strict=True)
            ):
                utterance = {
                    "number": int(segment["number"]) if segment else row,
                    "split": split_of[video],
                    "meta": {
                        "video": video,
                        "begin": begin,
                        "end": end,
                        **dict(zip(("sentiment", *EMOTIONS), scores, strict=True)),
                    },
                    "at": f"{labels}: {entry}, row {row}",
                }
                try:
                    utterance["label"] = _label(scores, label_set)
                except ValueError as error:
                    utterance["cause"] = str(error)
                if utterance.get("label") == NONE and no_emotion == "drop":
                    left_out["no emotion"] += 1
                else:
                    found.setdefault(video, []).append(utterance)
    if not found:
        raise ValueError(f"{labels}: none of its {left_out['in no fold']} utterances is in a fold")
    return found, left_out


def _label(scores: list[float], label_set: str) -> str:
    if not np.isfinite(scores).all():
        raise ValueError(f"its labels are {scores}")
    if label_set != "emotion":
        return class_of(scores[0], label_set)
    strongest = int(np.argmax(scores[1:]))  # the first of equal ones
    return EMOTIONS[strongest] if scores[1 + strongest] > 0 else NONE


# --- Features ------------------------------------------------------------------------------------


def _samples(
    utterances: Mapping[str, list[dict[str, Any]]],
    vectors: Mapping[str, Path],
    words: Path | None,
    repaired: dict[str, int],
) -> Iterator[Sample | BadSample]:
    with contextlib.ExitStack() as stack:
        sequences = {name: stack.enter_context(mosei_csd.opened(path)) for name, path in vectors.items()}
        spoken = stack.enter_context(mosei_csd.opened(words)) if words else None
        for video, of_video in utterances.items():
            # A video's sequence is read once for all its utterances.
            read_video = cache(partial(mosei_csd.read_entry, entry=video))
            read_speech = cache(partial(mosei_csd.read_words, entry=video))
            for utterance in of_video:
                key = key_of(f"{video}_{utterance['number']}")
                meta, at = utterance["meta"], utterance["at"]
                try:
                    if "cause" in utterance:
                        raise ValueError(utterance["cause"])
                    features = {
                        name: _steps(data, vectors[name], read_video, utterance)
                        for name, data in sequences.items()
                    }
                    text = _transcript(spoken, words, read_speech, utterance) if words else None
                    if not any(map(len, features.values())) and text is None:
                        named = " or ".join((*vectors, *(["text"] if words else [])))
                        raise ValueError(f"no step of {named} between {meta['begin']} and {meta['end']} s")
                except ValueError as error:
                    yield BadSample(key, str(error), at)
                    continue
                finite_steps = {
                    name: replace_nonfinite(steps, repaired, name) if len(steps) else None
                    for name, steps in features.items()
                }
                described = (key, utterance["split"], utterance["label"], finite_steps, meta, at)
                yield TranscribedSample(*described, text) if words else Sample(*described)


def _steps(data: Any, path: Path, read_video: Callable[..., Any], utterance: Mapping[str, Any]) -> np.ndarray:
    """An utterance's steps [T, D] of one sequence; none if the sequence lacks its video."""
    found = _find(data, path, mosei_csd.read_entry, read_video, utterance["meta"], utterance["number"])
    if found is None:
        return np.zeros((0, 1))
    features, _, rows = found
    return features[rows]


def _transcript(
    data: Any, path: Path, read_video: Callable[..., Any], utterance: Mapping[str, Any]
) -> Transcript | None:
    """An utterance's words, with their times from its begin; None if it has none."""
    meta = utterance["meta"]
    found = _find(data, path, mosei_csd.read_words, read_video, meta, utterance["number"])
    if found is None:
        return None
    entries, intervals, rows = found
    # A word that begins before the utterance or ends after it is cut.
    times = np.clip(intervals[rows], meta["begin"], meta["end"]) - meta["begin"]
    spoken = [
        (word, (begin, end))
        for i, (begin, end) in zip(rows, times.tolist(), strict=True)
        if entries[i] != PAUSE
        for word in split_words(entries[i])
    ]
    if not spoken:
        return None
    words, spans = zip(*spoken, strict=True)
    return Transcript(words, spans if np.isfinite(spans).all() else ())


def _find(
    data: Any,
    path: Path,
    read_segment: Callable[..., Any],
    read_video: Callable[..., Any],
    meta: Mapping[str, Any],
    number: int,
) -> tuple[Any, np.ndarray, np.ndarray] | None:
    """The entry that an utterance is in, its intervals, and the utterance's rows in it; None: it has none."""
    segment = f"{meta['video']}[{number}]"
    if mosei_csd.has(data, segment):
        values, intervals = read_segment(data, segment, path)
        return values, intervals, np.arange(len(intervals))
    if not mosei_csd.has(data, meta["video"]):
        return None
    values, intervals = read_video(data, path=path)
    return values, intervals, _within(intervals, meta["begin"], meta["end"])


def _within(intervals: np.ndarray, begin: float, end: float) -> np.ndarray:
    """The steps whose middle is in [begin, end), in the order of time."""
    middle = intervals.mean(axis=1)
    inside = np.flatnonzero((middle >= begin) & (middle < end))
    return inside[np.argsort(middle[inside], kind="stable")]


# --- Files ---------------------------------------------------------------------------------------


def _feature_space(path: Path) -> dict[str, Any]:
    """The manifest's record of a sequence: a model trained on it refuses features of another one."""
    settings = {"id": mosei_csd.name_of(path), "corpus": "CMU-MOSEI"}
    return {"space": space_of(settings), "settings": settings}


def _path(folder: Path, file: str | Path) -> Path:
    for path in (folder / file, Path(file)):
        if path.is_file():
            return path
    raise ValueError(f"{file}: no such file, neither in {folder} nor as a path")


def _labels_file(root: Path) -> Path:
    files = sorted(root.glob("*.csd")) if root.is_dir() else [root]
    for path in files:
        if mosei_csd.name_of(path) == LABELS:
            return path
    raise ValueError(
        f"{root}: no sequence {LABELS!r} in it, only {[path.name for path in files]}; "
        "add CMU_MOSEI_Labels.csd, or name the file instead of the folder"
    )
