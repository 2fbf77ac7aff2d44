"""Names of splits: corpora write "valid" or "dev" for what is "val" here."""

from __future__ import annotations

from collections.abc import Iterable

# Without "eval", which means validation in some corpora and test in others.
WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "devel": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "all": "all",
}


def meaning(name: str) -> str:
    """The usual name of a split: "train", "val", "test" or "all"; any other name as it is."""
    return WORDS.get(name.strip().lower(), name)


def usual_names(names: Iterable[str]) -> dict[str, str]:
    """The names that a source's splits get in the dataset.

    Two names of the same meaning ("dev" beside "val") are two splits and keep their names. Names that differ
    only in case ("Train" beside "train") are one split.
    """
    found = {name: meaning(name) for name in dict.fromkeys(names)}
    words: dict[str, set[str]] = {}
    for name, usual in found.items():
        words.setdefault(usual, set()).add(name.strip().lower())
    return {
        name: usual if len(words[usual]) == 1 else name.strip().lower() if usual in WORDS else name
        for name, usual in found.items()
    }


def renaming_message(names: dict[str, str], at: str) -> str | None:
    """A line that lists the splits which got another name; None if there are none."""
    lines = [f"{name!r} is {usual!r} here" for name, usual in names.items() if name != usual]
    return f"{at}: split {', '.join(lines)}" if lines else None


def find_split(wanted: str, splits: Iterable[str]) -> str | None:
    """The split of that name, else the one of the same meaning; None if there is none, or several."""
    there = list(splits)
    if wanted in there:
        return wanted
    alike = [name for name in there if meaning(name) == meaning(wanted)]
    return alike[0] if len(alike) == 1 else None


def split_from_url_or_option(url: str, option: str | None) -> str | None:
    """The split that a user names in the URL (`URL#dev`) or with --split; None if neither is given.

    Raises:
        ValueError: they name different splits.
    """
    fragment = url.partition("#")[2]
    if fragment and option and meaning(fragment) != meaning(option):
        raise ValueError(
            f"the URL names the split {fragment!r}, and --split {option!r}: leave one of them out"
        )
    return option or fragment or None
