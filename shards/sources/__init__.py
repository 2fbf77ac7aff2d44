"""Where utterances come from: a module per corpus or file format, whose `read` gives its utterances.

Features, for `shards.pack`; their `read` returns a `Source`:

- `reference`: the published code's `.pt` files; `table`: a CSV or JSONL table of `.npy` files;
  `npz`: packed arrays in one file
- `demo`: made-up corpora, of classes or of other targets; `synthetic`: made-up corpora with a setting for
  each property; `made_up/`: what both draw with
- `mosei`: computational sequences of CMU-MOSEI and CMU-MOSI, read by `cmu/`; `mmsa`: MMSA's pickles

Recordings, for `extraction.extract`; their `read` returns a `sources.base.ClipSource`:

- `iemocap`, `meld`: the corpora as they unpack; `recordings`: a table or a folder of your own

For all of them: `base`: what a source returns, labels, splits and keys; `transcripts`: texts as words;
`reading/`: pickles, rows of tables, targets other than classes, recordings
of your own.

`find_sources` lists the modules; the command line takes their options and help from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from shards.registry import Entry, find_functions

if TYPE_CHECKING:
    from shards.sources.base import Source

__all__ = ["Source", "find_sources"]


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


def __getattr__(name: str) -> Any:
    if name == "Source":  # imports NumPy, which listing the sources does not need
        from shards.sources.base import Source

        return Source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
