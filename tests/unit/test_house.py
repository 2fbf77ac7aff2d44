"""The house: imports run one way from level to level, no circle, and no folder shows more than one page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import REPO

# From the top. A package imports only from levels below its own, and none of its own level.
LEVELS = {
    "awtpn": [
        ["cli"],
        ["bench"],
        ["experiments", "training"],
        ["inference", "report", "tracking"],
        ["run"],
        ["distributed"],
        ["config"],
        ["learning"],
        ["model"],
        ["metrics"],
    ],
    "shards": [
        ["tools"],
        ["extraction"],
        ["sources"],
        ["packing"],
        ["streaming"],
        ["planning"],
        ["storage"],
        ["format", "progress"],
        ["cores", "registry", "safe_io"],
    ],
}
MOST_ENTRIES = 16


def modules() -> dict[str, Path]:
    """Every module of both packages, by its dotted name."""
    found = {}
    for name in LEVELS:
        for path in (REPO / name).rglob("*.py"):
            parts = path.relative_to(REPO).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Modules of ours that a module imports anywhere, and the line."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module, node.lineno


def level(module: str) -> int | None:
    """Depth of a module's package; None for what the two packages offer at their top."""
    root, _, rest = module.partition(".")
    package = rest.split(".")[0]
    if not package:
        return None
    found = [depth for depth, names in enumerate(LEVELS[root]) if package in names]
    assert found, f"{module}: give {root}.{package} its level in LEVELS"
    return found[0]


def package(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", sorted(m for m in MODULES if "." in m))
def test_imports_run_downwards(module: str) -> None:
    own = level(module)
    for imported, line in imports(module):
        place = f"{MODULES[module].relative_to(REPO)}:{line} imports {imported}"
        if imported.partition(".")[0] != module.partition(".")[0]:
            assert module.startswith("awtpn."), f"{place}: shards never imports awtpn"
            continue
        below = level(imported)
        if below is None:
            assert module.startswith("awtpn.cli"), f"{place}: import it from where it is"
        elif package(imported) != package(module):
            assert own is not None
            assert below > own, f"{place}, which is not below it"


def test_no_circle() -> None:
    graph = {module: {name for name, _ in imports(module)} - {module} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize(
    "folder", sorted({path.parent.relative_to(REPO) for path in MODULES.values()}), ids=str
)
def test_a_folder_is_read_at_a_glance(folder: Path) -> None:
    entries = [
        path.name for path in (REPO / folder).iterdir() if path.name not in ("__init__.py", "__pycache__")
    ]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
