"""The data plane: features packed into shards, streamed as batches in an order free of the number of ranks.

It knows utterances, modalities (named streams of steps) and classes, and no model. Where things are:

- what is on disk: `schema` (sample, shard, manifest), `index` (byte offsets), `members` (of a tar),
  `json_text`, `file_names` (clutter, bytes that are no text, Unicode forms)
- checked as it is read: `manifest`, `index_file`, `class_checks` (labels against the metadata),
  `bounded_json`, `bounded_npz`, `bounded_yaml`
- what sources call things: `labels` (from a label to a class), `split_names` ("valid" and "dev" are "val")
- packing: `sources/` -> `checks` -> `writer` -> `part` (a shard) -> `target` (the folder; `replacement` of a
  dataset there), with `statistics`, and `restricted_pickle`, `expansion` (how far a file may unpack) and
  `lfs` (pointers) for files of others
- extraction: `sources/` -> `clips` -> `media` (decoding) -> `encoders/` -> `features` -> `extract`, with
  `lots` (shards to make), `beats` (whether ranks live), `faces`, and `feature_space` (how features were made,
  and which mean the same)
- any store: `store` (URL -> verified local file), `cache`, `retry`, `protocols`, `sftp`, `credentials`,
  `local_path` (a user's path)
- the order: `plan` (a pure function), `balance`, `selection`, `working_set`, `simulate`
- the stream: `stream` (what awtpn uses), `reader`, `reads`, `pool`, `ahead`, `threads`, `batch`
- looking at datasets: `inspect`, `verify`, `moment_checks`, `common_utterances` (of two streams);
  tars of others: `foreign`, `survey`, `member_names` (whose a member is), `adopt`
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
