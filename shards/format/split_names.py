"""What splits are called, here and elsewhere: "valid" and "dev" are "val"."""

from __future__ import annotations

from collections.abc import Iterable

# Not "eval": some mean the validation by it, others the test.
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
    """The usual name of a split, "train", "val", "test" or "all"; one of another kind as it is."""
    return WORDS.get(name.strip().lower(), name)


def usual_names(names: Iterable[str]) -> dict[str, str]:
    """What a source's splits shall be called in the dataset.

    Those of which two mean the same ("dev" beside "val") keep their names: they are two. In another case
    ("Train" beside "train") they are one.
    """
    found = {name: meaning(name) for name in dict.fromkeys(names)}
    words: dict[str, set[str]] = {}
    for name, usual in found.items():
        words.setdefault(usual, set()).add(name.strip().lower())
    return {
        name: usual if len(words[usual]) == 1 else name.strip().lower() if usual in WORDS else name
        for name, usual in found.items()
    }


def renamed(names: dict[str, str], at: str) -> str | None:
    """A line that tells which splits were given another name; None where none was."""
    told = [f"{name!r} is {usual!r} here" for name, usual in names.items() if name != usual]
    return f"{at}: split {', '.join(told)}" if told else None


def find_split(wanted: str, splits: Iterable[str]) -> str | None:
    """The split of that name, else the one that means the same; None where there is none, or several."""
    there = list(splits)
    if wanted in there:
        return wanted
    alike = [name for name in there if meaning(name) == meaning(wanted)]
    return alike[0] if len(alike) == 1 else None


def named_once(url: str, option: str | None) -> str | None:
    """The split that a user names in the URL (`URL#dev`) or with --split; None where neither does.

    Raises:
        ValueError: they name two splits.
    """
    fragment = url.partition("#")[2]
    if fragment and option and meaning(fragment) != meaning(option):
        raise ValueError(
            f"the URL names the split {fragment!r}, and --split {option!r}: leave one of them out"
        )
    return option or fragment or None
