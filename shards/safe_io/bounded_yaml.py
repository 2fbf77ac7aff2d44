"""Read YAML that others may have written, with a limit on the values that its aliases stand for.

A few lines of nested aliases can stand for more values than memory can hold. PyYAML reads them quickly, since
all aliases share one value, but code that walks through the result or writes it out never ends.
"""

from __future__ import annotations

from typing import Any

import yaml

# A configuration has about a hundred values.
MOST_VALUES = 100_000
TOO_MANY = f"its aliases stand for more than {MOST_VALUES:,} values; write fewer"


class TooManyValuesError(ValueError):
    """A document stands for more than `MOST_VALUES` values."""


def parse_yaml(text: str) -> Any:
    """Read a YAML document as `yaml.safe_load` does, if its aliases stand for few enough values.

    Raises:
        TooManyValuesError: they stand for too many.
        ValueError: an impossible date.
        yaml.YAMLError: the text is not YAML.
        RecursionError: it is nested too deeply, or contains itself.
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
    """Refuse a document that has too many values when its aliases are expanded.

    Raises:
        TooManyValuesError: it has too many.
        RecursionError: it is nested too deeply, or contains itself.
    """
    if _count(node, {}) > MOST_VALUES:
        raise TooManyValuesError(TOO_MANY)


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Number of keys and values in a node, with the node itself; `known` holds nodes counted before.

    Aliases share nodes, so each is counted once, and the time does not grow with the expanded size.
    """
    if node not in known:
        within = []
        if isinstance(node, yaml.MappingNode):
            within = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            within = node.value
        known[node] = 1 + sum(_count(each, known) for each in within)
    return known[node]
