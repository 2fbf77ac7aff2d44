"""Which utterance each member of a foreign tar belongs to, and what it is of it.

By webdataset's rule a key ends at the first dot of a name's last part: `u0.audio.npy` and `u0.json` are two
members of `u0`. Who names utterances with dots (`dia0.utt1.audio.npy`, `dia0.utt1.json`) would find all those
of `dia0` in one. The members that tell labels show which is meant: where each of a key's begins as its arrays
do, with something between the key and its own ending, and none has nothing there, that something belongs to
the key. Where some arrays fit and others do not, nobody can tell, and the tar is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from shards.format.tar_members import Header

ARRAYS = ("npy", "npz")
LABELS = ("json", "cls")


@dataclass(frozen=True)
class NamedMember:
    """A member, the key of its utterance, and what follows the key in its name, without the dot."""

    header: Header
    key: str
    ending: str

    @property
    def kind(self) -> str:
        """The last part of the ending, in lower case."""
        return self.ending.rpartition(".")[2].lower()


def assign_keys(headers: Iterable[Header], label_member: str | None = None) -> list[NamedMember]:
    """The utterance of each member, in their order.

    Args:
        headers: of a tar.
        label_member: ending of further members that tell labels.

    Raises:
        ValueError: names with dots of which nobody can tell where the key ends; names the member and the fix.
    """
    headers = list(headers)
    labels = (*((label_member.lower(),) if label_member else ()), *LABELS)
    endings: dict[str, list[str]] = {}
    for header in headers:
        endings.setdefault(header.key, []).append(header.ending)
    within = {key: _within(key, each, labels) for key, each in endings.items()}
    return [_named(header, within[header.key]) for header in headers]


def _within(key: str, endings: Collection[str], labels: Collection[str]) -> set[str]:
    """What stands between webdataset's key and the members' own endings; empty where nothing does."""
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
    """What stands before a label's own ending; None for what is no label."""
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
