"""Fixtures that several folders of tests use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import pack_corpus

from shards import ensure_demo
from shards.credentials import forget_secrets


@pytest.fixture(autouse=True)
def nothing_secret() -> Iterator[None]:
    """What one test keeps secret is no secret to the next."""
    yield
    forget_secrets()
    logging.setLogRecordFactory(logging.LogRecord)


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
