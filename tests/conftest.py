"""Fixtures that tests of several folders use."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

# First, since it sets the math library's mode, which must be done before torch is loaded. Child processes
# inherit the setting, whatever they import first.
import awtpn  # noqa: F401

# isort: split
import pytest
from accelerate.state import AcceleratorState, GradientState
from support import FOUR_DIMS, pack_corpus, run

from shards import ensure_demo
from shards.storage.credentials import forget_secrets


@pytest.fixture(autouse=True)
def nothing_secret() -> Iterator[None]:
    """Forget the secrets that a test registered, so that they do not affect the next test."""
    yield
    forget_secrets()
    logging.setLogRecordFactory(logging.LogRecord)


# Build DeepSpeed's CPU communication operator, unless it is built; print the folder of torch's operators.
BUILD = """
from pathlib import Path
from torch.utils.cpp_extension import _get_build_directory
from awtpn.distributed.engines.deepspeed import load_communication_op
load_communication_op()
print("OPERATORS", Path(_get_build_directory("deepspeed_shm_comm", verbose=False)).parent)
"""


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `data.cache_dir` that contains the packed demo corpus."""
    cache = tmp_path_factory.mktemp("demo-cache")
    ensure_demo(cache)
    return cache


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small dataset whose last training batch is partial; some utterances lack a modality."""
    return pack_corpus(tmp_path_factory.mktemp("corpus") / "small")


@pytest.fixture(scope="session")
def four_modalities(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with audio, video, text and pose; some utterances lack two of them."""
    return pack_corpus(tmp_path_factory.mktemp("corpus") / "four", dims=FOUR_DIMS)


@pytest.fixture(scope="session")
def deepspeed_operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build DeepSpeed's CPU communication operator; the folder for TORCH_EXTENSIONS_DIR.

    DeepSpeed compiles it in the first process that needs it, which may take minutes on a new, busy machine.
    Every test that starts DeepSpeed uses this fixture, so that no rank waits for a compiler.
    """
    code, output = run([sys.executable, "-c", BUILD], tmp_path_factory.mktemp("deepspeed") / "log")
    assert code == 0, output
    return Path(output.rpartition("OPERATORS ")[2].split("\n")[0])


@pytest.fixture
def no_accelerator() -> Iterator[None]:
    """Accelerate keeps what it found at its first start; it forgets it before the test and after."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield
    forget()
