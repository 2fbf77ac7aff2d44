"""Transcripts: what is said in an utterance, as words, with their times where a corpus knows them.

A word is one time step of the modality "text". Text is split at white space; scripts that are written without
spaces (Chinese, Japanese, Thai, ...) are split into characters.

Transcripts are personal data: error messages here name what is wrong with a text, and never quote it.
"""

from __future__ import annotations

import re
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.safe_io.file_names import is_text
from shards.safe_io.git_lfs import refuse_pointer_text

# Characters of scripts that are written without spaces between words: Han, kana, Thai, Lao, Khmer, Burmese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd]"
)

# Unicode categories of characters that belong to the one before: combining marks and joiners.
MARKS = ("Mn", "Mc", "Me", "Cf")

# Of one utterance. An hour of speech has about 60,000 characters.
MOST_CHARACTERS = 200_000
# And about 10,000 words. 20,000 words take 0.3 GB as features of chargrams, and some times that for a moment.
MOST_WORDS = 20_000
MOST_BYTES = 4 * MOST_CHARACTERS + 4  # of a file; 4 of them for a byte order mark


@dataclass(frozen=True)
class Transcript:
    """The words of an utterance, in order.

    Attributes:
        words: at least one; each is one time step.
        spans: (begin, end) of each word in seconds from the utterance's begin; empty if not known.
    """

    words: tuple[str, ...]
    spans: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        assert self.words
        assert not self.spans or len(self.spans) == len(self.words)


def transcript_of(text: str | None) -> Transcript | None:
    """The transcript of a text; None if it is empty: the modality is missing then.

    Raises:
        ValueError: it has more than `MOST_WORDS` words.
    """
    words = split_words(text or "")
    if len(words) > MOST_WORDS:
        raise ValueError(f"its text has {len(words)} words; at most {MOST_WORDS} are read")
    return Transcript(tuple(words)) if words else None


def read_transcript(path: Path) -> Transcript | None:
    """The transcript in a text file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    Returns:
        The transcript; None if the file is empty.

    Raises:
        ValueError: it is in another encoding, too large, or no text.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path}: has more than {MOST_BYTES} bytes, which is no text of one utterance")
    refuse_pointer_text(content, str(path))
    encoding = "utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return transcript_of(checked_text(content.decode(encoding)))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not in UTF-8 (byte {error.start}); save it in UTF-8, for instance with: "
            f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} -o NEW_FILE"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


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


def checked_text(value: Any) -> str:
    """An entry of somebody's file as text; "" for null and NaN.

    Raises:
        ValueError: it is no text, not in UTF-8, too long, or has NUL characters.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.size != 1:
            raise ValueError(f"its text is an array of shape {value.shape}; expected a single text")
        value = value.reshape(-1)[0]
        value = value.item() if isinstance(value, np.generic) else value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bytes | bytearray):
        try:
            value = bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"its text is not in UTF-8 (byte {error.start}); save it as text") from None
    if not isinstance(value, str):
        raise ValueError(f"its text is of type {type(value).__name__}; expected text")
    if len(value) > MOST_CHARACTERS:
        raise ValueError(f"its text has {len(value)} characters; at most {MOST_CHARACTERS} are read")
    if "\0" in value or not is_text(value):
        raise ValueError("its text has characters that no text has (NUL or lone surrogates); repair it")
    return value


def decode_text(content: bytes) -> str:
    """Text in UTF-8 or Windows' code page 1252; some files mix the two."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return re.sub("[\x80-\x9f]", lambda found: found[0].encode("latin-1").decode("cp1252", "replace"), text)
