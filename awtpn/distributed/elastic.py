"""Whether the number of nodes may change while a run goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

# Set by torchrun for its ranks.
ELASTIC_RUN = "TORCHELASTIC_RUN_ID"
# torchrun takes its options from such variables, too.
NODES_VARIABLE = "PET_NNODES"
# "True" where torchrun has one store for the addresses of its ranks, in all rounds of the rendezvous.
SHARES_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def nodes_may_change(environment: Mapping[str, str]) -> bool:
    """Whether torchrun was started with a range of nodes, as by `--nnodes 1:4` (Linux).

    torchrun tells its ranks how many there are now, but not how many there can be. So the options are read
    from the command line of the parent process.
    """
    if ELASTIC_RUN not in environment:
        return False
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().split("\0")
    except OSError:
        words = []
    return is_range(nodes_of(words) or environment.get(NODES_VARIABLE, ""))


def warn_of_shared_store(environment: Mapping[str, str]) -> str | None:
    """What to tell a user whose ranks may not meet again after a restart by torchrun; None if they will.

    As measured with torch 2.13, in two cases. After a change of nodes, rank 0's torchrun does not announce
    its store again, and the others use that of the former rank 0, though its node may be lost. And the nodes
    count restarts each for itself, so that some may read addresses of ranks that have ended.
    """
    several = int(environment.get("GROUP_WORLD_SIZE", "1")) > 1
    restarts = several and int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if environment.get(SHARES_STORE) != "True" or not (restarts or nodes_may_change(environment)):
        return None
    return (
        "warning: after a restart by torchrun the ranks of several nodes may not meet again: set "
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on all nodes"
    )


def nodes_of(words: Sequence[str]) -> str | None:
    """The value of the option --nnodes on torchrun's command line; None if it is not given."""
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == "--nnodes":
            return value or next(iter(words[i + 1 :]), None)
    return None


def is_range(nodes: str) -> bool:
    """Whether "1:4" is a range of more than one number; "2" and "2:2" are not."""
    found = re.fullmatch(r"(\d+):(\d+)", nodes)
    return found is not None and found[1] != found[2]
