"""CMU-MOSEI's computational sequences and MMSA's pickles: each utterance's steps and labels; refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from corpora_support import (
    MMSA_LENGTHS,
    MMSA_SCORES,
    MOSEI_LABELS,
    mmsa_splits,
    mosei_steps,
    put_bytes,
    write_aligned_mosei,
    write_mmsa,
    write_mosei,
    write_sequence,
)

from awtpn.cli import main
from shards import FeatureStream, Sample
from shards.format.schema import BadSample
from shards.sources import Source, mmsa, mosei
from shards.sources.reading.sentiment_classes import class_of

FILES = {
    "audio": "CMU_MOSEI_COVAREP.csd",
    "video": "CMU_MOSEI_VisualOpenFace2.csd",
    "folds": "cmu_mosei_std_folds.py",
}


def good(source: Source) -> dict[str, Sample]:
    samples = list(source.samples)
    assert len(samples) == source.total
    found = {sample.key: sample for sample in samples if isinstance(sample, Sample)}
    assert {sample.label for sample in found.values()} <= set(source.classes)
    return found


def steps(samples: dict[str, Sample]) -> dict[str, dict[str, int | None]]:
    return {
        key: {name: None if x is None else len(x) for name, x in sample.features.items()}
        for key, sample in samples.items()
    }


# --- CMU-MOSEI -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mosei_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mosei(tmp_path_factory.mktemp("mosei"))


def test_an_utterance_takes_the_steps_within_its_interval(mosei_root: Path) -> None:
    samples = good(mosei.read(mosei_root, **FILES))
    # Labels begin at -0.4 s, last 0.04 s, lack a picture: audio has 10 steps a second, video 5.
    assert steps(samples) == {
        "-3g5yACwYnA_0": {"audio": 20, "video": 10},
        "-3g5yACwYnA_1": {"audio": 20, "video": 10},
        "GdFP_p4eQX0_0": {"audio": 40, "video": None},
        "GdFP_p4eQX0_1": {"audio": 1, "video": None},
        "hh04W3xXa5s_1": {"audio": 25, "video": 13},
    }
    # Feature 0 is the middle of a step; row 0 of the labels is 2 to 4 s, row 1 is 0 to 2 s.
    np.testing.assert_allclose(samples["-3g5yACwYnA_0"].features["video"][:, 0], np.arange(2.1, 4, 0.2), 1e-6)
    np.testing.assert_allclose(samples["-3g5yACwYnA_1"].features["video"][:, 0], np.arange(0.1, 2, 0.2), 1e-6)
    whole = mosei_steps("video")[0]
    np.testing.assert_array_equal(samples["hh04W3xXa5s_1"].features["video"], whole[7:])


def test_a_step_in_the_middle_belongs_to_the_later_utterance(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    labels = {"-3g5yACwYnA": (np.eye(2, 7), np.array([[0, 1.05], [1.05, 4]]))}
    write_sequence(tmp_path / "CMU_MOSEI_Labels.csd", "All Labels", labels)
    samples = good(mosei.read(tmp_path, **FILES | {"video": None}, label_set="sentiment2"))
    assert [len(sample.features["audio"]) for sample in samples.values()] == [10, 30]


def test_steps_come_in_the_order_of_time(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    features, intervals = mosei_steps("audio")
    order = np.random.default_rng(0).permutation(len(features))
    write_sequence(tmp_path / FILES["audio"], "COVAREP", {"-3g5yACwYnA": (features[order], intervals[order])})
    samples = good(mosei.read(tmp_path, **FILES))
    np.testing.assert_array_equal(samples["-3g5yACwYnA_1"].features["audio"], features[:20])


def test_values_that_are_no_numbers_become_0_and_are_counted(mosei_root: Path) -> None:
    source = mosei.read(mosei_root, **FILES)
    samples = good(source)
    given = mosei_steps("audio")[0]
    given[2, 1], given[25, 2:] = 0, 0
    np.testing.assert_array_equal(samples["-3g5yACwYnA_1"].features["audio"], given[:20])
    np.testing.assert_array_equal(samples["-3g5yACwYnA_0"].features["audio"], given[20:])
    assert source.provenance["repaired_steps"] == {"audio": 2}


def test_metadata_of_an_utterance(mosei_root: Path) -> None:
    sample = good(mosei.read(mosei_root, **FILES))["-3g5yACwYnA_1"]
    assert (sample.split, sample.label) == ("train", "sad")  # as strong as anger, and before it
    assert sample.meta == {
        "video": "-3g5yACwYnA",
        "begin": 0.0,
        "end": 2.0,
        "sentiment": -0.5,
        "happy": 0.0,
        "sad": 1.0,
        "anger": 1.0,
        "surprise": 0.0,
        "disgust": 0.0,
        "fear": 0.0,
    }
    assert sample.source == f"{mosei_root / 'CMU_MOSEI_Labels.csd'}: -3g5yACwYnA, row 1"


@pytest.mark.parametrize(
    ("label_set", "labels"),
    [
        ("emotion", "happy sad surprise happy none fear"),
        ("sentiment2", "non-negative negative non-negative non-negative non-negative negative"),
        ("sentiment3", "positive negative positive positive neutral negative"),
        (
            "sentiment7",
            "weakly positive,neutral,highly positive,weakly positive,neutral,highly negative",
        ),
    ],
)
def test_label_sets_of_mosei(mosei_root: Path, label_set: str, labels: str) -> None:
    source = mosei.read(mosei_root, **FILES, label_set=label_set, no_emotion="keep")
    samples = good(source)
    assert list(samples) == [
        *(
            "-3g5yACwYnA_0",
            "-3g5yACwYnA_1",
            "GdFP_p4eQX0_0",
            "GdFP_p4eQX0_1",
            "hh04W3xXa5s_0",
            "hh04W3xXa5s_1",
        )
    ]
    expected = labels.split("," if "," in labels else " ")
    assert [sample.label for sample in samples.values()] == expected
    assert [sample.split for sample in samples.values()] == ["train", "train", "test", "test", "val", "val"]


def test_utterances_left_out_are_counted(mosei_root: Path) -> None:
    source = mosei.read(mosei_root, **FILES)
    assert source.classes == ["happy", "sad", "anger", "surprise", "disgust", "fear"]
    assert "hh04W3xXa5s_0" not in good(source)
    assert source.provenance["left_out"] == {"in no fold": 1, "no emotion": 1}
    kept = mosei.read(mosei_root, **FILES, no_emotion="keep")
    assert kept.classes[6] == "none"
    assert kept.provenance["left_out"] == {"in no fold": 1, "no emotion": 0}


def test_folds_as_json_are_the_same(mosei_root: Path) -> None:
    as_json = mosei.read(mosei_root, **FILES | {"folds": str(mosei_root / "folds.json")})
    python = mosei.read(mosei_root / "CMU_MOSEI_Labels.csd", **FILES)
    assert {k: s.split for k, s in good(as_json).items()} == {k: s.split for k, s in good(python).items()}


def test_folds_in_python_are_read_and_not_run(tmp_path: Path) -> None:
    mark, folds = tmp_path / "it ran", tmp_path / "folds.py"
    runs = f"open({str(mark)!r}, 'w')"
    folds.write_text(f"{runs}.close()\nstandard_train_fold = ['-3g5yACwYnA']\n")
    assert mosei.read_folds(folds) == {"-3g5yACwYnA": "train"}
    folds.write_text(f"standard_train_fold = [{runs}.name]\n")
    with pytest.raises(ValueError, match=r"folds\.py: neither JSON nor plain lists"):
        mosei.read_folds(folds)
    assert not mark.exists()


def test_segments_that_the_sdk_aligned(mosei_root: Path, tmp_path: Path) -> None:
    write_aligned_mosei(tmp_path)
    aligned = {"audio": "COAVAREP.csd", "video": "FACET 4.2.csd", "folds": str(mosei_root / "folds.json")}
    samples = good(mosei.read(tmp_path, **aligned))
    by_video = good(mosei.read(mosei_root, **FILES))
    assert samples.keys() == by_video.keys()
    assert {k: s.label for k, s in samples.items()} == {k: s.label for k, s in by_video.items()}
    # Aligned, a segment has every step that touches it, also those whose middle lies outside.
    assert steps(samples)["hh04W3xXa5s_1"] == {"audio": 25, "video": 13}
    assert steps(samples)["GdFP_p4eQX0_1"] == {"audio": 1, "video": 1}
    # Labels by video with features by segment, and the reverse.
    mixed = aligned | {"audio": str(tmp_path / "COAVAREP.csd"), "video": FILES["video"]}
    assert good(mosei.read(mosei_root, **mixed)).keys() == by_video.keys()
    mixed = aligned | {"audio": str(mosei_root / FILES["audio"])}
    assert steps(good(mosei.read(tmp_path, **mixed)))["-3g5yACwYnA_0"]["audio"] == 20


def test_utterances_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    with h5py.File(tmp_path / FILES["audio"], "a") as file:
        data = file["COVAREP/data"]
        del data["hh04W3xXa5s/intervals"]
        data["GdFP_p4eQX0/intervals"][:] += 100  # elsewhere in the recording
    with h5py.File(tmp_path / "CMU_MOSEI_Labels.csd", "a") as file:
        file["All Labels/data/-3g5yACwYnA/features"][1, 3] = np.nan
    samples = list(mosei.read(tmp_path, **FILES).samples)
    listed = {sample.key: sample.cause for sample in samples if isinstance(sample, BadSample)}
    assert listed.keys() == {"-3g5yACwYnA_1", "GdFP_p4eQX0_0", "GdFP_p4eQX0_1", "hh04W3xXa5s_1"}
    assert listed["-3g5yACwYnA_1"] == "its 'anger' is nan; write a number, or leave it empty"
    assert listed["GdFP_p4eQX0_0"] == "no step of audio or video between 0.0 and 4.0 s"
    assert "COVAREP.csd: hh04W3xXa5s: no features and intervals" in listed["hh04W3xXa5s_1"]


def drop_labels(root: Path) -> None:
    (root / "CMU_MOSEI_Labels.csd").unlink()


def narrow_labels(root: Path) -> None:
    labels = {video: (np.ones((1, 6)), np.array([[0, 1.0]])) for video in MOSEI_LABELS}
    write_sequence(root / "CMU_MOSEI_Labels.csd", "All Labels", labels)


def folds(text: str) -> Callable[[Path], None]:
    return lambda root: (root / FILES["folds"]).write_text(text)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("spoil", "options", "complaint"),
    [
        (None, {"label_set": "mood"}, "label_set 'mood': must be one of emotion, sentiment2"),
        (None, {"no_emotion": "maybe"}, "no_emotion 'maybe': must be 'drop' or 'keep'"),
        (None, {"audio": None, "video": None}, "no features named; give --audio FILE.csd"),
        (None, {"folds": None}, "no folds named; give --folds FILE"),
        (None, {"folds": "folds.txt"}, r"folds\.txt: no such file, neither in"),
        (None, {"audio": "covarep.csd"}, r"covarep\.csd: no such file, neither in"),
        (None, {"audio": "folds.json"}, r"folds\.json: not a computational sequence"),
        (
            drop_labels,
            {},
            r"no sequence 'All Labels' \(CMU-MOSEI\) or 'Opinion Segment Labels' \(CMU-MOSI\) in it, only "
            r"\['CMU_MOSEI_COVAREP\.csd', .*; add CMU_MOSEI_Labels\.csd or CMU_MOSI_Opinion_Labels\.csd",
        ),
        (narrow_labels, {}, r"labels \(1, 6\); expected 7 columns: sentiment, happy, sad"),
        (folds("standard_train_fold = 1 +"), {}, "neither JSON nor plain lists in Python"),
        (folds("standard_train_fold = open('x')"), {}, "neither JSON nor plain lists in Python"),
        (
            folds("others = ['-3g5yACwYnA']"),
            {},
            "'others' must be a list of videos, named after train, val or",
        ),
        (folds("train = ['a']\ntest = ['a']"), {}, "video 'a' is in 'train' and in 'test'"),
        (folds("import os"), {}, "no folds; expected"),
        (folds("train = ['a']"), {}, "none of its 7 utterances is in a fold"),
    ],
)
def test_what_mosei_cannot_be_read_with(
    tmp_path: Path, spoil: Callable[[Path], None] | None, options: dict[str, Any], complaint: str
) -> None:
    write_mosei(tmp_path)
    if spoil:
        spoil(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        mosei.read(tmp_path, **FILES | options)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none: no such folder; give the one with CMU_MOSEI_Labels\.csd"):
        mosei.read(tmp_path / "none", **FILES)


def test_without_h5py_the_extra_is_named(mosei_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r'pip install "awtpn-at-scale\[extract\]"'):
        mosei.read(mosei_root, **FILES)


# --- Sentiment -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "classes"),
    [
        (-3.3, "negative,negative,highly negative"),
        (-2.5, "negative,negative,negative"),  # halves go to the even one
        (-1 / 3, "negative,negative,neutral"),
        (0.0, "non-negative,neutral,neutral"),
        (0.5, "non-negative,positive,neutral"),
        (1.5, "non-negative,positive,positive"),
        (3.0, "non-negative,positive,highly positive"),
    ],
)
def test_classes_of_a_score(score: float, classes: str) -> None:
    found = [class_of(score, label_set) for label_set in ("sentiment2", "sentiment3", "sentiment7")]
    assert found == classes.split(",")


# --- MMSA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [True, False], ids=["unaligned", "aligned"])
@pytest.mark.parametrize("front", [True, False], ids=["padded in front", "padded behind"])
def test_padding_is_cut_off(tmp_path: Path, lengths: bool, front: bool) -> None:
    splits = mmsa_splits(lengths=lengths, front=front)
    source = mmsa.read(write_mmsa(tmp_path / "x.pkl", splits))
    samples = good(source)
    expected = {
        f"video{split}_{i}": {"audio": audio, "video": video}
        for split, of in MMSA_LENGTHS.items()
        for i, (audio, video) in enumerate(of)
    }
    assert steps(samples) == expected
    padded = splits["test"]["vision"][1]
    place = slice(1, 4) if front else slice(0, 3)
    np.testing.assert_array_equal(samples["videotest_1"].features["video"], padded[place])
    assert [sample.split for sample in samples.values()] == [*["train"] * 3, *["val"] * 2, *["test"] * 2]
    assert samples["videovalid_0"].meta == {"id": "videovalid$_$0", "sentiment": MMSA_SCORES["valid"][0]}
    # Its -inf became 0, and its step stayed.
    assert source.provenance["repaired_steps"] == {"audio": 1}
    assert np.isfinite(samples["videotrain_0"].features["audio"]).all()


def test_steps_of_zeros_inside_a_length_are_steps(tmp_path: Path) -> None:
    splits = mmsa_splits()
    splits["train"]["audio"][1, 3:] = 0  # five steps by its length: the last two are silence
    splits["train"]["vision"][2] = 0  # no face at all
    samples = good(mmsa.read(write_mmsa(tmp_path / "x.pkl", splits)))
    assert steps(samples)["videotrain_1"]["audio"] == 5
    assert steps(samples)["videotrain_2"]["video"] is None


def test_text_on_request(tmp_path: Path) -> None:
    path = write_mmsa(tmp_path / "x.pkl")
    assert good(mmsa.read(path))["videotest_0"].features.keys() == {"audio", "video"}
    assert good(mmsa.read(path, text=True))["videotest_0"].features["text"].shape == (6, 2)


@pytest.mark.parametrize(
    ("options", "classes", "labels"),
    [
        (
            {},
            ["negative", "neutral", "positive"],
            "negative neutral positive positive negative positive negative",
        ),
        ({"labels": ["a", "b", "c"]}, ["a", "b", "c"], "a b c c a c a"),
        ({"label_set": "sentiment2"}, ["negative", "non-negative"], None),
        ({"label_set": "sentiment3"}, None, "negative neutral positive positive negative positive negative"),
    ],
)
def test_label_sets_of_mmsa(
    tmp_path: Path, options: dict[str, Any], classes: list[str] | None, labels: str | None
) -> None:
    source = mmsa.read(write_mmsa(tmp_path / "x.pkl"), **options)
    samples = good(source)
    if classes:
        assert source.classes == classes
    if labels:
        assert [sample.label for sample in samples.values()] == labels.split()
    if "label_set" in options:
        assert samples["videotrain_2"].meta["sentiment"] == 2.6


@pytest.mark.parametrize(
    ("spoil", "options", "complaint"),
    [
        (lambda s: s["train"].pop("vision"), {}, "x.pkl: train: 'vision' is missing; it has .*'audio'"),
        (lambda s: s["valid"].pop("classification_labels"), {}, "valid: 'classification_labels' is missing"),
        (lambda s: s["test"]["id"].append("one more"), {}, "test: .* has 2 utterances, id 3"),
        (lambda s: s["test"]["audio_lengths"].pop(), {}, "test: audio_lengths has 1 utterances, id 2"),
        (lambda s: s.update(train=[1]), {}, "train: 'id' is missing; it has list"),
        (lambda s: [s.pop(name) for name in list(s)], {}, "must be a dict of 'train', 'valid' and 'test'"),
        (
            lambda s: s["train"].update(classification_labels=[0, 0.5, 1]),
            {},
            "must be 0, 1, ...; use --label_set",
        ),
        (lambda s: s["train"].update(classification_labels=[0, 1, 1e9]), {}, "must be 0, 1, ...; use"),
        (lambda s: s["train"].update(classification_labels=[0, 1, 1e300]), {}, "must be 0, 1, ...; use"),
        (lambda s: s["train"].update(classification_labels=["a", "b", "c"]), {}, "must be numbers"),
        (None, {"labels": ["a", "b"]}, r"labels go up to 2, but only 2 names are given"),
        (lambda s: s["train"].update(id=5), {}, r"x\.pkl: train: id is 5; expected an array or list"),
        (lambda s: s["train"].update(audio=5), {}, r"x\.pkl: train: audio is 5; expected"),
        (lambda s: s["train"].update(vision=None), {}, r"x\.pkl: train: vision is None; expected"),
        (lambda s: s["train"].update(audio_lengths=5), {}, r"x\.pkl: train: audio_lengths is 5; expected"),
        (
            lambda s: s["train"].update(id=[b"\xff", b"b", b"c"]),
            {},
            r"x\.pkl: train: id\[0\] is b'\\xff', which is not UTF-8",
        ),
        (
            lambda s: s["train"].update(id=["a", ["b", ["c", "d"]], "e"]),
            {},
            r"x\.pkl: train: id\[1\] is \['b', .*expected a text",
        ),
        (None, {"label_set": "five"}, "label_set 'five': must be one of classification, sentiment2"),
        (None, {"label_set": "sentiment2", "labels": ["a", "b"]}, "'sentiment2' has its own, leave them out"),
        (
            lambda s: [record.update(regression_labels=[0.4] * len(record["id"])) for record in s.values()],
            {"label_set": "sentiment7"},
            r"within -1..1, as CH-SIMS' do; sentiment7 needs -3..3",
        ),
    ],
)
def test_what_mmsa_cannot_be_read_with(
    tmp_path: Path, spoil: Callable[[dict], Any] | None, options: dict[str, Any], complaint: str
) -> None:
    splits = mmsa_splits()
    if spoil:
        spoil(splits)
    path = write_mmsa(tmp_path / "x.pkl", splits or {"other": 1})
    with pytest.raises(ValueError, match=complaint):
        mmsa.read(path, **options)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (
            lambda s: s["train"]["audio_lengths"].__setitem__(1, 2),
            "audio has 2 steps by its length, but values at",
        ),
        (lambda s: s["train"]["audio_lengths"].__setitem__(1, 9), "audio has 9 steps by its length"),
        (lambda s: s["train"].update(audio=[np.ones(3)] * 3), "audio is float64, shape"),
        (
            lambda s: s["train"].update(audio_lengths=[float("inf")] * 3),
            "audio has inf as its number of steps",
        ),
    ],
)
def test_utterances_of_mmsa_that_cannot_be_read_are_listed(
    tmp_path: Path, spoil: Callable[[dict], Any], cause: str
) -> None:
    splits = mmsa_splits()
    spoil(splits)
    samples = list(mmsa.read(write_mmsa(tmp_path / "x.pkl", splits)).samples)
    assert samples[1].key == "videotrain_1"
    assert isinstance(samples[1], BadSample)
    assert samples[1].cause.startswith(cause)


def test_mmsa_is_never_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    path = put_bytes(tmp_path / "x.pkl", f"cos\nsystem\n(Vtouch '{mark}'\ntR.".encode())
    with pytest.raises(ValueError, match=r"x\.pkl: names os\.system, which is neither"):
        mmsa.read(path)
    assert not mark.exists()
    with pytest.raises(ValueError, match=r"y\.pkl: no such file"):
        mmsa.read(tmp_path / "y.pkl")


# --- As a user types it --------------------------------------------------------------------------


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


def test_packing_mosei(mosei_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [word for name, file in FILES.items() for word in (f"--{name}", file)]
    awtpn("pack", mosei_root, tmp_path / "out", "--format", "mosei", *named, "--no_emotion", "keep")
    assert "test: 2 utterances in 1 shard\n" in capsys.readouterr().out
    stream = FeatureStream(str(tmp_path / "out"), split="val", global_batch_size=2, shuffle=False)
    assert stream.classes[-1] == "none"
    assert [key for key, _ in stream.metadata()] == ["hh04W3xXa5s_0", "hh04W3xXa5s_1"]
    awtpn("shards", "info", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "COVAREP (corpus CMU-MOSEI)" in shown
    assert "repaired_steps: audio 2" in shown
    assert "left_out: in no fold 1, no emotion 0" in shown
    provenance = json.loads((tmp_path / "out" / "manifest.json").read_text())["provenance"]
    assert provenance["features"]["video"]["settings"]["id"] == "OpenFace_2"


def test_packing_mmsa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_mmsa(tmp_path / "unaligned_50.pkl")
    awtpn("pack", path, tmp_path / "out", "--format", "mmsa", "--label_set", "sentiment7", "--text")
    stream = FeatureStream(str(tmp_path / "out"), split="train", global_batch_size=3, shuffle=False)
    assert sorted(stream.modalities) == ["audio", "text", "video"]
    assert len(stream.classes) == 7


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["mmsa", "--folds", "x"],
            "--folds is an option of --format mosei, but this is read as mmsa, "
            "which takes .*--labels, --label_set, --text",
        ),
        (["mosei", "--labels", "a,b"], "--labels is an option of .* read as mosei"),
        (["mosei", "--text"], "--text needs a value here: FILE"),
        (["mmsa", "--text", "chargrams"], "--text takes no value here; it was given 'chargrams'"),
        (["npz", "--label_set", "4"], "--label_set is an option of .* read as npz, which takes .*--labels"),
        (
            ["demo", "--audio", "x"],
            "--audio is an option of --format mosei, but this is read as demo, which takes --modalities",
        ),
        (["npz", "--modalities", "audio"], "--modalities is an option of --format demo and table, but"),
        (["meld", "--label_set", "4"], "--label_set is an option of .* read as meld"),
        (["iemocap", "--folds", "x"], "--folds is an option of .* read as iemocap"),
        (["iemocap", "--label_set", "four"], "--label_set four: must be 4 or 6"),
    ],
)
def test_options_of_other_formats_are_refused_by_name(
    tmp_path: Path, words: list[str], complaint: str
) -> None:
    with pytest.raises(SystemExit, match=complaint):
        awtpn("pack", tmp_path, tmp_path / "out", "--format", *words)
    assert not (tmp_path / "out").exists()
