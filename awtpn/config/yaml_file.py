"""The YAML file of `--config`: it is checked before jsonargparse reads it, so errors name file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import yaml
from jsonargparse import ActionConfigFile

from awtpn.config.errors import OneLineParser
from awtpn.config.modalities import use_map
from awtpn.config.project_files import find_file
from awtpn.config.schema import KEYS_SINCE
from awtpn.config.suggestions import nearest
from shards.safe_io.bounded_yaml import TooManyValuesError, check_values, parse_yaml
from shards.storage.credentials import remember_secrets

# A file with a key of each of these is what a run recorded, since nobody writes all of them by hand.
RECORDED = (
    "run.seed",
    "data.train",
    "model.awm",
    "prototypes.on_drift",
    "loss.negative_group",
    "optim.warmup_steps",
    "train.keep_last",
)
TOO_DEEP = "is nested too deeply, or contains itself; a configuration has sections with keys in them"


class CheckedFile(ActionConfigFile):
    """`--config`: jsonargparse reads the file after `read_settings` has checked it."""

    def __call__(self, parser: Any, namespace: Any, file: Any, option: str | None = None) -> None:
        """Put the keys of `file` into `namespace`; exit with a one-line error if it has mistakes."""
        assert isinstance(parser, OneLineParser)
        try:
            text, lines = read_settings(file, parser.keys)
        except ValueError as error:
            parser.error(str(error))
        remember_secrets_of(text)  # before --print_config shows them
        parser.places = {key: f"{file}, line {line}" for key, line in lines.items()}
        super().__call__(parser, namespace, text, option)
        parser.places = {}  # later errors are not the file's


def read_settings(file: str, keys: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    """The text of a configuration file, without its empty sections, which mean the defaults.

    Args:
        file: its path, or the name of a packaged one.
        keys: the dotted keys that there are.

    Returns:
        YAML of one mapping, and by dotted key the line in the file.

    Raises:
        ValueError: there is no such file, it is not YAML, its aliases stand for too many values, or a key
            does not exist or is there twice; names the line.
    """
    path = find_file(file, "--config")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{file}, line {line}: no YAML: {in_words(error)}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{file}: no YAML but binary data; --config takes a text file") from None
    except RecursionError:
        raise ValueError(f"{file}: {TOO_DEEP}") from None
    if root is None:  # nothing but comments: all defaults
        return "{}", {}
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{file}, line {line_of(root)}: write SECTION: and below it, indented, KEY: VALUE")
    try:
        check_values(root)
        lines: dict[str, int] = {}
        for key, place in keys_within(root, file, ""):
            if key in lines:
                raise ValueError(f"{file}, line {place}: {key} is there twice, already in line {lines[key]}")
            lines[key] = place
        without_empty(root, file, keys, "")
        if all(key in lines for key in RECORDED):
            add_former_values(root)
        try:
            use_map(root)
        except ValueError as error:
            raise ValueError(f"{file}, line {lines['model.modalities']}: {error}") from None
        return yaml.serialize(root), lines
    except TooManyValuesError as error:
        raise ValueError(f"{file}: {error}") from None
    except RecursionError:
        raise ValueError(f"{file}: {TOO_DEEP}") from None


def modalities_of(file: str, keys: Mapping[str, Any]) -> Any:
    """`model.modalities` of a configuration file; None where it has none, or has mistakes."""
    model = section_of(file, keys, "model")
    return None if model is None else model.get("modalities")


def encoders_of(file: str, keys: Mapping[str, Any]) -> Any:
    """`encoder` of a configuration file; None where it has none, or has mistakes."""
    return section_of(file, keys, "encoder")


def section_of(file: str, keys: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """A section of a configuration file; None where it has none, or has mistakes."""
    try:
        section = (parse_yaml(read_settings(file, keys)[0]) or {}).get(name)
    except (ValueError, yaml.YAMLError):  # `CheckedFile` reports it
        return None
    return section if isinstance(section, dict) else None


def remember_secrets_of(text: str) -> None:
    """Register the credentials in a file's `data` section, so that `storage.credentials` hides them."""
    try:
        data = (yaml.safe_load(text) or {}).get("data")
    except yaml.YAMLError:  # jsonargparse reports it
        return
    if not isinstance(data, dict):
        return
    options = data.get("storage_options")
    for url in ("train", "val", "test"):
        remember_secrets(str(data.get(url) or ""), options if isinstance(options, dict) else {})


def keys_within(node: yaml.MappingNode, file: str, prefix: str) -> Iterator[tuple[str, int]]:
    """Dotted key and line of every key in a mapping, at any depth."""
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise ValueError(f"{file}, line {line_of(name)}: a key must be a word")
        key = prefix + name.value
        yield key, line_of(name)
        if isinstance(value, yaml.MappingNode):
            yield from keys_within(value, file, f"{key}.")


def without_empty(node: yaml.MappingNode, file: str, keys: Mapping[str, Any], prefix: str) -> None:
    """Remove empty sections.

    Raises:
        ValueError: a key does not exist, or a value is in place of a section; names the line.
    """
    kept = []
    for name, value in node.value:
        key = prefix + name.value
        if key not in keys:
            if not any(known.startswith(f"{key}.") for known in keys):
                sections = {known.rpartition(".")[0]: None for known in keys if "." in known}
                alike = nearest(key, sections if isinstance(value, yaml.MappingNode) else keys)
                raise ValueError(f"{file}, line {line_of(name)}: there is no {key}{alike}")
            if isinstance(value, yaml.ScalarNode) and value.tag == "tag:yaml.org,2002:null":
                continue
            if not isinstance(value, yaml.MappingNode):
                raise ValueError(
                    f"{file}, line {line_of(name)}: {key} is a section: write its keys below it, indented"
                )
            without_empty(value, file, keys, f"{key}.")
        kept.append((name, value))
    node.value = kept


def add_former_values(root: yaml.MappingNode) -> None:
    """Give the record of an earlier version's run the keys that it lacks, as that version behaved."""
    for section, node in root.value:
        present = {name.value for name, _ in node.value} if isinstance(node, yaml.MappingNode) else set()
        missing = {k: v for k, v in KEYS_SINCE.get(section.value, {}).items() if k not in present}
        if missing and present:
            node.value += cast(yaml.MappingNode, yaml.compose(yaml.safe_dump(missing))).value


def line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def in_words(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's problem in plain words."""
    problem = str(error.problem or error.context)
    return "indent with spaces, not with tabs" if "'\\t'" in problem else problem
