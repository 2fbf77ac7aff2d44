"""Command-line options of sources and encoders, made from the signatures of their functions and classes."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from awtpn.config.option_types import comma_separated, finite_number
from shards.registry import Entry, Parameter

# Per option its owners, the sources or encoders that take it, and their parameter.
Options = Mapping[str, Mapping[str, Parameter]]
WIDTH = 108  # of lines, as in the help texts that are written by hand


def pairs(text: str) -> dict[str, str]:
    """An option's value that maps names to names."""
    found = [pair.partition("=") for pair in text.split(",")]
    if not all(sign for _, sign, _ in found):
        raise argparse.ArgumentTypeError(f"{text!r}: write A=NAME,B=OTHER")
    return {label: name for label, _, name in found}


class Names(argparse.Action):
    """Keep the names of an option that takes several, with white space or commas between them."""

    def __call__(
        self, _: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *__: object
    ) -> None:
        setattr(namespace, self.dest, [name for word in values for name in word.split(",")])


# Arguments of `add_argument` by a parameter's type. A parameter of another type is for Python alone.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "str": {},
    "str | Path": {"metavar": "FILE"},
    "Path": {"metavar": "FILE"},
    "int": {"type": int, "metavar": "N"},
    "float": {"type": finite_number, "metavar": "N"},
    "bool": {"action": "store_const", "const": True},
    "list[str]": {"type": comma_separated, "metavar": "A,B,..."},
    "Sequence[str]": {"action": Names, "nargs": "+", "metavar": "NAME"},
    "dict[str, str]": {"type": pairs, "metavar": "A=NAME,..."},
}


def has_option(parameter: Parameter) -> bool:
    """Whether the command line can express the parameter's type."""
    return bool(parameter.choices) or parameter.type in ARGUMENTS


def options_of(entries: Mapping[str, Entry], option: Callable[[str], str] = str) -> Options:
    """The options of sources or encoders.

    Args:
        entries: by the name of the owner.
        option: the option's name of a parameter's; default the same.
    """
    found: dict[str, dict[str, Parameter]] = {}
    for owner, entry in entries.items():
        for name, parameter in entry.options.items():
            if has_option(parameter):
                found.setdefault(option(name), {})[owner] = parameter
    return found


def add_options(parser: Any, options: Options, owners: Iterable[str]) -> None:
    """Add options to a parser or a group. Their default is None, which leaves the default to the signature.

    Args:
        parser: a parser, or a group of one.
        options: what to add.
        owners: all sources or encoders; help names those that take an option unless all of them do.
    """
    for name, takers in options.items():
        kinds = [_argument(parameter) for parameter in takers.values()]
        # If owners differ in the type, the option is text, which `arguments` converts for the one in use.
        argument = kinds[0] if all(kind == kinds[0] for kind in kinds) else {}
        if not argument:
            argument = {"metavar": name.rpartition("_")[2].upper()}
            if any("action" in kind for kind in kinds):  # a flag of one of them
                argument |= {"nargs": "?", "const": True}
        parser.add_argument(f"--{name}", help=_help(takers, set(owners)), **argument)


def flags_last(words: Sequence[str], options: Options, owner_option: str) -> list[str]:
    """The words with those options last that are a flag of one owner and take a value of others.

    So a flag takes no word that follows it as its value. If the words begin with two that are no options, all
    that the commands need is there, and the order stays: a value of a flag is then refused by name.

    Args:
        words: of the command line.
        options: of all owners.
        owner_option: the option that names the owner.
    """
    found = list(words)
    if not any(word.startswith("-") for word in found[:2]):
        return found
    named = [part for word in found for part in word.split("=", 1)]  # --format=mmsa is --format mmsa
    owner = named[named.index(owner_option) + 1] if owner_option in named[:-1] else ""
    kinds = {
        f"--{name}": {own: each.type == "bool" for own, each in of.items()} for name, of in options.items()
    }
    flags = {name for name, of in kinds.items() if of.get(owner) and not all(of.values())}
    return [word for word in found if word not in flags] + [word for word in found if word in flags]


def given_options(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The options that were given, of these names."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def arguments(owner: str, options: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a source's function by the options that were given.

    Args:
        owner: the source.
        options: of all sources.
        given: options and their values.

    Raises:
        ValueError: the source does not take such an option, or such a value.
    """
    has = {name: takers[owner] for name, takers in options.items() if owner in takers}
    found = {}
    for name, value in given.items():
        if name not in has:
            raise ValueError(
                f"--{name} is an option of --format {' and '.join(options[name])}, but this is read as "
                f"{owner}, which takes {', '.join(f'--{own}' for own in has) or 'no options'}"
            )
        found[name] = _converted(name, has[name], value)
    return found


def two_columns(rows: Mapping[str, str]) -> str:
    """Names and their texts, below each other and wrapped."""
    indent = 3 + max(map(len, rows))
    return "\n".join(
        textwrap.fill(
            text.replace("`", ""),
            WIDTH,
            initial_indent=f"  {name}".ljust(indent + 1),
            subsequent_indent=" " * (indent + 1),
            break_on_hyphens=False,
        )
        for name, text in rows.items()
    )


def _argument(parameter: Parameter) -> dict[str, Any]:
    if parameter.choices:
        return {"choices": list(parameter.choices), "type": type(parameter.choices[0])}
    return ARGUMENTS[parameter.type]


def _converted(name: str, parameter: Parameter, value: Any) -> Any:
    """A value of the parameter's type; text where owners differ in the type."""
    if parameter.choices:
        for choice in parameter.choices:
            if value in (choice, str(choice)):
                return choice
        raise ValueError(f"--{name} {value}: must be {' or '.join(map(str, parameter.choices))}")
    is_flag = parameter.type == "bool"
    if is_flag != isinstance(value, bool):
        # A flag of one owner is an option with a value of another.
        raise ValueError(
            f"--{name} takes no value here; it was given {value!r}"
            if is_flag
            else f"--{name} needs a value here: {ARGUMENTS[parameter.type].get('metavar', 'TEXT')}"
        )
    convert = ARGUMENTS[parameter.type].get("type")
    if convert is None or not isinstance(value, str):
        return value
    try:
        return convert(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"--{name} {value}: {error}") from None


def _as_words(default: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(default, tuple):
        return " ".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def _help(takers: Mapping[str, Parameter], owners: set[str]) -> str:
    """The help of an option: per text the owners that it holds for, and the default."""
    texts: dict[str, list[str]] = {}
    for owner, parameter in takers.items():
        text = parameter.help.replace("`", "").replace("%", "%%")
        if parameter.default not in (None, False):
            text += f" (default: {_as_words(parameter.default)})"
        texts.setdefault(text, []).append(owner)
    if len(texts) == 1 and takers.keys() == owners:
        return next(iter(texts))
    return ". ".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
