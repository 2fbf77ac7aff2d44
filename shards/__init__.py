"""The data plane: features packed into shards, streamed as batches in an order free of the number of ranks.

It knows utterances, modalities (named streams of steps) and classes, and no model. Packages,
from the top; each imports only from those below it:

- `tools/`: what `awtpn shards` does: info, verify, simulate, index tars in place
- `extraction/`: recordings -> features, with encoders and media
- `sources/`: corpora and feature files of others -> samples or clips
- `packing/`: samples -> shards, an output folder that is complete or absent
- `streaming/`: shards -> batches
- `planning/`: the order of utterances, as pure functions of rank and world size
- `storage/`: any store: cache, retries, credentials
- `format/`: what is on disk: manifest, index, tar, statistics
- `safe_io/`: files and words of others: bounded where read, escaped where shown
- `registry`: the sources or encoders in a folder, and their options, found without importing them
"""

from shards.format.schema import BadSample, Manifest, Modality, Sample
from shards.format.statistics import Sums
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
    "Sample",
    "Sums",
    "ensure_demo",
    "make_plan",
    "pack",
    "places_of_rank",
    "rows_of_step",
    "shards_ahead",
]
