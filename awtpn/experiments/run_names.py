"""Names of run folders: readable, and different for different settings.

A name is made from a text such as a metadata value or the settings of a sweep. Two different texts never get
the same name, so an existing run folder belongs to exactly these settings.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

# File systems take 255 bytes; a seed, a dot and ".lock" are added to a name.
LONGEST_NAME = 200
LONGEST_SLUG = 100
HASH_DIGITS = 10
# A text that looks like a name with a hash gets a hash too, so that it cannot equal such a name.
WITH_HASH = re.compile(rf".*~[0-9a-f]{{{HASH_DIGITS}}}", re.DOTALL)


def folder_name(text: str) -> str:
    """A folder's name for `text`; different texts have different names.

    A text that is a valid name is used as it is. Otherwise the name is the beginning of the text, without
    invalid characters, and a hash of the text: "speaker-A/1" becomes "speaker-A_1~5f0c1b3a9e".
    """
    plain = text.isprintable() and not set(text) & {"/", "\\"} and text not in ("", ".", "..")
    if plain and len(text.encode()) <= LONGEST_NAME and not WITH_HASH.fullmatch(text):
        return text
    slug = re.sub(r"[^\w.=,+\-\[\]]", "_", text).encode("utf-8", "replace")[:LONGEST_SLUG]
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_DIGITS]
    return f"{slug.decode('utf-8', 'ignore')}~{digest}"


def as_argument(value: Any) -> str:
    """A value in ASCII that is valid JSON and YAML, for a command line that is read as YAML.

    ASCII JSON writes a character of more than 16 bits as a surrogate pair, which YAML does not join; and YAML
    folds line separators that JSON does not escape. So both are written as \\U escapes.

    Raises:
        ValueError: a number is NaN or infinite, or a text is no valid Unicode.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{value!a} is no valid Unicode (a lone surrogate), so it cannot be selected by")
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", text)
