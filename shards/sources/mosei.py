"""CMU-MOSEI and CMU-MOSI: opinions from YouTube, as the computational sequences of the CMU Multimodal SDK.

The sequences (Zadeh et al., 2018 and 2016) are HDF5 files, linked from
https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK. Needed are the labels, and at least one of the others:

    CMU_MOSEI/
      CMU_MOSEI_Labels.csd           All Labels/data/VIDEO/{features [utterances, 7], intervals [.., 2]}
      CMU_MOSEI_COVAREP.csd          COVAREP/data/VIDEO/{features [steps, D], intervals [steps, 2]}: seconds
      CMU_MOSEI_VisualFacet42.csd    the same; or CMU_MOSEI_VisualOpenFace2.csd, or whatever you made
      CMU_MOSEI_TimestampedWords.csd        the same of words: features [words, 1] are byte strings
      CMU_MOSEI_TimestampedWordVectors.csd  the same of their GloVe vectors
      cmu_mosei_std_folds.py         the standard folds, a file of the SDK; or a JSON file:
                                     {"train": [VIDEO, ...], "val": [...], "test": [...]}
    CMU_MOSI/
      CMU_MOSI_Opinion_Labels.csd    Opinion Segment Labels/data/VIDEO/{features [utterances, 1], intervals}
      CMU_MOSI_COVAREP.csd, CMU_MOSI_Visual_Facet_42.csd, CMU_MOSI_TimestampedWords.csd, ...: as of CMU-MOSEI
      cmu_mosi_std_folds.py          its standard folds

The name of the labels' sequence tells which corpus it is. The seven columns of CMU-MOSEI's labels are
sentiment (-3..3), happy, sad, anger, surprise, disgust, fear (0..3); CMU-MOSI has sentiment only. All of them
are metadata of the utterances. One with a score that is NaN or outside of these ranges is listed as bad.

The steps of an utterance are those whose middle is in its interval. Sequences that the SDK has aligned have
one entry per utterance, `VIDEO[3]`, and are used unchanged. Infinite values (COVAREP has logarithms of 0) and
NaN become 0, counted in the manifest's provenance. An utterance without any step of a modality lacks it;
without any of all it is listed as bad.

Text is a sequence of vectors, packed as they are, or of words, of which an encoder makes features: one step
per word. The entries "sp" of words are pauses, and are left out.

Targets, which every dataset declares, so that `data.target` can choose one of them:

- the classes (`label`), by a label set;
- `sentiment`: regression, from -3 to 3;
- `emotions` (CMU-MOSEI): the six emotions, several at once, with intensities from 0 (absent) to 3.

With `--target sentiment` or `--target emotions` that is the dataset's own target, and all utterances of the
folds are packed, without classes unless a label set is given. Label sets:

- `emotion` (CMU-MOSEI): the strongest of the six emotions; of equal ones the first in the order above.
  Utterances with none (all six 0) are left out, or with no_emotion="keep" a seventh class "none";
- `sentiment2`, `sentiment3`, `sentiment7`: see `shards.sources.reading.sentiment_classes`.

From the archive to a trained model (with `--dtype float32` where packing finds float16 too coarse):

    awtpn pack CMU_MOSEI data/mosei --format mosei --audio CMU_MOSEI_COVAREP.csd \\
        --video CMU_MOSEI_VisualFacet42.csd --text CMU_MOSEI_TimestampedWords.csd \\
        --folds cmu_mosei_std_folds.py
    awtpn shards info data/mosei
    awtpn train --config configs/mosei.yaml --data.train data/mosei

Sentiment of CMU-MOSI, and of CMU-MOSEI by text alone, of CMU_MOSEI_TimestampedWords.csd:

    awtpn pack CMU_MOSI data/mosi --format mosei --target sentiment --audio CMU_MOSI_COVAREP.csd \\
        --video CMU_MOSI_Visual_Facet_42.csd --folds cmu_mosi_std_folds.py
    awtpn extract CMU_MOSEI data/mosei-text --format mosei --target sentiment --audio none --video none \\
        --text chargrams --folds cmu_mosei_std_folds.py
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.format.feature_space import space_of
from shards.format.schema import BadSample, Sample
from shards.format.targets import CLASSES
from shards.sources.base import (
    TRANSCRIPTS,
    Source,
    TranscribedSample,
    key_of,
    log_unused,
    logger,
    replace_nonfinite,
)
from shards.sources.cmu import csd
from shards.sources.cmu.folds import read_folds
from shards.sources.cmu.labels import (
    CORPORA,
    EMOTION,
    EMOTIONS,
    MOSEI,
    NONE,
    Corpus,
    find_labels,
    read_utterances,
)
from shards.sources.reading.sentiment_classes import SETS
from shards.sources.reading.transcripts import Transcript, split_words

PAUSE = "sp"
TEXT_ENCODER = "chargrams"


def read(
    source: str | Path,
    audio: str | Path | None = None,
    video: str | Path | None = None,
    text: str | Path | None = None,
    text_encoder: str | None = None,
    folds: str | Path | None = None,
    label_set: str | None = None,
    no_emotion: Literal["drop", "keep"] = "drop",
    target: Literal["classification", "sentiment", "emotions"] = "classification",
) -> Source:
    """Read CMU-MOSEI or CMU-MOSI.

    Args:
        source: the folder of the sequences (.csd), or the file of labels.
        audio: the sequence (.csd) of audio features: a name in SOURCE, or a path.
        video: the sequence (.csd) of video features: a name in SOURCE, or a path.
        text: the sequence (.csd) of words, or of their vectors: a name in SOURCE, or a path. One of the three
            is enough.
        text_encoder: what encodes the words (default: chargrams, if TEXT holds words).
        folds: the SDK's cmu_mosei_std_folds.py or cmu_mosi_std_folds.py, or JSON: a name in SOURCE, or a
            path. Videos in no fold are left out.
        label_set: emotion, sentiment2, sentiment3 or sentiment7 (default: emotion; of CMU-MOSI sentiment2;
            with another target than classification no classes).
        no_emotion: with the label set emotion, utterances without any emotion: leave them out, or give them
            the label "none".
        target: what is to be recognized: classification (classes), sentiment (a regression), or emotions (the
            intensities of all six; CMU-MOSEI).

    Returns:
        Utterances by video, keys `VIDEO_3`: number 3 is the row of the labels (and `VIDEO[3]` of the SDK).
        Metadata: video, begin and end (seconds), sentiment and of CMU-MOSEI the six intensities. With words
        they are `TranscribedSample`s.

    Raises:
        ValueError: a file is missing or of another form, or no such option; names the file and the fix.
    """
    if label_set not in (None, *MOSEI.label_sets):
        raise ValueError(f"label_set {label_set!r}: must be one of {', '.join(MOSEI.label_sets)}")
    if no_emotion not in ("drop", "keep"):
        raise ValueError(f"no_emotion {no_emotion!r}: must be 'drop' or 'keep'")
    if target not in (CLASSES.type, *MOSEI.targets):
        raise ValueError(f"target {target!r}: must be one of {', '.join((CLASSES.type, *MOSEI.targets))}")
    root = Path(source)
    if not root.exists():
        wanted = " or ".join(corpus.labels_file for corpus in CORPORA)
        raise ValueError(f"{root}: no such folder; give the one with {wanted}")
    folder = root if root.is_dir() else root.parent
    if not (audio or video or text or text_encoder):
        raise ValueError(
            f"{root}: no features named; give --audio FILE.csd, --video FILE.csd, --text FILE.csd or several"
        )
    labels, corpus = find_labels(root)
    label_set = _checked_label_set(labels, corpus, label_set, target)
    if text_encoder is not None and text is None:
        text = corpus.words_file
    files = {"audio": audio, "video": video, "text": text}
    named = {name: _path(folder, file) for name, file in files.items() if file}
    words = named["text"] if "text" in named and csd.holds_words(named["text"]) else None
    if text_encoder is not None and words is None:
        raise ValueError(
            f"{named['text']}: holds vectors, which are packed as they are; leave --text_encoder out, or "
            f"give words, such as --text {corpus.words_file}"
        )
    if folds is None:
        raise ValueError(
            f"{root}: no folds named; give --folds FILE: the SDK's cmu_mosei_std_folds.py (of CMU-MOSI "
            "cmu_mosi_std_folds.py), or JSON"
        )
    split_of = read_folds(_path(folder, folds))
    if root.is_dir():
        unused = {path.name for path in root.glob("*.csd")} - {labels.name, *(p.name for p in named.values())}
        log_unused(unused, str(root), "sequences are")
    utterances, left_out = read_utterances(labels, corpus, split_of, label_set, no_emotion)
    for cause, count in left_out.items():
        if count:
            logger.warning("%s: %d utterances are left out: %s", labels, count, cause)
    repaired: dict[str, int] = {}
    vectors = {name: path for name, path in named.items() if path != words}
    return Source(
        samples=_samples(utterances, vectors, words, repaired),
        classes=_classes(label_set, no_emotion),
        # The counts grow while samples are read; the manifest is written after the last one.
        provenance={
            "format": "mosei",
            "source": str(labels),
            "files": {name: path.name for name, path in named.items()},
            "features": {name: _feature_space(path, corpus) for name, path in vectors.items()},
            **({TRANSCRIPTS: words.name} if words else {}),
            "folds": Path(folds).name,
            "label_set": label_set,
            "left_out": left_out,
            "repaired_steps": repaired,
        },
        total=sum(len(of_video) for of_video in utterances.values()),
        text_encoder=(text_encoder or TEXT_ENCODER) if words else None,
        target=CLASSES if target == CLASSES.type else corpus.targets[target],
        targets=corpus.targets,
    )


def _checked_label_set(labels: Path, corpus: Corpus, label_set: str | None, target: str) -> str | None:
    """The label set to use; None: utterances have no classes.

    Raises:
        ValueError: the corpus has no such label set or target.
    """
    if target not in (CLASSES.type, *corpus.targets):
        raise ValueError(
            f"{labels}: {corpus.name} has no target {target!r}; it has "
            f"{', '.join((CLASSES.type, *corpus.targets))}"
        )
    if label_set not in (None, *corpus.label_sets):
        raise ValueError(
            f"{labels}: {corpus.name} has no label set {label_set!r}; it has {', '.join(corpus.label_sets)}"
        )
    return corpus.label_sets[0] if label_set is None and target == CLASSES.type else label_set


def _classes(label_set: str | None, no_emotion: str) -> list[str]:
    if label_set == EMOTION:
        return [*EMOTIONS, NONE] if no_emotion == "keep" else list(EMOTIONS)
    return list(SETS[label_set]) if label_set else []


# --- Features ------------------------------------------------------------------------------------


def _samples(
    utterances: Mapping[str, list[dict[str, Any]]],
    vectors: Mapping[str, Path],
    words: Path | None,
    repaired: dict[str, int],
) -> Iterator[Sample | BadSample]:
    with contextlib.ExitStack() as stack:
        sequences = {name: stack.enter_context(csd.opened(path)) for name, path in vectors.items()}
        spoken = stack.enter_context(csd.opened(words)) if words else None
        for video, of_video in utterances.items():
            # A video's sequence is read once for all its utterances.
            read_video = cache(partial(csd.read_entry, entry=video))
            read_speech = cache(partial(csd.read_words, entry=video))
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
    found = _find(data, path, csd.read_entry, read_video, utterance["meta"], utterance["number"])
    if found is None:
        return np.zeros((0, 1))
    features, _, rows = found
    return features[rows]


def _transcript(
    data: Any, path: Path, read_video: Callable[..., Any], utterance: Mapping[str, Any]
) -> Transcript | None:
    """An utterance's words, with their times from its begin; None if it has none."""
    meta = utterance["meta"]
    found = _find(data, path, csd.read_words, read_video, meta, utterance["number"])
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
    if csd.has(data, segment):
        values, intervals = read_segment(data, segment, path)
        return values, intervals, np.arange(len(intervals))
    if not csd.has(data, meta["video"]):
        return None
    values, intervals = read_video(data, path=path)
    return values, intervals, _within(intervals, meta["begin"], meta["end"])


def _within(intervals: np.ndarray, begin: float, end: float) -> np.ndarray:
    """The steps whose middle is in [begin, end), in the order of time."""
    middle = intervals.mean(axis=1)
    inside = np.flatnonzero((middle >= begin) & (middle < end))
    return inside[np.argsort(middle[inside], kind="stable")]


# --- Files ---------------------------------------------------------------------------------------


def _feature_space(path: Path, corpus: Corpus) -> dict[str, Any]:
    """The manifest's record of a sequence: a model trained on it refuses features of another one."""
    settings = {"id": csd.name_of(path), "corpus": corpus.name}
    return {"space": space_of(settings), "settings": settings}


def _path(folder: Path, file: str | Path) -> Path:
    for path in (folder / file, Path(file)):
        if path.is_file():
            return path
    raise ValueError(f"{file}: no such file, neither in {folder} nor as a path")
