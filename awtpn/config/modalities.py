"""`model.modalities` in its forms: a name, a list of names, a map; in a file and in words of a command line.

A list selects among the modalities that are configured before it and keeps their settings, which jsonargparse
cannot do. So all words are joined to one map before it reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from awtpn.model.settings import SETTINGS, ModelConfig, checked_settings, modalities_as_map, select_modalities
from shards.safe_io.bounded_yaml import parse_yaml

OPTION = "--model.modalities"


def join_modalities(arguments: Sequence[str], read_file: Callable[[str], Any]) -> list[str]:
    """The words of a command line, with those on modalities replaced by one that has the whole map.

    Args:
        arguments: the words.
        read_file: of the file after `--config`: its `model.modalities`, None where it has none.

    Raises:
        ValueError: a value is no modality or setting; names the key.
    """
    others: list[str] = []
    config_files: list[str] = []
    changes: list[tuple[str, str]] = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option == OPTION or option.startswith(f"{OPTION}."):
            given = value if equals else next(words, "")
            if not given or (not equals and given.startswith("--")):
                raise ValueError(f"{option.removeprefix('--')} lacks its value: write {option} VALUE")
            changes.append((option, given))
            continue
        others.append(word)
        if option == "--config":
            file = value if equals else next(words, None)
            others += [] if equals or file is None else [file]
            config_files += [file] if file else []
    if not changes:
        return others
    configured: dict[str, Any] = {name: {} for name in ModelConfig().modalities}
    for file in config_files:
        if (of_file := read_file(file)) is not None:
            of_file = {name: checked_settings(name, settings) for name, settings in of_file.items()}
            configured = select_modalities(configured, of_file)
    for option, value in changes:  # words rule over the file, wherever they are
        configured = _with_word(configured, option, value)
    return [*others, f"{OPTION}={json.dumps(full_map(configured))}"]


def full_map(modalities: Mapping[str, Any]) -> dict[str, Any]:
    """The map with every setting of every modality, null where it is not given, as jsonargparse wants it.

    Raises:
        ValueError: a setting does not exist or is no number; names the key.
    """
    return {
        name: dict.fromkeys(SETTINGS) | checked_settings(name, settings)
        for name, settings in modalities.items()
    }


def _with_word(configured: dict[str, Any], option: str, text: str) -> dict[str, Any]:
    """`configured`, changed by --model.modalities VALUE, or the same with .NAME or .NAME.SETTING."""
    key = option.removeprefix("--")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ValueError(f"{key} cannot be {text:.60}") from None
    name, _, setting = option[len(OPTION) + 1 :].partition(".")
    if not name:
        return select_modalities(configured, value)
    if not setting:
        return configured | {name: checked_settings(name, {} if value is None else value)}
    return configured | {name: configured.get(name, {}) | checked_settings(name, {setting: value})}


def use_map(root: yaml.MappingNode) -> None:
    """Write `model.modalities` of a YAML document, in any form, as a map from names to settings.

    Raises:
        ValueError: it is no modality or setting; names the key.
    """
    for model in (value for name, value in root.value if name.value == "model"):
        if isinstance(model, yaml.MappingNode):
            model.value = [
                (name, _map_of(value) if name.value == "modalities" else value) for name, value in model.value
            ]


def _map_of(node: yaml.Node) -> yaml.Node:
    value = modalities_as_map(yaml.SafeLoader("").construct_document(node))
    found = yaml.compose(json.dumps(full_map(value)), yaml.SafeLoader)
    assert found is not None
    return found
