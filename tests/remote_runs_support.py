"""Shared by the tests of runs at a URL: a store that fails as told, and checkpoints."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import torch
from safetensors.torch import save_file
from support import LIMIT

from awtpn.model.files import CARD_FILE, FILES, OPTIMIZER_FILE, STATE_FILE, WEIGHTS_FILE, fingerprint
from awtpn.run import checkpoint
from awtpn.run.atomic_write import write_json
from awtpn.run.remote import files
from awtpn.run.remote.lease import Times
from awtpn.run.remote.session import RemoteRun
from shards.storage.store import Store

# A live holder is never taken for dead, on however slow a machine.
QUICK = Times(beat_s=0.1, dead_s=1e4, settle_s=0.2, poll_s=0.05)
DYING = replace(QUICK, dead_s=0.5)  # a holder without heartbeats is dead soon

send_checkpoint = RemoteRun.send_checkpoint


class Faulty:
    """A file system that counts its calls, and fails where it is told.

    Attributes:
        calls: by name of the method.
        fail: called with a method's name and path before each call; it may raise.
    """

    def __init__(self, fs: Any, fail: Callable[[str, str], None] = lambda method, path: None) -> None:
        self._fs, self.calls, self.fail = fs, Counter[str](), fail

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if name not in ("pipe_file", "put_file", "cat_file", "get_file", "find", "info", "ls", "rm_file"):
            return found

        def call(path: str, *args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self.fail(name, str(args[0]) if name == "put_file" else path)
            return found(path, *args, **options)

        return call


@contextmanager
def memory_url() -> Iterator[str]:
    """The URL of an empty folder in memory, which is removed at the end."""
    name = uuid.uuid4().hex
    yield f"memory://{name}/run"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{name}"):
        memory.rm(f"/{name}", recursive=True)


def faulty(url: str, fail: Callable[[str, str], None] = lambda method, path: None) -> tuple[Store, Faulty]:
    """A run folder whose store fails as told."""
    store = files.open_remote(url)
    fs = Faulty(store.fs, fail)
    return replace(store, fs=fs), fs


def send_and_wait(run: RemoteRun, root: Path) -> None:
    """As `RemoteRun.send_checkpoint`, but a checkpoint is sent before the next step: none is left out."""
    send_checkpoint(run, root)
    if run.sender is not None:
        run.sender.wait(LIMIT)


def save_checkpoint(run_dir: Path, step: int, best: bool = True, value: float = 1.0, size: int = 12) -> Path:
    """Write a checkpoint that is whole, though its model has a single weight, of so many bytes."""
    folder = run_dir / "checkpoints" / checkpoint.folder_name(step)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.full((size // 4,), value + step)}, folder / WEIGHTS_FILE)
    save_file({"weight.exp_avg": torch.zeros(3)}, folder / OPTIMIZER_FILE)
    write_json(folder / CARD_FILE, {"format": "awtpn", "step": step})
    position = {"step": step, "epoch": 0, "epoch_step": step, "best_step": step if best else 0}
    state = {
        "format_version": 1,
        "position": position,
        "adam_step": float(step),
        "loss_scale": {},
        "files": {name: fingerprint(folder / name) for name in FILES},
    }
    write_json(folder / STATE_FILE, state)
    checkpoint.update_symlink(folder.parent / "latest", folder)
    if best:
        checkpoint.update_symlink(folder.parent / "best", folder)
    return folder


def contents(store: Store) -> dict[str, bytes]:
    """Every file at the URL, but for those of leases."""
    names = files.list_files(store)
    return {name: files.read_bytes(store, name) or b"" for name in names if not name.startswith(".lease/")}
