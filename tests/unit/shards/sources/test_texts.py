"""Transcripts of every corpus: which words an utterance has, with which times, and what is no text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from corpora_support import (
    bad,
    good,
    meld_table,
    mmsa_splits,
    put_bytes,
    texts,
    write_iemocap,
    write_meld,
    write_mmsa,
    write_mosei,
    write_sequence,
)

from shards.extraction.shard_jobs import mark_missing_files
from shards.format.schema import BadSample, Sample
from shards.packing.pack import pack
from shards.sources import Source, iemocap, meld, mmsa, mosei
from shards.sources.base import Clip, TranscribedSample
from shards.sources.reading.transcripts import MOST_CHARACTERS, Transcript, checked_text

FOLDS = {"folds": "cmu_mosei_std_folds.py"}
WORDS = "CMU_MOSEI_TimestampedWords.csd"
VECTORS = "CMU_MOSEI_TimestampedWordVectors.csd"
HOSTILE = [
    ("a\0b", "its text has characters that no text has"),
    ("\ud800", "its text has characters that no text has"),
    ("a" * (MOST_CHARACTERS + 1), f"its text has {MOST_CHARACTERS + 1} characters; at most"),
    (b"na\xefve", "its text is not in UTF-8 (byte 2)"),
    (np.array(["a", "b"]), "its text is an array of shape (2,); expected a single text"),
    (["a"], "its text is of type list; expected text"),
    (5, "its text is of type int; expected text"),
]


def transcripts(source: Source) -> dict[str, Transcript | None]:
    samples = list(source.samples)
    assert all(isinstance(sample, TranscribedSample) for sample in samples)
    return {sample.key: sample.transcript for sample in samples}  # type: ignore[union-attr]


def words_of(source: Source) -> dict[str, str | None]:
    return {key: " ".join(found.words) if found else None for key, found in transcripts(source).items()}


@pytest.mark.parametrize(("value", "cause"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_text_is_named_and_not_quoted(value: Any, cause: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(cause)}") as caught:
        checked_text(value)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (np.float64("nan"), ""),
        (np.str_("so"), "so"),
        (b"so", "so"),
        (np.array(["你好"], object), "你好"),
        (np.array([b"so"]), "so"),
    ],
)
def test_entries_that_are_a_text(value: Any, text: str) -> None:
    assert checked_text(value) == text


# --- MELD ----------------------------------------------------------------------------------------


def write_utterances(table: Path, utterances: dict[str, bytes], encoding: str = "utf-8") -> None:
    """Write a table of MELD with the texts (by a mark in the usual one)."""
    rows = [(0, i, mark, "joy") for i, mark in enumerate(utterances)]
    lines = meld_table(rows).encode(encoding).split(b"\r\n")
    for i, text in enumerate(utterances.values(), start=1):
        lines[i] = lines[i].replace("Oh my God, he\x92s lost it.".encode(encoding), text)
    put_bytes(table, b"\r\n".join(lines))


def test_meld_without_any_clip_is_text_alone(tmp_path: Path) -> None:
    source = meld.read(write_meld(tmp_path, media=False))
    assert len(source.clips) == 7
    assert set(texts(source).values()) == {"Oh my God, he’s lost it."}
    assert all(isinstance(clip, Clip) for clip in mark_missing_files(source, ["text"]).clips)
    with pytest.raises(ValueError, match=r"train_sent_emo\.csv: its counterpart train_splits is neither"):
        mark_missing_files(source, ["video", "text"])
    assert source.provenance["transcripts"] == "column Utterance"


def test_a_row_of_meld_without_its_clip_keeps_its_text(tmp_path: Path) -> None:
    source = meld.read(write_meld(tmp_path))
    gone = "val_dia110_utt7"
    assert bad(source)[gone].startswith("no such file /")
    [clip] = [clip for clip in mark_missing_files(source, ["audio", "text"]).clips if clip.key == gone]
    assert isinstance(clip, Clip)
    assert clip.text is not None
    assert clip.missing.keys() == {"audio"}
    assert clip.missing["audio"] == bad(source)[gone]


def test_texts_of_meld(tmp_path: Path) -> None:
    written = {
        "arabic": "مرحبا بكم".encode(),
        "chinese": "你好".encode(),
        "emoji": "👍🏽 ok".encode(),
        "marks": b"... !? --",
        "empty": b" ",
        "NUL": b"a\0b",
        "cp1252": b"na\xefve \x93quote\x94",
    }
    table = tmp_path / "train_sent_emo.csv"
    write_utterances(table, {name: text for name, text in written.items() if name != "cp1252"})
    source = meld.read(tmp_path)
    found = list(texts(source).values())
    assert found == ["مرحبا بكم", "你 好", "👍🏽 ok", "... !? --", None, None]
    of_text = [clip for clip in mark_missing_files(source, ["text"]).clips if isinstance(clip, BadSample)]
    assert [clip.key for clip in of_text] == ["train_dia0_utt5"]
    assert of_text[0].cause.startswith("its text has characters that no text has")
    write_utterances(table, {"cp1252": written["cp1252"]}, "latin-1")
    assert list(texts(meld.read(tmp_path)).values()) == ["naïve “quote”"]


def test_a_comma_outside_quotes_is_named_and_nothing_is_quoted(tmp_path: Path) -> None:
    table = write_meld(tmp_path) / "test_sent_emo.csv"
    table.write_bytes(
        table.read_bytes().replace(b'"Oh my God, he', b"Oh my God, he", 1).replace(b'it."', b"it.", 1)
    )
    with pytest.raises(
        ValueError, match=r"test_sent_emo\.csv: row 1: has more fields than the header"
    ) as caught:
        meld.read(tmp_path)
    assert "God" not in str(caught.value)


def test_a_table_of_others_without_texts(tmp_path: Path) -> None:
    write_meld(tmp_path)
    table = tmp_path / "dev_sent_emo.csv"
    table.write_bytes(table.read_bytes().replace(b"Utterance,Speaker", b"Sentence,Speaker"))
    source = meld.read(tmp_path)
    assert texts(source)["val_dia0_utt0"] is None
    assert texts(source)["test_dia0_utt0"] is not None
    assert [remark for remark in source.remarks if "Utterance" in remark] == [
        f"{table}: no column 'Utterance'; its utterances have no text"
    ]


def test_a_field_of_a_table_that_is_too_long_is_refused(tmp_path: Path) -> None:
    write_utterances(tmp_path / "train_sent_emo.csv", {"long": b"a" * 200_000})
    with pytest.raises(ValueError, match=r"train_sent_emo\.csv: up to line 1: not CSV \(field larger"):
        meld.read(tmp_path)


def test_no_transcript_is_in_the_metadata(tmp_path: Path) -> None:
    for source in (meld.read(write_meld(tmp_path / "m")), iemocap.read(write_iemocap(tmp_path / "i"))):
        for key, clip in good(source).items():
            words = texts(source)[key]
            assert words is None or words not in str(clip.meta)
    for sample in mmsa.read(write_mmsa(tmp_path / "x.pkl"), text_encoder="chargrams").samples:
        assert isinstance(sample, TranscribedSample)
        assert sample.meta.keys() == {"id", "sentiment"}


# --- IEMOCAP -------------------------------------------------------------------------------------


def test_texts_of_iemocap(tmp_path: Path) -> None:
    source = iemocap.read(write_iemocap(tmp_path, sessions=[1], media=False), label_set=6)
    dialog = "Ses01F_impro01"
    found = {key.rpartition("_")[2]: text for key, text in texts(source).items() if dialog in key}
    assert found == {
        "F000": "Excuse me.",
        "M000": "It's naïve. [LAUGHTER]",
        "F001": "Well -- yes.",
        "F002": "No!",
        "M002": None,  # without a line
        "M003": None,  # empty
    }
    by_key = {clip.key: clip for clip in source.clips if isinstance(clip, Clip)}
    aligned = by_key[f"{dialog}_F000"].text
    assert aligned is not None
    np.testing.assert_allclose(aligned.spans, [(0.1, 0.2), (0.2, 0.3)])
    other_words = by_key[f"{dialog}_F001"].text  # "--" is not aligned
    assert other_words is not None
    assert other_words.spans == ()
    assert bad(source).keys() == by_key.keys(), "there is no sound"
    assert not any(isinstance(clip, BadSample) for clip in mark_missing_files(source, ["text"]).clips)


def test_iemocap_without_transcriptions_has_no_text(tmp_path: Path) -> None:
    write_iemocap(tmp_path, sessions=[1])
    for path in (tmp_path / "Session1/dialog/transcriptions").iterdir():
        path.unlink()
    source = iemocap.read(tmp_path)
    assert set(texts(source).values()) == {None}
    assert mark_missing_files(source, ["audio"])
    with pytest.raises(ValueError, match=r"no dialog/transcriptions/\*\.txt in its sessions"):
        mark_missing_files(source, ["audio", "text"])


# --- CMU-MOSEI -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mosei_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mosei(tmp_path_factory.mktemp("mosei"))


def test_an_utterance_has_the_words_within_its_interval(mosei_root: Path) -> None:
    source = mosei.read(mosei_root, audio="CMU_MOSEI_COVAREP.csd", text=WORDS, **FOLDS)
    assert source.text_encoder == "chargrams"
    assert source.provenance["transcripts"] == WORDS
    assert source.provenance["features"].keys() == {"audio"}
    found = transcripts(source)
    assert words_of(mosei.read(mosei_root, text=WORDS, audio="CMU_MOSEI_COVAREP.csd", **FOLDS)) == {
        "-3g5yACwYnA_0": "and the second one",  # row 0 of the labels is 2 to 4 s
        "-3g5yACwYnA_1": "the first half",
        "hh04W3xXa5s_1": "naïve talk",
        "GdFP_p4eQX0_0": "i love it",
        "GdFP_p4eQX0_1": None,
    }
    # Ten entries in 4 s, of which the last is a pause.
    second = found["-3g5yACwYnA_0"]
    assert second is not None
    np.testing.assert_allclose(second.spans, [(0, 0.4), (0.4, 0.8), (0.8, 1.2), (1.2, 1.6)], atol=1e-9)


def test_a_word_that_begins_before_its_utterance_is_cut(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    words = np.array([[b"early"], ["你好".encode()], [b"  "], [b"late"]])
    intervals = np.array([[-1, 1.5], [1.5, 2], [2, 2.5], [3, 9]])
    write_sequence(tmp_path / WORDS, "words", {"GdFP_p4eQX0": (words, intervals)})
    labels = {"GdFP_p4eQX0": (np.eye(1, 7), np.array([[0.0, 7]]))}
    write_sequence(tmp_path / "CMU_MOSEI_Labels.csd", "All Labels", labels)
    [found] = transcripts(mosei.read(tmp_path, text=WORDS, label_set="sentiment2", **FOLDS)).values()
    assert found is not None
    assert found.words == ("early", "你", "好", "late")
    assert found.spans == ((0, 1.5), (1.5, 2), (1.5, 2), (3, 7))


def test_words_of_segments_that_the_sdk_aligned(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    words = {"GdFP_p4eQX0[0]": (np.array([[b"sp"], [b"so"]]), np.array([[0, np.nan], [1, 2.0]]))}
    write_sequence(tmp_path / WORDS, "words", words)
    source = mosei.read(tmp_path, text=WORDS, audio="CMU_MOSEI_COVAREP.csd", **FOLDS)
    assert words_of(source)["GdFP_p4eQX0_0"] == "so"


def test_words_of_variable_length(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    words = np.array([["héllo"], ["you"]], object)
    with h5py.File(tmp_path / WORDS, "w") as file:
        for video, shape in (("GdFP_p4eQX0", (2, 1)), ("hh04W3xXa5s", (2,))):
            features = file.create_dataset(f"words/data/{video}/features", shape, h5py.string_dtype())
            features[:] = words.reshape(shape)
            file[f"words/data/{video}/intervals"] = np.array([[2, 2.5], [2.5, 3]])
    found = words_of(mosei.read(tmp_path, text=WORDS, audio="CMU_MOSEI_COVAREP.csd", **FOLDS))
    assert (found["GdFP_p4eQX0_0"], found["hh04W3xXa5s_1"]) == ("héllo you", "héllo you")


def test_vectors_of_words_are_features_like_others(mosei_root: Path) -> None:
    source = mosei.read(mosei_root, text=VECTORS, **FOLDS)
    assert source.text_encoder is None
    assert source.provenance["features"]["text"]["settings"]["id"] == "glove_vectors"
    samples = {sample.key: sample for sample in source.samples if isinstance(sample, Sample)}
    np.testing.assert_array_equal(samples["-3g5yACwYnA_0"].features["text"][:, 0], [5, 6, 7, 8, 9])
    with pytest.raises(ValueError, match=rf"{VECTORS}: holds vectors, which are packed as they are"):
        mosei.read(mosei_root, text=VECTORS, text_encoder="chargrams", **FOLDS)


@pytest.mark.parametrize("on_bad", ["refuse", "skip"])
def test_transcripts_are_not_lost_when_nobody_encodes_them(
    mosei_root: Path, tmp_path: Path, on_bad: str
) -> None:
    source = mosei.read(mosei_root, text=WORDS, audio="CMU_MOSEI_COVAREP.csd", **FOLDS)
    fix = r"with_text\(source, encoder\)"
    with pytest.raises(ValueError, match=rf"has a transcript, but no features of it: pack .*{fix}"):
        pack(source.samples, str(tmp_path / "out"), classes=source.classes, on_bad=on_bad)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_text_alone_names_no_file(mosei_root: Path, tmp_path: Path) -> None:
    source = mosei.read(mosei_root, text_encoder="other", **FOLDS)
    assert (source.text_encoder, source.provenance["files"]) == ("other", {"text": WORDS})
    [listed] = [sample for sample in source.samples if isinstance(sample, BadSample)]
    assert (listed.key, listed.cause) == ("GdFP_p4eQX0_1", "no step of text between 3.95 and 3.99 s")
    write_mosei(tmp_path)
    (tmp_path / WORDS).unlink()
    with pytest.raises(ValueError, match=rf"{WORDS}: no such file, neither in"):
        mosei.read(tmp_path, text_encoder="chargrams", **FOLDS)


def long_words(data: Any) -> None:
    data["GdFP_p4eQX0/features"] = np.array([[b"a" * 5000]])


def long_words_often(data: Any) -> None:
    """Many steps refer to one long string."""
    features = data.create_dataset("GdFP_p4eQX0/features", (1000, 1), h5py.string_dtype())
    features[:] = np.array([["a" * 100_000]] * 1000, object)


def nul_bytes(data: Any) -> None:
    data["GdFP_p4eQX0/features"] = np.array([[b"a\0b"]])


def no_utf8(data: Any) -> None:
    data["GdFP_p4eQX0/features"] = np.array([[b"na\xefve"]])


def two_columns(data: Any) -> None:
    data["GdFP_p4eQX0/features"] = np.array([[b"a", b"b"]])


def numbers(data: Any) -> None:
    data["GdFP_p4eQX0/features"] = np.ones((1, 1))


def references(data: Any) -> None:
    data["GdFP_p4eQX0/features"] = np.array([[data.ref]], h5py.ref_dtype)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (long_words, "has a word of 5000 bytes; at most 4096"),
        (long_words_often, "has a word of 100000 bytes; at most 4096"),
        (nul_bytes, "its text has characters that no text has"),
        (no_utf8, "its text is not in UTF-8 (byte 2)"),
        (two_columns, "has shape (1, 2); expected a word per step"),
        (numbers, "holds float64, and no text"),
        (references, "holds object, and no text"),
    ],
)
def test_utterances_whose_words_are_no_text_are_listed(
    tmp_path: Path, spoil: Callable[[Any], None], cause: str
) -> None:
    write_mosei(tmp_path)
    with h5py.File(tmp_path / WORDS, "a") as file:
        del file["words/data/GdFP_p4eQX0/features"]
        spoil(file["words/data"])
        if len(file["words/data/GdFP_p4eQX0/features"]) != 3:
            del file["words/data/GdFP_p4eQX0/intervals"]
            file["words/data/GdFP_p4eQX0/intervals"] = np.array([[0, 4.0]])
    samples = list(mosei.read(tmp_path, text=WORDS, **FOLDS).samples)
    listed = {sample.key: sample.cause for sample in samples if isinstance(sample, BadSample)}
    assert listed.keys() == {"GdFP_p4eQX0_0", "GdFP_p4eQX0_1"}
    assert cause in listed["GdFP_p4eQX0_0"]
    assert f"{WORDS}: GdFP_p4eQX0: " in listed["GdFP_p4eQX0_0"]


def test_words_in_another_file_are_refused(tmp_path: Path) -> None:
    write_mosei(tmp_path)
    secret = tmp_path / "secret.h5"
    (tmp_path / WORDS).rename(secret)
    with h5py.File(tmp_path / WORDS, "w") as file:
        file["words/data/-3g5yACwYnA/intervals"] = np.array([[0, 1.0]])
        file["words/data/-3g5yACwYnA/features"] = h5py.ExternalLink(str(secret), "words/data/98765/features")
    with pytest.raises(ValueError, match=r"is a link to .* in another file, .*such files are not read"):
        mosei.read(tmp_path, text=WORDS, **FOLDS)


# --- MMSA ----------------------------------------------------------------------------------------


def test_raw_texts_of_mmsa(tmp_path: Path) -> None:
    splits = mmsa_splits()
    # CH-SIMS is Chinese.
    splits["train"]["raw_text"] = np.array(["我不想嫁给李茶", "", "مرحبا 👍"])
    splits["test"]["raw_text"] = [None, b"so what"]
    path = write_mmsa(tmp_path / "x.pkl", splits)
    source = mmsa.read(path, text_encoder="chargrams")
    assert source.text_encoder == "chargrams"
    assert source.provenance["transcripts"] == "raw_text"
    assert words_of(source) == {
        "videotrain_0": "我 不 想 嫁 给 李 茶",
        "videotrain_1": None,
        "videotrain_2": "مرحبا 👍",
        "videovalid_0": "utterance 0",
        "videovalid_1": "utterance 1",
        "videotest_0": None,
        "videotest_1": "so what",
    }
    alone = list(mmsa.read(path, text_encoder="chargrams", modalities=()).samples)
    assert all(isinstance(sample, Sample) and sample.features == {} for sample in alone)
    assert mmsa.read(path).text_encoder is None


@pytest.mark.parametrize(("value", "cause"), HOSTILE, ids=range(len(HOSTILE)))
def test_an_utterance_of_mmsa_whose_text_is_none_is_listed(tmp_path: Path, value: Any, cause: str) -> None:
    splits = mmsa_splits()
    splits["train"]["raw_text"][1] = value
    path = write_mmsa(tmp_path / "x.pkl", splits)
    samples = list(mmsa.read(path, text_encoder="chargrams").samples)
    [listed] = [sample for sample in samples if isinstance(sample, BadSample)]
    assert (listed.key, listed.source) == ("videotrain_1", f"{path}: train[1]")
    assert listed.cause.startswith(cause)
    assert not any(isinstance(sample, BadSample) for sample in mmsa.read(path).samples), "it is not asked for"


@pytest.mark.parametrize(
    ("raw_text", "options", "complaint"),
    [
        (None, {}, "x.pkl: train: 'raw_text' is missing; it has"),
        (["a"], {}, "x.pkl: train: raw_text has 1 utterances, id 3"),
        ("abc", {}, "x.pkl: train: raw_text is of type str; expected an array or list"),
        (["a"] * 3, {"text": True}, "--text takes the features of text that it has, --text_encoder makes"),
    ],
)
def test_raw_texts_that_do_not_fit_are_refused(
    tmp_path: Path, raw_text: Any, options: dict[str, Any], complaint: str
) -> None:
    splits = mmsa_splits()
    splits["train"].pop("raw_text")
    if raw_text is not None:
        splits["train"]["raw_text"] = raw_text
    with pytest.raises(ValueError, match=complaint):
        mmsa.read(write_mmsa(tmp_path / "x.pkl", splits), text_encoder="chargrams", **options)


def test_a_clip_keeps_what_is_not_wanted_out_of_it(tmp_path: Path) -> None:
    """So that an extraction without text continues one that began before clips had texts."""
    source = meld.read(write_meld(tmp_path))
    without = replace(source, clips=[replace(clip, text=None) for clip in good(source).values()])
    wanted = mark_missing_files(source, ["audio", "video"]).clips
    assert [clip for clip in wanted if isinstance(clip, Clip)] == without.clips
