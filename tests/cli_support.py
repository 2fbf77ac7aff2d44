"""The command `awtpn` in this process, and what it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from awtpn.cli import main


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


def refusal(*words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        awtpn(*words)
    return str(stopped.value.code)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
