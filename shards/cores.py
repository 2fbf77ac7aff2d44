"""How many cores this process may use, and how many threads read for it."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# More threads would wait for the interpreter's lock, which a thread needs between two reads.
MOST_READ_THREADS = 8


def read_threads(cores: int, local_ranks: int) -> int:
    """Threads that read for each rank: its share of the cores.

    Args:
        cores: of this machine that its ranks may use.
        local_ranks: number of ranks on this machine.
    """
    return max(1, min(cores // local_ranks, MOST_READ_THREADS))


def usable_cores(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its container or job."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return max(1, math.floor(min(cores, cpu_quota(cgroups, membership))))


def cpu_quota(cgroups: Path, membership: Path) -> float:
    """The smallest CPU limit of all levels of this process's control groups (v2 or v1), in cores; or inf."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    quota = math.inf
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        folder = root / group.lstrip("/")
        # In a container `group` may be a path of the host. Then the container's limit is at the root.
        for level in (root, *(p for p in (folder, *folder.parents) if root in p.parents)):
            quota = min(quota, _quota_of(level))
    return quota


def _quota_of(group: Path) -> float:
    try:
        if (group / "cpu.max").exists():
            most, period = (group / "cpu.max").read_text().split()
        else:
            most = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text()
        return math.inf if most in ("max", "-1") else int(most) / int(period)
    except (OSError, ValueError):
        return math.inf
