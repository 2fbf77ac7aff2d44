"""Paths on command lines."""

from __future__ import annotations

import argparse
from pathlib import Path

from shards.storage.local_path import local_path


def path_argument(text: str) -> Path:
    """For argparse's `type=`: see `shards.storage.local_path`."""
    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
