"""Where utterances come from: a module per corpus or file format, whose `read` gives its utterances.

Features, for `shards.pack`; their `read` returns a `Source`:

- `reference`: the published code's `.pt` files; `table`: a CSV or JSONL table of `.npy` files;
  `npz`: packed arrays in one file
- `demo`: made-up corpora, of classes or of other targets; `synthetic`: made-up corpora with a setting for
  each property; `made_up/`: what both draw with
- `mosei`: computational sequences of CMU-MOSEI and CMU-MOSI, read by `cmu/`; `mmsa`: MMSA's pickles
- `dataset`: a dataset of features that was packed or extracted before

Recordings, for `extraction.extract`; their `read` returns a `sources.base.ClipSource`:

- `iemocap`, `meld`: the corpora as they unpack; `recordings`: a table or a folder of your own;
  `packed_recordings`: a dataset of recordings that an earlier extraction made

For all of them: `base`: what a source returns, labels, splits and keys; `reading/`: pickles, rows of tables,
targets other than classes, transcripts, recordings of your own, rows of datasets of recordings.

`find_sources` lists the modules; the command line takes their options and help from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shards.registry import Entry, find_functions

if TYPE_CHECKING:
    from shards.sources.base import Source

__all__ = ["Source", "find_sources", "guess_format"]

FALLBACK = "recordings"  # the format of clips if no corpus recognizes them
PACKED = "packed_recordings"  # the format of a dataset that an earlier extraction made


def find_sources(kind: Literal["Source", "ClipSource"]) -> dict[str, Entry]:
    """The sources of a kind, by name: the modules here whose `read` is annotated to return it.

    None of them is imported.

    Args:
        kind: "Source" are features, "ClipSource" are recordings.
    """
    found = {}
    for entry in find_functions(__name__, tuple(__path__), "read"):
        if entry.returns == kind:
            assert "source" in entry.parameters, f"{entry.module}: the first parameter of read must be source"
            found[entry.module.rpartition(".")[2]] = entry
    return found


def guess_format(source: str, sources: Mapping[str, Entry]) -> str:
    """The format of SOURCE: `PACKED` of a URL, else that whose `recognize` knows the folder, else `FALLBACK`.

    Raises:
        ValueError: there is no such folder or file.
    """
    from shards.storage.local_path import is_remote

    if is_remote(source):
        return PACKED  # the only one that is read from object storage
    # A dataset may be named with a split: data/clips#train.
    whole = source if Path(source).exists() else source.partition("#")[0]
    if not Path(whole).exists():
        raise ValueError(f"{source}: no such file or folder")
    names = sources if whole == source else [PACKED]
    for name in names:
        entry = sources[name]
        if "recognize" in entry.functions and import_module(entry.module).recognize(Path(whole)):
            return name
    if whole != source:
        raise ValueError(f"{source}: no such file or folder, and {whole} is no dataset with splits")
    return FALLBACK


def __getattr__(name: str) -> Any:
    if name == "Source":  # imports NumPy, which listing the sources does not need
        from shards.sources.base import Source

        return Source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
