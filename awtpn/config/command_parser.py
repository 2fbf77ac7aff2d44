"""argparse's parser with errors in one line: what is wrong and what was probably meant; and a short usage."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from awtpn.config.rank_errors import exit_with_line
from awtpn.config.suggestions import one_of, similar
from shards.safe_io.printable import printable
from shards.storage.credentials import redact

# How argparse reports what is wrong with the words of a command line.
MISSING = re.compile(r"the following arguments are required: (.*)")
UNKNOWN = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
NO_NUMBER = re.compile(r"argument (\S+): invalid (int|float) value: '(.*)'")
NO_VALUE = re.compile(r"argument (\S+): expected one argument")
NUMBERS = {"int": "a whole number", "float": "a number"}
KEYS = "[--SECTION.KEY VALUE ...]"
CONFIG_AND_KEYS = f"[--config FILE] {KEYS}"


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors end the program with status 2, as argparse's do, in words that say what to type.

    Unlike argparse's, the parser of a subcommand refuses unknown words itself, so that errors are about the
    subcommand and show its usage.
    """

    passes_on = ""
    """Leave unknown words in `options.passed_on`; they are what this says in the usage."""
    arranged: Callable[[Sequence[str]], Sequence[str]] | None = None
    """Gives the words in the order in which they are parsed; None leaves it as it is."""
    needed: Sequence[str] = ()
    """Words that must be given, though another option may take their place."""
    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse `args`; unknown words are refused, or passed on."""
        self._words = sys.argv[1:] if args is None else list(args)
        if self.passes_on and not self.usage:
            own = self.format_usage().removeprefix("usage: ").rstrip()
            self.usage = f"{own}\n{' ' * len(f'usage: {self.prog} ')}{self.passes_on}"
        words = self.arranged(self._words) if self.arranged else self._words
        options, unknown = super().parse_known_args(words, namespace)
        if self.passes_on:
            options.passed_on, unknown = unknown, []
        if unknown:
            self.error(f"unrecognized arguments: {unknown[0]}")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 after one line on stderr, and for a single command one with its usage."""
        usage = "" if self._subparsers is not None else f"\nusage: {self.short_usage()}"
        exit_with_line(f"error: {printable(redact(self.explain(message)))}{usage}", 2)

    def explain(self, message: str) -> str:
        """argparse's message in our words."""
        if found := MISSING.match(message):
            if unknown := self.unknown_option():  # a mistyped option may be the one that is missing
                return self.explain(f"unrecognized arguments: {unknown}")
            names = found[1].split(", ")
            return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing"
        if found := UNKNOWN.match(message):
            word = found[1].partition("=")[0]
            if not word.startswith("-"):
                return f"{word} is one word too many"
            options = {option.lstrip("-"): option for option in self.options}
            alike = [options[name] for name in similar(word.lstrip("-"), options)]
            return f"there is no {word}{meant(alike)}"
        if found := NO_NUMBER.match(message):
            return f"{found[1]} takes {NUMBERS[found[2]]}, not {found[3]}"
        if found := NO_VALUE.match(message):
            return f"{found[1]} needs a value"
        return message.removeprefix("argument ")

    @property
    def options(self) -> list[str]:
        """The names of all options, such as "--format"."""
        return [name for action in self._actions for name in action.option_strings if shown(action)]

    def unknown_option(self) -> str | None:
        """The first word that is neither an option nor the beginning of one."""
        names = (word.partition("=")[0] for word in self._words)
        long = (name for name in names if name.startswith("--") and len(name) > 2 and " " not in name)
        return next((n for n in long if not any(option.startswith(n) for option in self.options)), None)

    def short_usage(self) -> str:
        """Only what must be given: `awtpn pack --help` lists the options of `awtpn pack`."""
        needed = [action for action in self._actions if action.required or not action.option_strings]
        options = [f"{a.option_strings[-1]} {name_of(a)}" for a in needed if a.option_strings]
        places = [a for a in needed if not a.option_strings]
        optional = {a.dest for a in places if a.nargs == "?"} - {*self.needed}
        names = [f"[{name_of(a)}]" if a.dest in optional else name_of(a) for a in places]
        words = [self.prog, *options, *names, "[--OPTION VALUE ...]", self.passes_on]
        return f"{' '.join(words).rstrip()} ({self.prog} --help lists the options)"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is none of the choices."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        alike = similar(str(value), choices)
        if isinstance(action, argparse._SubParsersAction):
            there = "" if alike else f"; there are {', '.join(choices)}"
            text = f"{self.prog} has no {name_of(action).lower()} {value}{meant(alike)}{there}"
            raise argparse.ArgumentError(None, f"{text} ({self.prog} --help lists all)")
        name = action.option_strings[-1] if action.option_strings else name_of(action)
        raise argparse.ArgumentError(None, f"{name} takes {one_of(choices)}, not {value}{meant(alike)}")


def meant(alike: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(alike)}?" if alike else ""


def name_of(action: argparse.Action) -> str:
    """The value of an option, or a word without an option, as help names it."""
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def shown(action: argparse.Action) -> bool:
    return action.help is not argparse.SUPPRESS
