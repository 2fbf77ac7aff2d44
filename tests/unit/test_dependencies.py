"""No extra can break an installation: what each of them pulls in, directly or not."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from support import REPO

from awtpn.bench.readers import PEER_PACKAGES

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pulled_in(extra: str) -> dict[str, str]:
    """All packages that an installation with this extra has, and which package required each first."""
    own = [*PROJECT["dependencies"], *EXTRAS[extra]]
    waiting = [(Requirement(text), "", PROJECT["name"]) for text in own]
    found: dict[str, str] = {}
    done = set()
    while waiting:
        requirement, of_extra, by = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        found.setdefault(requirement.name.lower(), by)
        for name in ("", *requirement.extras):
            if (requirement.name, name) in done:
                continue
            done.add((requirement.name, name))
            if requirement.name == PROJECT["name"]:
                inner = EXTRAS[name] if name else []
            else:
                try:
                    inner = requires(requirement.name) or []
                except PackageNotFoundError:
                    assert by != PROJECT["name"], f"install {requirement.name}, to see what it requires"
                    inner = []
            waiting += [(Requirement(text), name, requirement.name) for text in inner]
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_no_extra_pulls_in_a_torchvision(extra: str) -> None:
    """Of PyPI's builds none fits a CPU torch, and transformers imports it: then every encoder of it fails."""
    found = pulled_in(extra)
    assert {"torch", "transformers", "aiohttp"} <= found.keys(), "what is required indirectly is seen"
    assert found.get("torchvision") is None


def test_the_peers_of_the_benchmark_replace_nothing() -> None:
    own = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert not own.intersection(PEER_PACKAGES)
    assert not {"torch", "torchvision", "transformers", "numpy"}.intersection(PEER_PACKAGES)
