"""Names of floating-point formats. Each has a short and a long one, and both are taken wherever one is.

Manifests and encoders record long names (`float16`), configurations of runs record short ones (`fp16`).
"""

from __future__ import annotations

LONG_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}


def long_name(name: str) -> str:
    """ "float16" of "fp16"; what names no format stays as it is."""
    return LONG_NAMES.get(name, name) if isinstance(name, str) else name


def short_name(name: str) -> str:
    """ "fp16" of "float16"; what names no format stays as it is."""
    return SHORT_NAMES.get(name, name) if isinstance(name, str) else name
