"""Texts are split into words in every script."""

from pathlib import Path

import pytest

from shards.sources.reading.transcripts import (
    MOST_CHARACTERS,
    MOST_WORDS,
    read_transcript,
    split_words,
    transcript_of,
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, you  all!\n", ["Hello,", "you", "all!"]),
        ("你好吗？", ["你", "好", "吗", "？"]),
        ("我 love 你", ["我", "love", "你"]),
        ("これはtestです", ["こ", "れ", "は", "test", "で", "す"]),
        ("กี่", ["กี่"]),  # one consonant with two marks
        ("مرحبا بكم", ["مرحبا", "بكم"]),
        ("👍🏽 ok 👨‍👩‍👧", ["👍🏽", "ok", "👨‍👩‍👧"]),
        ("e\u0301te\u0301", ["\u00e9t\u00e9"]),  # normalized to one character each
        (" \t", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_an_empty_text_is_no_transcript() -> None:
    assert transcript_of(None) is None
    assert transcript_of("  ") is None
    transcript = transcript_of("so what")
    assert transcript is not None
    assert transcript.words == ("so", "what")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("我 naïve", encoding=encoding)
    assert read_transcript(path) == transcript_of("我 naïve")


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * (MOST_CHARACTERS + 1))
    with pytest.raises(ValueError, match=r"a\.txt: its text has 200001 characters"):
        read_transcript(path)
    path.write_text("我" * (MOST_WORDS + 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.txt: its text has 20001 words; at most 20000"):
        read_transcript(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # not read as a whole
    with pytest.raises(ValueError, match=r"a\.txt: has more than \d+ bytes"):
        read_transcript(path)
    path.write_bytes(b"na\xefve")
    with pytest.raises(ValueError, match=r"a\.txt: not in UTF-8 \(byte 2\)"):
        read_transcript(path)
