"""TODO."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.storage.credentials import shown_words

# Words of a command line that hold credentials travel to child processes in variables of these names.
PRIVATE_WORD = "AWTPN_PRIVATE_WORD_"


def hand_over(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command line for a child process, without credentials, which all users of a machine could read there.

    Returns:
        The words, with the name of a variable in the place of each that holds a credential; and the
        variables, for the child's environment, which its own user alone can read.
    """
    public, private = [], {}
    for i, (word, shown) in enumerate(zip(words, shown_words(words), strict=True)):
        if word != shown:
            private[f"{PRIVATE_WORD}{i}"] = word
        public.append(word if word == shown else f"{PRIVATE_WORD}{i}")
    return public, private


def hands_on_environment(launcher: Sequence[str]) -> bool:
    """Whether all ranks get this process's environment: `deepspeed` starts those of other hosts by ssh."""
    by_ssh = any(word.partition("=")[0] in ("-H", "--hostfile") for word in launcher)
    return not (by_ssh and any(Path(word).name.startswith("deepspeed") for word in launcher))


def restore_private_words(words: Sequence[str]) -> list[str]:
    """The command line that `hand_over` was given.

    Raises:
        SystemExit: a launcher has not handed on the environment.
    """
    if missing := [word for word in words if word.startswith(PRIVATE_WORD) and word not in os.environ]:
        sys.exit(
            f"error: the environment lacks {missing[0]}: the launcher does not hand it on, and with it the "
            "credentials of the command line; put them where the file system looks for them on every host "
            "(~/.aws/credentials, ~/.netrc, ...)"
        )
    return [os.environ[word] if word.startswith(PRIVATE_WORD) else word for word in words]
