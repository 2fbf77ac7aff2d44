"""What produced a run: ranks, device, versions of the software, and the commit it was checked out at."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from awtpn.distributed.doctor import versions
from awtpn.distributed.world import World


def describe(world: World, threads: int) -> dict[str, Any]:
    """What status.json tells of who ran, as plain values; `threads` of each rank, 0 where torch decides."""
    return {
        "ranks": world.size,
        "engine": world.engine,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "threads": threads or torch.get_num_threads(),
        "host": platform.node(),
        "pid": os.getpid(),
        "versions": versions(),
        "commit": commit(),
    }


@functools.cache  # asked for by status.json and by TensorBoard; git takes a while in a large checkout
def commit() -> str | None:
    """The commit of this project's checkout, "+ changes" where files differ from it; None outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head} + changes" if changed else head


def _git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
