"""Targets of CMU-MOSEI, CMU-MOSI and IEMOCAP: sentiment, intensities of emotions, valence and so on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from corpora_support import (
    IEMOCAP_TURNS,
    bad,
    good,
    write_iemocap,
    write_mosei,
    write_mosi,
    write_sequence,
)

from shards.format.schema import BadSample, Sample
from shards.format.targets import CLASSES, Target
from shards.sources import Source, iemocap, mosei

MOSEI = {"audio": "CMU_MOSEI_COVAREP.csd", "folds": "cmu_mosei_std_folds.py"}
MOSI = {
    "audio": "CMU_MOSI_COVAREP.csd",
    "video": "CMU_MOSI_Visual_Facet_42.csd",
    "folds": "cmu_mosi_std_folds.py",
}
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
SENTIMENT = Target("regression", {"sentiment": [-3, 3]})
INTENSITIES = Target("multilabel", {name: [0, 3] for name in EMOTIONS})
VAD = Target("regression", {name: [0.5, 5.5] for name in ("valence", "activation", "dominance")})


def samples_of(source: Source) -> dict[str, Sample]:
    found = list(source.samples)
    assert len(found) == source.total
    return {sample.key: sample for sample in found if isinstance(sample, Sample)}


def causes_of(source: Source) -> dict[str, str]:
    return {sample.key: sample.cause for sample in source.samples if isinstance(sample, BadSample)}


# --- CMU-MOSEI -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mosei_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mosei(tmp_path_factory.mktemp("mosei"))


def test_classes_of_mosei_are_its_target_and_others_are_declared(mosei_root: Path) -> None:
    source = mosei.read(mosei_root, **MOSEI)
    assert source.target == CLASSES
    assert source.targets == {"sentiment": SENTIMENT, "emotions": INTENSITIES}
    assert source.provenance["label_set"] == "emotion"


@pytest.mark.parametrize(("target", "expected"), [("sentiment", SENTIMENT), ("emotions", INTENSITIES)])
def test_every_utterance_of_the_folds_has_its_scores(mosei_root: Path, target: str, expected: Target) -> None:
    source = mosei.read(mosei_root, **MOSEI, target=target)
    assert (source.target, source.classes, source.provenance["label_set"]) == (expected, [], None)
    assert source.targets.keys() == {"sentiment", "emotions"}
    samples = samples_of(source)
    # With the one without any emotion, which classes of emotions leave out.
    assert samples.keys() == samples_of(mosei.read(mosei_root, **MOSEI, no_emotion="keep")).keys()
    assert {sample.label for sample in samples.values()} == {None}
    assert {key: sample.meta["sentiment"] for key, sample in samples.items()} == {
        "-3g5yACwYnA_0": 1.0,
        "-3g5yACwYnA_1": -0.5,
        "GdFP_p4eQX0_0": 2.6,
        "GdFP_p4eQX0_1": 1.0,
        "hh04W3xXa5s_0": 0.0,
        "hh04W3xXa5s_1": -2.7,
    }
    assert [samples["hh04W3xXa5s_1"].meta[name] for name in EMOTIONS] == [0, 0, 0, 0, 1 / 3, 2]
    assert [samples["hh04W3xXa5s_0"].meta[name] for name in EMOTIONS] == [0] * 6


def test_a_label_set_with_another_target_keeps_its_classes(mosei_root: Path) -> None:
    source = mosei.read(mosei_root, **MOSEI, target="sentiment", label_set="sentiment2")
    assert (source.target, source.classes) == (SENTIMENT, ["negative", "non-negative"])
    assert samples_of(source)["hh04W3xXa5s_1"].label == "negative"


@pytest.mark.parametrize(
    ("column", "value", "cause"),
    [
        (0, 3.5, "its 'sentiment' is 3.5, outside of -3 to 3"),
        (0, np.nan, "its 'sentiment' is nan; write a number, or leave it empty"),
        (6, 4.0, "its 'fear' is 4.0, outside of 0 to 3"),
        (1, -1.0, "its 'happy' is -1.0, outside of 0 to 3"),
    ],
)
@pytest.mark.parametrize("target", ["classification", "sentiment", "emotions"])
def test_an_utterance_with_a_bad_score_is_listed(
    tmp_path: Path, column: int, value: float, cause: str, target: str
) -> None:
    write_mosei(tmp_path)
    with h5py.File(tmp_path / "CMU_MOSEI_Labels.csd", "a") as file:
        file["All Labels/data/-3g5yACwYnA/features"][1, column] = value
    assert causes_of(mosei.read(tmp_path, **MOSEI, target=target)) == {"-3g5yACwYnA_1": cause}


# --- CMU-MOSI ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mosi_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mosi(tmp_path_factory.mktemp("mosi"))


def test_mosi_has_sentiment_alone(mosi_root: Path) -> None:
    source = mosei.read(mosi_root, **MOSI, target="sentiment")
    assert (source.target, source.targets) == (SENTIMENT, {"sentiment": SENTIMENT})
    assert source.provenance["features"]["video"]["settings"] == {"id": "FACET_4.2", "corpus": "CMU-MOSI"}
    samples = samples_of(source)
    assert {key: sample.split for key, sample in samples.items()} == {
        "-3g5yACwYnA_0": "train",
        "-3g5yACwYnA_1": "train",
        "GdFP_p4eQX0_0": "test",
        "GdFP_p4eQX0_1": "test",
        "hh04W3xXa5s_0": "val",
        "hh04W3xXa5s_1": "val",
    }
    sample = samples["hh04W3xXa5s_1"]
    assert sample.meta.keys() == {"video", "begin", "end", "sentiment"}
    assert sample.meta["sentiment"] == np.float32(-2.7)
    assert {name: len(values) for name, values in sample.features.items()} == {"audio": 25, "video": 13}


def test_classes_of_mosi_are_those_of_its_sentiment(mosi_root: Path) -> None:
    source = mosei.read(mosi_root, **MOSI)
    assert source.classes == ["negative", "non-negative"]
    labels = [sample.label for sample in samples_of(source).values()]
    assert labels == ["non-negative", "negative", *["non-negative"] * 3, "negative"]
    assert mosei.read(mosi_root, **MOSI, label_set="sentiment3").classes[1] == "neutral"


def test_words_of_mosi_are_in_its_own_file(mosi_root: Path) -> None:
    source = mosei.read(mosi_root, text_encoder="chargrams", folds=MOSI["folds"], target="sentiment")
    assert source.provenance["files"] == {"text": "CMU_MOSI_TimestampedWords.csd"}
    assert samples_of(source)["GdFP_p4eQX0_0"].transcript.words == ("i", "love", "it")  # type: ignore[attr-defined]


def widen_labels(root: Path) -> None:
    labels = {"hh04W3xXa5s": (np.ones((1, 7)), np.array([[0, 1.0]]))}
    write_sequence(root / "CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", labels)


def add_mosei(root: Path) -> None:
    write_mosei(root)


@pytest.mark.parametrize(
    ("spoil", "options", "complaint"),
    [
        (
            None,
            {"target": "emotions"},
            "CMU-MOSI has no target 'emotions'; it has classification, sent",
        ),
        (None, {"target": "mood"}, "target 'mood': must be one of classification, sentiment, emotions"),
        (None, {"label_set": "emotion"}, "CMU-MOSI has no label set 'emotion'; it has sentiment2"),
        (widen_labels, {}, r"labels \(1, 7\); expected 1 column: sentiment"),
        (
            add_mosei,
            {},
            r"holds CMU_MOSEI_Labels\.csd of CMU-MOSEI and CMU_MOSI_Opinion_Labels\.csd of CMU-MOSI; name",
        ),
    ],
)
def test_what_mosi_cannot_be_read_with(
    tmp_path: Path, spoil: Any, options: dict[str, Any], complaint: str
) -> None:
    write_mosi(tmp_path)
    if spoil:
        spoil(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        mosei.read(tmp_path, **MOSI | options)


def test_a_damaged_file_beside_the_labels_is_not_read(tmp_path: Path) -> None:
    write_mosi(tmp_path)
    (tmp_path / "A.csd").write_bytes(b"no sequence")
    assert mosei.read(tmp_path, **MOSI).total == 6
    (tmp_path / "CMU_MOSI_Opinion_Labels.csd").unlink()
    with pytest.raises(ValueError, match=r"A\.csd: not a computational sequence"):
        mosei.read(tmp_path, **MOSI)


# --- IEMOCAP -------------------------------------------------------------------------------------


def test_turns_of_iemocap_have_dimensions_beside_their_classes(tmp_path: Path) -> None:
    source = iemocap.read(write_iemocap(tmp_path, sessions=[1]))
    assert (source.target, source.targets) == (CLASSES, {"vad": VAD})
    assert source.classes == ["angry", "happy", "neutral", "sad"]


def test_turns_of_all_labels_have_dimensions(tmp_path: Path) -> None:
    source = iemocap.read(write_iemocap(tmp_path, sessions=[1], media=False), target="vad")
    assert (source.target, source.classes) == (VAD, [])
    assert (source.provenance["left_out"], source.provenance["label_map"]) == ({}, {})
    clips = {clip.key: clip for clip in source.clips if not isinstance(clip, BadSample)}
    assert len(clips) == 2 * len(IEMOCAP_TURNS)
    assert {clip.label for clip in clips.values()} == {None}
    assert {clip.meta["emotion"] for clip in clips.values()} >= {"xxx", "fru", "sur", "ang"}
    assert clips["Ses01F_impro01_F000"].meta["dominance"] == 1.6667


def test_a_label_set_of_iemocap_with_dimensions_keeps_its_turns(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=[1])
    source = iemocap.read(tmp_path, target="vad", label_set=6)
    assert (source.target, source.classes) == (VAD, iemocap.read(tmp_path, label_set=6).classes)
    assert good(source).keys() == good(iemocap.read(tmp_path, label_set=6)).keys()


@pytest.mark.parametrize("target", ["classification", "vad"])
def test_a_turn_whose_mean_is_off_the_scale_is_listed(tmp_path: Path, target: Any) -> None:
    write_iemocap(tmp_path, sessions=[1])
    annotation = tmp_path / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    lines = annotation.read_text(encoding="latin-1").splitlines(keepends=True)
    turns = [i for i, line in enumerate(lines) if line.startswith("[")]
    for i, dimensions in zip(turns, ("[5.5000, 3.5000, 0.5000]", "[2.5000, 5.6000, 1.6667]"), strict=False):
        lines[i] = lines[i].replace("[2.5000, 3.5000, 1.6667]", dimensions)
    annotation.write_text("".join(lines), encoding="latin-1")
    names = [lines[i].split("\t")[1] for i in turns[:2]]
    source = iemocap.read(tmp_path, target=target, label_set=6)
    assert {key: bad(source)[key] for key in names[1:]} == {
        names[1]: "its 'activation' is 5.6, outside of 0.5 to 5.5"
    }
    meta = good(source)[names[0]].meta
    assert (meta["valence"], meta["dominance"]) == (5.5, 0.5)


def test_a_target_that_iemocap_does_not_have(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=[1], media=False)
    with pytest.raises(ValueError, match="target 'mood': must be classification or vad"):
        iemocap.read(tmp_path, target="mood")  # type: ignore[arg-type]
