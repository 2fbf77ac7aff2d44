"""README.md of a Hugging Face model: the license that it names; and the one of a merged encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from shards.extraction.encoders.hf import README
from shards.safe_io.bounded_yaml import parse_yaml
from shards.safe_io.markdown import code, inline
from shards.safe_io.printable import printable

LARGEST = 64 << 10  # characters that are read
LONGEST = 100  # characters of a license's name


def read_licence(folder: Path) -> str | None:
    """The license in the front matter of a model's README; None where it names none.

    Of a license that the hub does not list ("other"), it is `license_name`.
    """
    try:
        with (folder / README).open(encoding="utf-8") as file:
            text = file.read(LARGEST)
    except (OSError, UnicodeDecodeError):
        return None
    begin, separator, rest = text.partition("---\n")
    front, end, _ = rest.partition("\n---")
    if begin.strip() or not separator or not end:
        return None
    try:
        found = parse_yaml(front)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(found, Mapping):
        return None
    licence = found.get("license")
    if licence == "other":
        licence = found.get("license_name") or licence
    return printable(licence)[:LONGEST] if isinstance(licence, str) and licence else None


def readme_of_merged(base: Mapping[str, Any], licence: str | None) -> str:
    """README.md of a merged encoder's folder.

    Args:
        base: what it was made from: see `card`.
        licence: of the base model.
    """
    from huggingface_hub import ModelCardData

    on_hub = base.get("revision") is not None
    front = ModelCardData(
        library_name="transformers",
        base_model=printable(base["id"]) if on_hub else None,
        license=licence,
        tags=["awtpn"],
    )
    revision = f", revision {code(base['revision'])}" if on_hub else ""
    trained = "not changed" if base["tune"] == "frozen" else f"tuned ({inline(base['tune'])})"
    known = f"{inline(licence)}, which applies to these weights, too" if licence else "see its page"
    return (
        f"---\n{front.to_yaml()}\n---\n\n"
        f"# An encoder of emotions\n\nMade from {inline(base['id'])}{revision}; its weights were {trained} "
        f"within an AWTPN model. License of that model: {known}.\n"
    )
