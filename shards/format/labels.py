"""Turn a label of any source into the name of a class, by the same rules for all sources.

- Class names are text in Unicode's composed form (NFC), without white space at the ends. Byte strings are
  UTF-8.
- Whole numbers have no decimals: 1, 1.0 and "1.0" are the class "1".
- null, NaN, empty text, and these values printed as text ("nan", "None") mean that there is no label.
- Labels that look alike, since they differ only in case, white space, Unicode form or invisible characters,
  are refused: they are most often one class with typing errors, which would be trained as two.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import repeat
from typing import Any

import numpy as np

from shards.safe_io.file_names import as_text, is_text

# Text by which programs print a missing value. "none" and "null" in lower case may be classes.
MISSING = {"nan", "NaN", "NAN", "None", "NULL", "<NA>", "NaT", "N/A"}
WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# Variation selectors and the combining grapheme joiner. The other invisible characters, such as zero-width
# spaces and byte order marks, have Unicode's category "Cf" (format).
INVISIBLE = re.compile("[\u034f\ufe00-\ufe0f]")
SHOWN = 4


def text_of(value: Any) -> str:
    """A single value as text; "" for null and NaN.

    Raises:
        ValueError: bytes that are not UTF-8, or not a single value.
    """
    if isinstance(value, np.ndarray | np.generic):
        if value.size != 1:
            raise ValueError(f"is an array of shape {value.shape}, not a single value")
        value = value.reshape(-1)[0].item() if value.dtype.kind != "M" else str(value)
    if isinstance(value, bytes | bytearray):
        try:
            value = bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"is {bytes(value)!r}, which is not UTF-8; save it as text") from None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | tuple | dict | set):
        raise ValueError(f"is {value!r:.60}, not a single value")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return unicodedata.normalize("NFC", str(value)).strip()


def label_name(value: Any, classes: Collection[str] = ()) -> str:
    """The name of the class of a label.

    Args:
        value: text, bytes, or a number.
        classes: names that are known to be classes, even if they look like a missing value ("None").

    Raises:
        ValueError: there is no label, or it is not a single value.
    """
    try:
        name = text_of(value)
    except ValueError as error:
        raise ValueError(f"its label {error}") from None
    if name in classes:
        return name
    if not _visible(name):
        shown = f" ({name!r})" if name else ""
        raise ValueError(f"has no label{shown}; fill it in, or leave it out")
    if name in MISSING:
        raise ValueError(
            f"has no label ({name!r}); fill it in, or leave it out; if it is a class, name all "
            "classes (--labels)"
        )
    whole = WHOLE.fullmatch(name)
    return whole[1] if whole else name


def has_labels(values: Iterable[Any]) -> bool:
    """Whether one of these values is the label of a class; the others are missing."""
    for value in values:
        try:
            label_name(value)
        except ValueError:
            continue
        return True
    return False


def found_classes(labels: Iterable[Any], at: str, times: Iterable[int] | None = None) -> list[str]:
    """The classes of these labels: numbers by their value, then names in alphabetical order.

    Missing labels are ignored here: packing refuses or skips their utterances one by one.

    Args:
        labels: of utterances, or the different ones.
        at: where they are from, for error messages.
        times: how often each of `labels` occurs; default once.

    Raises:
        ValueError: there is no label at all, or some differ only in case, white space, Unicode form or
            invisible characters.
    """
    counts: Counter[str] = Counter()
    for label, count in zip(labels, repeat(1) if times is None else times, strict=False):
        try:
            counts[label_name(label)] += count
        except ValueError:
            continue
    if not counts:
        raise ValueError(f"{at}: none of the utterances has a label")
    alike: dict[str, list[str]] = {}
    for name in sorted(counts):
        alike.setdefault(_folded(name), []).append(name)
    if twice := [names for names in alike.values() if len(names) > 1]:
        listed = "; ".join(
            ", ".join(f"{name!r} ({counts[name]})" for name in names) for names in twice[:SHOWN]
        )
        more = f" and {len(twice) - SHOWN} more" if len(twice) > SHOWN else ""
        raise ValueError(
            f"{at}: labels differ only in case, white space, Unicode form or invisible characters: {listed}"
            f"{more}; write them alike, or, if they are classes of their own, name all classes (--labels)"
        )
    return sorted(counts, key=_order)


def given_classes(names: Iterable[Any]) -> list[str]:
    """Class names that a user or a file gives, in the order of the labels' numbers, in the form of labels.

    Raises:
        ValueError: there are none, a name is empty, or two are equal.
    """
    given = list(names)
    try:
        classes = [text_of(name) for name in given]
    except ValueError as error:
        raise ValueError(f"classes {given}: a name {error}") from None
    classes = [whole[1] if (whole := WHOLE.fullmatch(name)) else name for name in classes]
    if not classes or len(set(classes)) != len(classes) or not all(map(_visible, classes)):
        raise ValueError(f"classes {given}: must be distinct names, at least one")
    if bad := [name for name in classes if not is_text(name)]:
        raise ValueError(f"class {as_text(bad[0])!r}: its name is not in UTF-8; rename it")
    return classes


def _folded(name: str) -> str:
    """The same text for names that look alike: compared by it, never shown."""
    return " ".join(_visible(unicodedata.normalize("NFKC", name)).casefold().split())


def _visible(text: str) -> str:
    """The text without invisible characters and white space at its ends."""
    if text.isascii():
        return text.strip()
    kept = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return INVISIBLE.sub("", kept).strip()


def _order(name: str) -> tuple[bool, float, str]:
    number = NUMBER.fullmatch(name)
    return not number, float(name) if number else 0.0, name
