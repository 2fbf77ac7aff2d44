"""YAML that others may have written: a few lines of aliases can stand for more values than memory holds.

PyYAML itself reads them in no time, as one value is shared by all its aliases. Whoever walks through what was
read, or writes it out, does not come to an end.
"""

from __future__ import annotations

from typing import Any

import yaml

# A configuration has about a hundred.
MOST_VALUES = 100_000
TOO_MANY = f"its aliases stand for more than {MOST_VALUES:,} values; write fewer"


class TooManyValuesError(ValueError):
    """A document stands for more than `MOST_VALUES` values."""


def parse_yaml(text: str) -> Any:
    """Read a YAML document as `yaml.safe_load` does, if its aliases stand for few enough values.

    Raises:
        TooManyValuesError: they do not.
        ValueError: a date that is none.
        yaml.YAMLError: no YAML.
        RecursionError: nested too deeply, or within itself.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        check_values(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def check_values(node: yaml.Node) -> None:
    """Refuse a document that stands for too many values once its aliases are written out.

    Raises:
        TooManyValuesError: it does.
        RecursionError: it is nested too deeply, or within itself.
    """
    if _count(node, {}) > MOST_VALUES:
        raise TooManyValuesError(TOO_MANY)


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Keys and values in a node, with itself; `known` has the nodes counted before, as aliases share them."""
    if node not in known:
        within = []
        if isinstance(node, yaml.MappingNode):
            within = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            within = node.value
        known[node] = 1 + sum(_count(each, known) for each in within)
    return known[node]
