"""The data plane: features packed into shards, streamed as batches in an order free of the number of ranks.

It knows utterances, modalities (named streams of steps) and classes, and no model.
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
