"""Training utterances that are skipped since their shard or array is damaged: named, counted, bounded."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote

from awtpn.run.position import Position
from shards.safe_io.printable import printable

# Names shown of each cause, and causes shown in an error.
SHOWN = 8


def account_for_damaged(
    found: Mapping[str, str], reported: dict[str, str], position: Position, budget: int, url: str
) -> list[str]:
    """Add `found` to the damaged utterances of a run.

    Args:
        found: name and cause of utterances, the same on every rank; each epoch finds them again.
        reported: name and cause of those found since this start; `found` is added to it.
        position: of the run; `found` is added to its `damaged`.
        budget: how many the run may skip.
        url: of the dataset.

    Returns:
        A line for each cause that is new since this start: a damaged shard has one for all its utterances.

    Raises:
        ValueError: there are more than the budget now.
    """
    known = set(reported.values())
    reported.update(found)
    position.damaged = sorted({*position.damaged, *found})
    lines = [f"{cause}: left out: {_names(found, cause)}" for cause in _causes(found) if cause not in known]
    if len(position.damaged) > budget:
        causes = [f"{cause}: {_names(reported, cause)}" for cause in _causes(reported)]
        more = [f"and {len(causes) - SHOWN} more causes"] if len(causes) > SHOWN else []
        count = f"{len(position.damaged)} training utterances are damaged or missing"
        check = f"awtpn shards verify {quote(url)}"
        fix = f"list all with `{check}`, then copy or pack these shards again, or allow more"
        raise ValueError(
            "\n".join([f"{count}, more than data.damaged_budget {budget}:", *causes[:SHOWN], *more, fix])
        )
    return lines


def _causes(found: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(found.values()))


def _names(found: Mapping[str, str], cause: str) -> str:
    names = [printable(name) for name, of in found.items() if of == cause]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
