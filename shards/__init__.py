"""The data plane: packs features into shards, and reads the same global batches with any number of ranks.

Its terms are utterances, modalities (named sequences of time steps) and classes; it has no code of a model.
Packages, from the top; each imports only from those below it:

- `tools/`: what `awtpn shards` does: info, verify, simulate, index tars in place
- `extraction/`: recordings -> features, with encoders and media
- `sources/`: corpora, and feature files of other programs -> samples (features) or clips (recordings)
- `packing/`: samples -> shards, an output folder that is complete or absent
- `streaming/`: shards -> batches
- `planning/`: the order of utterances, as pure functions of rank and world size
- `storage/`: files of any store (local, http, S3, SFTP): cache, retries, credentials
- `format/`: what is on disk: manifest, index, tar, statistics, labels
- `progress`: how far long work is: a bar on a terminal, lines in a log
- `safe_io/`: files and text that others wrote: read with limits, escaped where they are shown
- `cores`: how many this process may use
- `registry`: finds the sources or encoders in a folder, and their options, without importing them
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.format.recording import Recording
    from shards.format.schema import BadSample, Manifest, Modality, Sample
    from shards.format.statistics import Sums
    from shards.format.targets import Target
    from shards.packing.pack import pack
    from shards.planning.plan import Plan, make_plan, places_of_rank, rows_of_step, shards_ahead
    from shards.sources.demo import ensure_demo
    from shards.streaming.batch import FeatureBatch, Ragged
    from shards.streaming.stream import FeatureStream

__all__ = [
    "BadSample",
    "FeatureBatch",
    "FeatureStream",
    "Manifest",
    "Modality",
    "Plan",
    "Ragged",
    "Recording",
    "Sample",
    "Sums",
    "Target",
    "ensure_demo",
    "make_plan",
    "pack",
    "places_of_rank",
    "rows_of_step",
    "shards_ahead",
]

# Each public name is imported when it is first used: the stream needs torch, the manifest and packing do not.
_MODULE_OF = {
    "BadSample": "shards.format.schema",
    "FeatureBatch": "shards.streaming.batch",
    "FeatureStream": "shards.streaming.stream",
    "Manifest": "shards.format.schema",
    "Modality": "shards.format.schema",
    "Plan": "shards.planning.plan",
    "Ragged": "shards.streaming.batch",
    "Recording": "shards.format.recording",
    "Sample": "shards.format.schema",
    "Sums": "shards.format.statistics",
    "Target": "shards.format.targets",
    "ensure_demo": "shards.sources.demo",
    "make_plan": "shards.planning.plan",
    "pack": "shards.packing.pack",
    "places_of_rank": "shards.planning.plan",
    "rows_of_step": "shards.planning.plan",
    "shards_ahead": "shards.planning.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
