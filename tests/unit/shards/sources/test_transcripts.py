"""Texts are split into words in every script."""

import pytest

from shards.sources.transcripts import split_words, transcript_of


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
