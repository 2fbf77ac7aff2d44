"""Find the key of each member of a tar of another program, also if keys hold dots.

By webdataset's rule a key ends at the first dot of the file name: `u0.audio.npy` and `u0.json` are members of
utterance `u0`. If keys hold dots (`dia0.utt1.audio.npy`, `dia0.utt1.json`), this rule would join all
utterances of `dia0` into one. The members with labels show which is meant:

- If a key by webdataset's rule has `dia0.json`, the key is `dia0`.
- If it has only `dia0.utt1.json`, `dia0.utt2.json` and so on, and all its arrays begin with `dia0.utt1.`,
  `dia0.utt2.` and so on, the keys are `dia0.utt1`, `dia0.utt2` and so on.
- If some arrays fit and others do not, it cannot be decided, and the tar is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from shards.format.tar_members import Header

ARRAYS = ("npy", "npz")
LABELS = ("json", "cls")


@dataclass(frozen=True)
class NamedMember:
    """A member, the key of its utterance, and the ending: what follows the key in its name."""

    header: Header
    key: str
    ending: str

    @property
    def kind(self) -> str:
        """The last part of the ending, in lower case."""
        return self.ending.rpartition(".")[2].lower()


def assign_keys(headers: Iterable[Header], label_member: str | None = None) -> list[NamedMember]:
    """The key of each member, in the order of `headers`.

    Args:
        headers: of a tar.
        label_member: ending of further members that hold labels.

    Raises:
        ValueError: it cannot be decided where a key with dots ends; names the member and the fix.
    """
    headers = list(headers)
    labels = (*((label_member.lower(),) if label_member else ()), *LABELS)
    endings: dict[str, list[str]] = {}
    for header in headers:
        endings.setdefault(header.key, []).append(header.ending)
    within = {key: _within(key, each, labels) for key, each in endings.items()}
    return [_named(header, within[header.key]) for header in headers]


def _within(key: str, endings: Collection[str], labels: Collection[str]) -> set[str]:
    """The parts of names that belong to the key after webdataset's key ("utt1"); empty if there are none."""
    found = {before for ending in endings if (before := _before(ending, labels)) is not None}
    arrays = [ending for ending in endings if ending.rpartition(".")[2].lower() in ARRAYS]
    if not found or "" in found or not arrays:
        return set()
    stems = {ending: ending.rpartition(".")[0] for ending in arrays}  # utt1.audio
    fits = {ending: stem.rpartition(".")[0] in found for ending, stem in stems.items()}
    doubtful = [ending for ending, stem in stems.items() if stem in found]
    if all(fits.values()) and not doubtful:
        return found
    if any(fits.values()) or doubtful:
        name = f"{key}.{(doubtful or [ending for ending in arrays if not fits[ending]])[0]}"
        raise ValueError(
            f"{name}: its key ends at its first dot ({key!r}), labels are in {key}.{min(found)}...; which "
            "belong together is unclear; name members KEY.MODALITY.npy and KEY.json with no dot in KEY"
        )
    return set()


def _before(ending: str, labels: Collection[str]) -> str | None:
    """The part of an ending before that of a label ("utt1" of "utt1.json"); None if it is not a label's."""
    for label in labels:
        if ending.lower() == label:
            return ""
        if ending.lower().endswith(f".{label}"):
            return ending[: -len(label) - 1]
    return None


def _named(header: Header, within: Collection[str]) -> NamedMember:
    for more in sorted(within, key=len, reverse=True):
        if header.ending.startswith(f"{more}."):
            return NamedMember(header, f"{header.key}.{more}", header.ending[len(more) + 1 :])
    return NamedMember(header, header.key, header.ending)
