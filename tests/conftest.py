"""Fixtures that several folders of tests use."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

# First, since it sets how the math library multiplies, which must be before torch is loaded. Child processes
# inherit it, whatever they import first.
import awtpn  # noqa: F401

# isort: split
import pytest
from support import pack_corpus, run

from shards import ensure_demo
from shards.storage.credentials import forget_secrets


@pytest.fixture(autouse=True)
def nothing_secret() -> Iterator[None]:
    """What one test keeps secret is no secret to the next."""
    yield
    forget_secrets()
    logging.setLogRecordFactory(logging.LogRecord)


# Build DeepSpeed's CPU communication operator, or find it built; print torch's folder of such operators.
BUILD = """
from pathlib import Path
from torch.utils.cpp_extension import _get_build_directory
from awtpn.distributed.engines.deepspeed import load_communication_op
load_communication_op()
print("OPERATORS", Path(_get_build_directory("deepspeed_shm_comm", verbose=False)).parent)
"""


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


@pytest.fixture(scope="session")
def deepspeed_operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeepSpeed's CPU communication operator is built; the folder to name by TORCH_EXTENSIONS_DIR.

    DeepSpeed compiles it in the first process that needs it, which may take minutes on a new, busy machine.
    Every test that starts DeepSpeed asks for this fixture, so that no rank waits for a compiler.
    """
    code, output = run([sys.executable, "-c", BUILD], tmp_path_factory.mktemp("deepspeed") / "log")
    assert code == 0, output
    return Path(output.rpartition("OPERATORS ")[2].split("\n")[0])
