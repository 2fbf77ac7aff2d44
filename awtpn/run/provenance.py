"""What produced a run: ranks, device, software versions, and the commit of the code."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from awtpn.config.project_files import checkout
from awtpn.distributed.doctor import versions
from awtpn.distributed.world import World


def describe(world: World, threads: int) -> dict[str, Any]:
    """The entries of status.json on ranks and machine; `threads` of each rank, 0 where torch decides."""
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


@functools.cache  # status.json and TensorBoard both need it, and git is slow in a large checkout
def commit() -> str | None:
    """The commit of this project's checkout, with "+ changes" if files differ; None outside of a checkout."""
    root = checkout()
    if root is None or not (root / ".git").exists():
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
