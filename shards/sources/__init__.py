"""Where utterances come from: each module has a `read`.

Of features it returns a `Source`, ready for `shards.pack` (reference, table, npz, mosei, mmsa, demo); of
recordings a `shards.clips.ClipSource`, ready for `shards.extract` (iemocap, meld, recordings).
"""

from shards.sources.source import Source

__all__ = ["Source"]
