"""A real object store for the tests of a module, and a proxy before it that can fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import swift as laboratory
from faulty_proxy import FaultyProxy


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[laboratory.Swift]:
    folder = tmp_path_factory.mktemp("swift")
    if reason := laboratory.missing(folder):
        pytest.skip(reason)
    running = laboratory.start_swift(folder)
    yield running
    running.stop()


@pytest.fixture
def proxy(swift: laboratory.Swift) -> Iterator[FaultyProxy]:
    running = FaultyProxy(swift.ports["proxy"])
    yield running
    running.close()
