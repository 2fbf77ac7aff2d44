"""The data plane: features packed into shards, streamed as batches in an order free of the number of ranks.

It knows utterances, modalities (named streams of steps) and classes, and no model. Where things are:

- what is on disk: `schema` (sample, shard, manifest), `index` (byte offsets), `members` (of a tar)
- packing: `sources/` -> `checks` -> `writer` -> `part` (a shard) -> `target` (the folder), with `statistics`,
  and `restricted_pickle` for sources that others pickled
- extraction: `sources/` -> `clips` -> `media` (decoding) -> `encoders/` -> `features` -> `extract`, with
  `lots` (shards to make), `beats` (whether ranks live), `faces`, and `feature_space` (how features were made,
  and which mean the same)
- any store: `store` (URL -> verified local file), `cache`, `retry`, `protocols`, `sftp`, `credentials`
- the order: `plan` (a pure function), `balance`, `selection`, `working_set`, `simulate`
- the stream: `stream` (what awtpn uses), `reader`, `reads`, `pool`, `ahead`, `threads`, `batch`
- looking at datasets: `inspect`, `verify`; tars of others: `foreign`, `survey`, `adopt`
- words of data in terminals and logs: `printable`
"""

from shards.batch import FeatureBatch, Ragged
from shards.plan import Plan, make_plan, places_of_rank, rows_of_step, shards_ahead
from shards.schema import BadSample, Manifest, Modality, Sample
from shards.sources.demo import ensure_demo
from shards.statistics import Sums
from shards.stream import FeatureStream
from shards.writer import pack

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
