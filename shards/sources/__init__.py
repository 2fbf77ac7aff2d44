"""Where utterances come from: each module has a `read`.

Of features it returns a `Source`, ready for `shards.pack` (reference, table, npz, mosei, mmsa, demo); of
recordings a `sources.base.ClipSource`, ready for `extraction.extract` (iemocap, meld, recordings).
"""

from shards.sources.base import Source

__all__ = ["Source"]
