"""The program that was started, as it was typed: to name it in help, to record it, and to start it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

AWTPN = ("awtpn",)
MODULE = ("python", "-m", "awtpn.cli")


@dataclass(frozen=True)
class Program:
    """What stands before the options of a command.

    Attributes:
        typed: ("awtpn", "train"), ("python", "-m", "awtpn.cli", "train") or ("python", "launch/train.py").
        command: "train".
    """

    typed: tuple[str, ...]
    command: str

    @property
    def is_script(self) -> bool:
        return self.typed[-1] != self.command

    @property
    def name(self) -> str:
        """As help and errors call it: "awtpn train" or "train.py"."""
        return Path(self.typed[-1]).name if self.is_script else f"awtpn {self.command}"

    @property
    def for_python(self) -> tuple[str, ...]:
        """Arguments of Python that start the same program: a script, or a module and the command.

        `awtpn` itself is no module that a launcher could start, and `python -m awtpn.cli` does the same.
        """
        return self.typed[1:] if self.typed[0] == "python" else (*MODULE[1:], self.command)


def started_as(typed: tuple[str, ...], command: str) -> Program:
    """The program of a command.

    Args:
        typed: `AWTPN`, `MODULE`, or ("python", SCRIPT).
        command: the command, which a script stands for.
    """
    return Program((*typed, command) if typed in (AWTPN, MODULE) else typed, command)


TRAIN = started_as(AWTPN, "train")
