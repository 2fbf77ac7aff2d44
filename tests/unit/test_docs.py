"""What people read is written: modules, public names, help on keys and options; and pages render well."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import REPO

import awtpn
import shards
from awtpn.cli.parser import make_parser
from awtpn.config import command_line, errors, schema

# [text](place#heading "title"), and not http://... or mailto:...
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FILES = sorted(path for package in ("awtpn", "shards", "launch") for path in (REPO / package).rglob("*.py"))
PAGES = sorted([*REPO.glob("*.md"), *(REPO / "launch").glob("*.md"), *(REPO / "tests").rglob("*.md")])
README_LINES = 250
WHERE_IT_IS = re.compile(r"`(\w+)[`/]")
# The names that begin an entry of such a list: "- `a`, `b/`: what they do"
LISTED = re.compile(r"^- ((?:`\w+/?`(?:, | and )?)+):", re.MULTILINE)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(REPO)) for path in FILES])
def test_every_module_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert text.split("\n")[0].rstrip().endswith((".", "?", ",", ":")), "a sentence is what pydoc shows first"


of_every_page = pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(REPO)) for path in PAGES])


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@of_every_page
def test_what_a_page_links_to_is_there(path: Path) -> None:
    for place, heading in LINK.findall(prose(path)):
        target = path.parent / place if place else path
        assert target.exists(), place
        assert not heading or heading in anchors(target), f"{place}#{heading}"


def test_links_are_found() -> None:
    text = '![a](b/c.png "d") [e](#f) [g](https://h.i) [j](k.md#l) [m](mailto:n) [o](p/)'
    assert LINK.findall(text) == [("b/c.png", ""), ("", "f"), ("k.md", "l"), ("p/", "")]


@of_every_page
def test_the_rows_of_a_table_have_its_columns(path: Path) -> None:
    """A bar in a cell, even in code, begins another column unless it is escaped."""
    for table in re.findall(r"(?:^\|.*\n)+", prose(path) + "\n", re.MULTILINE):
        header, line, *rows = table.splitlines()
        columns = [len(re.findall(r"(?<!\\)\|", row)) for row in (header, line, *rows)]
        assert re.fullmatch(r"\|(:?-+:?\|)+", line.replace(" ", "")), header
        assert set(columns) == {columns[0]}, header


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("name", ["awtpn", "shards"])
def test_the_code_map_of_the_readme_is_whole(name: str) -> None:
    """A line for each package, and for nothing else."""
    text = (REPO / "README.md").read_text()
    _, table = text.split(f"| `{name}/`", 1)
    rows = re.findall(r"^\| `(\w+)/` \|", table.split("\n\n", 1)[0], re.MULTILINE)
    assert sorted(rows) == sorted(path.parent.name for path in (REPO / name).glob("*/__init__.py"))


def public(package: Any) -> Iterator[tuple[str, object]]:
    """Names of `__all__`, and what of our own a user may call on them."""
    for name in package.__all__:
        thing = getattr(package, name)
        yield f"{package.__name__}.{name}", thing
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (
                    callable(value) or isinstance(value, property | classmethod)
                ):
                    yield f"{package.__name__}.{name}.{member}", getattr(thing, member)


@pytest.mark.parametrize("package", [awtpn, shards], ids=["awtpn", "shards"])
def test_every_public_name_says_what_it_is(package: Any) -> None:
    silent = [name for name, thing in public(package) if not own_text(thing)]
    assert silent == []


def own_text(thing: object) -> str:
    """Its own docstring: neither inherited nor the signature that a dataclass writes itself."""
    text = thing.__doc__ or ""
    return "" if text.startswith(f"{getattr(thing, '__name__', None)}(") else text


def packages() -> list[Path]:
    return sorted(path.parent for name in ("awtpn", "shards") for path in (REPO / name).rglob("__init__.py"))


@pytest.mark.parametrize("folder", packages(), ids=[str(p.relative_to(REPO)) for p in packages()])
def test_the_map_of_a_package_is_whole(folder: Path) -> None:
    """Every module and package has its place in the docstring, and the list there names nothing else."""
    there = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/*.py")}
    there -= {"__init__", "__main__", folder.name}
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert there - set(WHERE_IT_IS.findall(text)) == set(), f"say in {folder}/__init__.py where they are"
    listed = {name for names in LISTED.findall(text) for name in re.findall(r"`(\w+)/?`", names)}
    assert listed - there == set(), f"no such modules; see {folder}/__init__.py"


def test_every_key_of_the_configuration_has_a_line_of_help() -> None:
    parser = command_line.make_parser()
    helps = {action.dest: action.help for action in parser._actions}
    keys = errors.keys_of(schema.Config)
    assert len(keys) > 40
    assert [key for key in keys if not (helps.get(key) or "").strip()] == []


def parsers(parser: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, parser
    for action in parser._actions:
        for word, command in (
            (getattr(action, "choices", None) or {}).items() if action.nargs == "A..." else ()
        ):
            yield from parsers(command, f"{name} {word}")


def test_every_option_of_every_command_has_help() -> None:
    found = dict(parsers(make_parser(), "awtpn"))
    assert {"awtpn pack", "awtpn extract", "awtpn shards simulate", "awtpn predict"} <= found.keys()
    silent = [
        f"{name} {'/'.join(action.option_strings) or action.dest}"
        for name, parser in found.items()
        for action in parser._actions
        if not action.help and action.nargs != "A..."
    ]
    assert silent == []
    assert [name for name, parser in found.items() if not parser.description] == []
