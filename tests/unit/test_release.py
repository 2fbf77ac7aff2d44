"""What a release says of itself: one version everywhere, and a citation that programs can read."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml
from support import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
# A heading of a version in CHANGELOG.md, the newest first: "## [0.2.0] - 2026-11-29".
HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", re.MULTILINE)
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.fixture(scope="module")
def changes() -> str:
    return (REPO / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    return yaml.safe_load((REPO / "CITATION.cff").read_text())  # type: ignore[no-any-return]


def test_every_page_has_the_same_version(changes: str, citation: dict[str, Any]) -> None:
    version, date = HEADING.findall(changes)[0]
    assert version == citation["version"] == PROJECT["version"]
    assert date == str(citation["date-released"])


def test_the_changelog_has_its_form(changes: str) -> None:
    versions = [version for version, _ in HEADING.findall(changes)]
    assert versions == sorted(versions, key=lambda v: [int(n) for n in v.split(".")], reverse=True)
    assert len(re.findall(r"^## ", changes, re.MULTILINE)) == len(versions), "a heading of another form"
    assert set(re.findall(r"^### (.*)$", changes, re.MULTILINE)) <= KINDS


def test_the_citation_is_complete(citation: dict[str, Any]) -> None:
    """The keys that version 1.2.0 of the Citation File Format requires, and those of a software release."""
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "license", "version"} <= citation.keys()
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["keywords"] == PROJECT["keywords"]
