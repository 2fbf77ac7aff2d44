"""The names of the built-in demo corpora, wherever a command takes a dataset.

`demo`, `demo-values`, `demo-labels` and `demo-recordings` always mean these corpora, which are made in the
cache at their first use. A file or folder that happens to have such a name is written with its path:
`./demo`.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace

from awtpn.config.settings import DEMOS
from awtpn.config.suggestions import one_of, similar
from awtpn.model.encoders.settings import DEMO_ENCODER, EncoderSettings
from shards.sources.demo import ensure_demo
from shards.sources.made_up.demo_recordings import ensure_encoder
from shards.storage.cache import explain_unwritable
from shards.storage.local_path import local_path
from shards.storage.store import default_cache

# What can be a misspelled name: no path and no URL.
WORD = re.compile(r"[\w-]+")


def demo_name(url: str) -> str | None:
    """The name of the demo that `url` means, also with `#split`; None for any other dataset."""
    name = url.partition("#")[0]
    return name if name in DEMOS else None


def dataset_url(given: str, cache_dir: str | None = None) -> str:
    """The URL of a dataset as a user names it: of a demo its folder, anything else as it is given.

    Args:
        given: a demo's name or any URL, both also with `#split`.
        cache_dir: where demos are made; None is the default cache.

    Raises:
        ValueError: it is a misspelled name of a demo.
        CacheUnwritable: the cache cannot be written.
    """
    name, mark, split = given.partition("#")
    if name in DEMOS:
        return demo_dataset(name, cache_dir) + mark + split
    refuse_misspelled(given)
    return given


def demo_dataset(name: str, cache_dir: str | None) -> str:
    """The folder of a demo corpus in the cache; it is made at the first use.

    Args:
        name: of DEMOS.
        cache_dir: the cache; None is the default one.

    Raises:
        CacheUnwritable: the cache cannot be written.
    """
    cache = local_path(cache_dir, "data.cache_dir") if cache_dir else default_cache()
    with explain_unwritable(cache):
        return ensure_demo(cache, DEMOS[name])


def refuse_misspelled(*given: str) -> None:
    """Raise ValueError for a dataset of whose name there is nothing, but a demo of a similar one."""
    for url in given:
        name = url.partition("#")[0]
        if not WORD.fullmatch(name) or name in DEMOS or os.path.lexists(name):
            continue
        if alike := similar(name, DEMOS):
            raise ValueError(
                f"{name}: no such folder; did you mean {one_of(alike)}, which awtpn makes itself?"
            )


def hidden_by_demo(given: str) -> str | None:
    """A line if the name of a demo is also that of something in the working folder; else None."""
    name = demo_name(given)
    if name is None or not os.path.lexists(name):
        return None
    return f"note: {name} is the built-in demo; write ./{name} for what has this name here"


def located_encoder(settings: EncoderSettings, modality: str, cache_dir: str | None) -> EncoderSettings:
    """The settings of an encoder, with the folder in the cache in place of the name DEMO_ENCODER.

    Raises:
        CacheUnwritable: the cache cannot be written.
    """
    if settings.model != DEMO_ENCODER:
        return settings
    cache = local_path(cache_dir, "data.cache_dir") if cache_dir else default_cache()
    with explain_unwritable(cache):
        return replace(settings, model=ensure_encoder(cache, modality))
