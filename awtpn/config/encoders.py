"""`encoder` in words of a command line: --encoder.audio.tune lora changes one setting of one encoder.

The section maps modalities, which jsonargparse does not know, to settings. So all words are joined to one map
before it reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from awtpn.model.encoders.settings import encoder_settings
from shards.safe_io.bounded_yaml import parse_yaml

OPTION = "--encoder"


def join_encoders(arguments: Sequence[str], read_file: Callable[[str], Any]) -> list[str]:
    """The words of a command line, with those on encoders replaced by one that has the whole map.

    Args:
        arguments: the words.
        read_file: of the file after `--config`: its `encoder`, None where it has none.

    Raises:
        ValueError: a value is no encoder or setting; names the key.
    """
    others: list[str] = []
    encoders: dict[str, Any] = {}
    changes: list[tuple[str, Any]] = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option == OPTION or option.startswith(f"{OPTION}."):
            given = value if equals else next(words, "")
            if not given or (not equals and given.startswith("--")):
                raise ValueError(f"{option.removeprefix('--')} lacks its value: write {option} VALUE")
            changes.append((option, _value(option, given)))
            continue
        others.append(word)
        if option == "--config":
            file = value if equals else next(words, None)
            others += [] if equals or file is None else [file]
            encoders = (read_file(file) or encoders) if file else encoders
    if not changes:
        return others
    for option, value in changes:  # words rule over the file, wherever they are
        name, _, setting = option[len(OPTION) + 1 :].partition(".")
        if not name:
            encoders = value or {}
        elif not setting and value is None:
            encoders = {other: of for other, of in encoders.items() if other != name}
        else:
            before = encoders.get(name) or {}
            encoders = encoders | {name: before | {setting: value} if setting else value}
    encoder_settings(encoders)
    return [*others, f"{OPTION}={json.dumps(encoders)}"]


def _value(option: str, text: str) -> Any:
    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ValueError(f"{option.removeprefix('--')} cannot be {text:.60}") from None
