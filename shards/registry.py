"""Functions and classes that a folder's modules offer, with their options and help, read without an import.

Sources (`shards.sources`) and encoders (`shards.extraction.encoders`) are found in this way: a new module in
the folder is found, and no list has to name it. Its text is parsed instead of imported, because some modules
import torch or h5py, and `awtpn pack --help` lists them all.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

# First parameters: what to read or to load. They are not options.
SUBJECTS = ("source", "model")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function.

    Attributes:
        type: its annotation without "| None", such as "int" or "list[str]"; "Literal" where it has choices.
        choices: the values of a Literal annotation.
        default: its default where that is a literal, else None.
        help: its text in the docstring's section Args, on one line.
    """

    type: str
    choices: tuple[Any, ...]
    default: Any
    help: str


@dataclass(frozen=True)
class Entry:
    """A function or a class of a module that need not be imported yet.

    Attributes:
        module: dotted name of the module.
        name: of the function or class in it.
        summary: first paragraph of the module's docstring, on one line.
        parameters: of the function, or of the class' `__init__`, by name and in order; without `self`.
        returns: the function's return annotation; "" of a class.
        attributes: the class' attributes whose values are literals.
        functions: names of all functions at the module's top level.
    """

    module: str
    name: str
    summary: str
    parameters: dict[str, Parameter]
    returns: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()

    @property
    def options(self) -> dict[str, Parameter]:
        """The parameters that say how to read or to encode."""
        return {name: parameter for name, parameter in self.parameters.items() if name not in SUBJECTS}

    def load(self) -> Any:
        """The function or class itself; imports its module."""
        return getattr(import_module(self.module), self.name)


@cache
def find_functions(package: str, path: tuple[str, ...], name: str) -> list[Entry]:
    """The functions called `name` at the top level of a package's modules.

    Args:
        package: its dotted name.
        path: its `__path__`.
        name: of the functions.
    """
    found = []
    for module, tree in _parsed(package, path, f"def {name}("):
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if name in functions:
            node = functions[name]
            found.append(
                Entry(
                    module=module,
                    name=name,
                    summary=_summary(tree),
                    parameters=_parameters(node, ast.get_docstring(node) or ""),
                    returns=ast.unparse(node.returns) if node.returns else "",
                    functions=frozenset(functions),
                )
            )
    return found


@cache
def find_classes(package: str, path: tuple[str, ...], attribute: str) -> list[Entry]:
    """The classes with this attribute in a package's modules; arguments as of `find_functions`.

    The help of their options is in the section Args of the class' docstring.
    """
    found = []
    for module, tree in _parsed(package, path, attribute):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and attribute in (attributes := _literals(node)):
                methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
                init = methods.get("__init__")
                parameters = _parameters(init, ast.get_docstring(node) or "") if init else {}
                found.append(Entry(module, node.name, _summary(tree), parameters, attributes=attributes))
    return found


def _parsed(package: str, path: tuple[str, ...], text: str) -> Iterator[tuple[str, ast.Module]]:
    """Names and syntax trees of the modules which contain `text`, in alphabetical order."""
    for info in pkgutil.iter_modules(path):
        spec = info.module_finder.find_spec(info.name, None)
        code = spec.loader.get_source(info.name) if spec and spec.loader else None  # type: ignore[attr-defined]
        if code and text in code:
            yield f"{package}.{info.name}", ast.parse(code, spec.origin or info.name)  # type: ignore[union-attr]


def _summary(tree: ast.Module) -> str:
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """The class attributes whose values are literals."""
    found = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(target, ast.Name) and (value := _literal(statement.value)) is not None:
                found[target.id] = value
    return found


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _parameters(function: ast.FunctionDef, docstring: str) -> dict[str, Parameter]:
    """The parameters of a function, with their texts in a docstring of Google's style."""
    from docstring_parser import google  # imported where help is asked for

    help_of = {
        name.strip(): " ".join((entry.description or "").split()).rstrip(".")
        for entry in google.parse(docstring).params
        for name in entry.arg_name.split(",")
    }
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults, *given.kw_defaults]
    found = {}
    for arg, default in zip([*positional, *given.kwonlyargs], defaults, strict=True):
        if arg.arg != "self":
            type_, choices = _annotation(arg.annotation)
            found[arg.arg] = Parameter(type_, choices, _literal(default), help_of.get(arg.arg, ""))
    return found


def _annotation(node: ast.expr | None) -> tuple[str, tuple[Any, ...]]:
    """Type and choices of an annotation."""
    if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant) and node.right.value is None:
        return _annotation(node.left)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        values = ast.literal_eval(node.slice)
        return "Literal", values if isinstance(values, tuple) else (values,)
    return ast.unparse(node) if node else "", ()
