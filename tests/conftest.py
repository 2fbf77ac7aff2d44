"""Fixtures that several folders of tests use."""

from __future__ import annotations

from pathlib import Path

# First, since it sets how the math library multiplies, which must be before torch is loaded. Child processes
# inherit it, whatever they import first.
import awtpn  # noqa: F401

# isort: split
import pytest
from support import pack_corpus

from shards import ensure_demo


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data.cache_dir in which the demo corpus is packed already."""
    cache = tmp_path_factory.mktemp("demo-cache")
    ensure_demo(cache)
    return cache


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small dataset whose last training batch is partial and where some utterances miss a modality."""
    return pack_corpus(tmp_path_factory.mktemp("corpus") / "small")
