"""Transcripts: what is said in an utterance, as words, with their times where a corpus knows them.

A word is one time step of the modality "text". Text is split at white space; scripts that are written without
spaces (Chinese, Japanese, Thai, ...) are split into characters.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# Characters of scripts that are written without spaces between words: Han, kana, Thai, Lao, Khmer, Burmese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd]"
)

# Unicode categories of characters that belong to the one before: combining marks and joiners.
MARKS = ("Mn", "Mc", "Me", "Cf")


@dataclass(frozen=True)
class Transcript:
    """The words of an utterance, in order.

    Attributes:
        words: at least one; each is one time step.
        spans: (begin, end) of each word in seconds from the utterance's begin; empty where not known.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        assert self.words
        assert not self.spans or len(self.spans) == len(self.words)


def transcript_of(text: str | None) -> Transcript | None:
    """The transcript of a text; None if it is empty: the modality is missing then."""
    words = split_words(text or "")
    return Transcript(tuple(words)) if words else None


def split_words(text: str) -> list[str]:
    """The words of a text, normalized to Unicode's form NFC.

    A character of an unspaced script is a word of its own; combining marks that follow stay with it.
    """
    words: list[str] = []
    for chunk in unicodedata.normalize("NFC", text).split():
        of_chunk: list[str] = []
        begins_word = True
        for mark in chunk:
            unspaced = UNSPACED.match(mark) is not None
            if of_chunk and unicodedata.category(mark) in MARKS:
                of_chunk[-1] += mark
            elif begins_word or unspaced:
                of_chunk.append(mark)
                begins_word = unspaced
            else:
                of_chunk[-1] += mark
        words += of_chunk
    return words
