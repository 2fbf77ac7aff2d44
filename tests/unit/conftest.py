"""Fixtures that several tests use."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import fsspec
import pytest
from shards_support import corpus, pack


@pytest.fixture
def remote() -> Iterator[str]:
    """URL of a packed corpus that is not local."""
    name = uuid.uuid4().hex
    pack(corpus(), f"memory://{name}/d")
    yield f"memory://{name}/d"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)
