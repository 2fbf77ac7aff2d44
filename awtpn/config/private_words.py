"""Credentials of a command line on their way to child processes: by the environment, not by their words.

All users of a machine can read the command lines of its processes, but not their environments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.storage.credentials import shown_words

# Words that hold credentials are passed on in environment variables whose names start so.
PRIVATE_WORD = "AWTPN_PRIVATE_WORD_"


def hand_over(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command line without credentials, for a child process, and environment variables that hold them.

    Returns:
        The words, each that holds a credential replaced by the name of a variable; and the variables.
    """
    public, private = [], {}
    for i, (word, shown) in enumerate(zip(words, shown_words(words), strict=True)):
        if word != shown:
            private[f"{PRIVATE_WORD}{i}"] = word
        public.append(word if word == shown else f"{PRIVATE_WORD}{i}")
    return public, private


def hands_on_environment(launcher: Sequence[str]) -> bool:
    """Whether all ranks inherit this environment; `deepspeed` starts those of other hosts by ssh."""
    by_ssh = any(word.partition("=")[0] in ("-H", "--hostfile") for word in launcher)
    return not (by_ssh and any(Path(word).name.startswith("deepspeed") for word in launcher))


def restore_private_words(words: Sequence[str]) -> list[str]:
    """The command line as `hand_over` got it.

    Raises:
        SystemExit: the launcher did not pass the environment on.
    """
    if missing := [word for word in words if word.startswith(PRIVATE_WORD) and word not in os.environ]:
        sys.exit(
            f"error: the environment lacks {missing[0]}: the launcher did not pass it on, and it holds "
            "credentials of the command line; put them where the file system looks for them on every host "
            "(~/.aws/credentials, ~/.netrc, ...)"
        )
    return [os.environ[word] if word.startswith(PRIVATE_WORD) else word for word in words]
