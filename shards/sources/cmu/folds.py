"""Folds of the CMU Multimodal SDK: the split of each video."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from shards.format.split_names import meaning
from shards.safe_io.bounded_json import parse_json

FOLDS = ("train", "val", "test")


def read_folds(path: Path) -> dict[str, str]:
    """The split of each video.

    Args:
        path: JSON, {"train": [VIDEO, ...], "val" (or "valid", "dev"): [...], "test": [...]}; or the SDK's
            Python file, whose lists (`standard_train_fold = [...]`) are read without running it.

    Raises:
        ValueError: no such file, not of that form, or a video in two folds.
    """
    try:
        text = path.read_text(encoding="utf-8")
        named = _literals(text) if path.suffix == ".py" else parse_json(text, path)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: deep nesting
        raise ValueError(f"{path}: neither JSON nor plain lists in Python ({error})") from None
    split_of: dict[str, str] = {}
    for name, videos in named.items() if isinstance(named, dict) else ():
        splits = {meaning(word) for word in re.split("[^a-z]+", name.lower())} & {*FOLDS}
        if len(splits) != 1 or not isinstance(videos, list):
            raise ValueError(f"{path}: {name!r} must be a list of videos, named after train, val or test")
        split = splits.pop()
        for video in map(str, videos):
            if split_of.setdefault(video, split) != split:
                raise ValueError(f"{path}: video {video!r} is in {split_of[video]!r} and in {split!r}")
    if not split_of:
        raise ValueError(f'{path}: no folds; expected {{"train": [...], "val": [...], "test": [...]}}')
    return split_of


def _literals(text: str) -> dict[str, Any]:
    """Names and values of the lists that a Python file assigns."""
    return {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
