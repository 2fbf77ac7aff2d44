"""MIGRATION.md: every new path imports, and every old path stands there once."""

from __future__ import annotations

import importlib
import re
from collections import Counter

from support import REPO

ROW = re.compile(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", re.MULTILINE)
ROWS = ROW.findall((REPO / "MIGRATION.md").read_text())


def imports(path: str) -> bool:
    """Whether there is a module of this path, or a name of this path in a module."""
    try:
        importlib.import_module(path)
        return True
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
    module, _, name = path.rpartition(".")
    return hasattr(importlib.import_module(module), name)


def test_every_new_path_imports() -> None:
    assert len(ROWS) > 100
    assert [now for _, now in ROWS if not imports(now)] == []


def test_an_old_path_stands_there_once() -> None:
    assert [before for before, count in Counter(before for before, _ in ROWS).items() if count > 1] == []
    assert [before for before, now in ROWS if before == now] == []
