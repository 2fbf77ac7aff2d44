"""Hashed character n-grams of each word, without weights.

fastText learns vectors of such parts of words (Bojanowski et al., 2017); here they are hashed instead. A word
is brought to one form: Unicode's NFKC, folded case, one kind of apostrophe. Its parts are

- all runs of 3 or 4 characters of " word ", where the spaces mark its begin and its end;
- " word " as a whole, if it is longer than that;
- a mark if it has two or more letters, all of them capitals ("OH"), since folding hides that it is shouted.

Each part is hashed (BLAKE2b, 8 bytes): the lowest bit is its sign, the others modulo `width` its place. The
features of the word are the sums of the signs, scaled to unit length, so that a long word counts no more than
a short one. Words that share most of their letters ("happy", "happpy", "unhappy") have similar features, and
every word has some: emoji, numbers, names, and words of any script.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

SHORTEST, LONGEST = 3, 4
MARK = " "
SHOUTED = "shouted  "  # cannot be part of a word, which has no spaces inside
# A longer word is no word of a language (an address, noise); only so many characters of it count.
LONGEST_WORD = 64
MOST_FEATURES = 1 << 16
CACHED_WORDS = 1 << 15
APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")


class CharGrams:
    """Text encoder, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        width: features per word.
    """

    modality = "text"
    name = "chargrams"

    def __init__(self, *, width: int = 1024) -> None:
        if not 1 <= width <= MOST_FEATURES:
            raise ValueError(f"chargrams: width={width}; it must be from 1 to {MOST_FEATURES}")
        self.dim = width
        self.settings: dict[str, Any] = {
            "id": "chargrams",
            "version": 1,
            "step": "word",
            "width": width,
            "characters": [SHORTEST, LONGEST],
            "longest_word": LONGEST_WORD,
            "hash": "blake2b",
        }

    def encode(self, texts: list[tuple[str, ...]]) -> list[np.ndarray]:
        """[T, width] for each text of T words."""
        return [self._encode(words) for words in texts]

    def _encode(self, words: tuple[str, ...]) -> np.ndarray:
        features = np.zeros((len(words), self.dim), np.float32)
        for row, word in zip(features, words, strict=True):
            places, values = hashed(word, self.dim)
            row[places] = values
        return features


@lru_cache(CACHED_WORDS)
def hashed(word: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of a word's features that are not 0, and their values."""
    sums: defaultdict[int, int] = defaultdict(int)
    for part in parts(word):
        digest = blake2b(part.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        code = int.from_bytes(digest, "little")
        sums[(code >> 1) % width] += 1 if code & 1 else -1
    values = np.array(list(sums.values()), np.float64)
    if not values.any():
        values[0] = 1.0  # the signs of all parts cancel out
    return np.array(list(sums), np.intp), (values / np.linalg.norm(values)).astype(np.float32)


def parts(word: str) -> Iterator[str]:
    """The parts of a word, with repetitions."""
    word = word[:LONGEST_WORD]
    if word.isupper() and sum(map(str.isalpha, word)) > 1:
        yield SHOUTED
    form = unicodedata.normalize("NFKC", word).casefold().translate(APOSTROPHES)
    marked = f"{MARK}{form}{MARK}"
    for length in range(SHORTEST, LONGEST + 1):
        for begin in range(len(marked) - length + 1):
            yield marked[begin : begin + length]
    if len(marked) > LONGEST:
        yield marked
