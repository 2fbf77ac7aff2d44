"""Where utterances come from: each module has a `read` that returns a `Source`, ready for `shards.pack`."""

from shards.sources.source import Source

__all__ = ["Source"]
