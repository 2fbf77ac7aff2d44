"""From shards to batches.

- `stream`: FeatureStream, which training and evaluation use; `reader`: utterances of a shard, and what is
  damaged; `shard_handle`: an open shard; `target_columns`: what is to be recognized in its utterances;
  `scattered_reads`: many arrays per system call; `jpeg_files`: pictures that are stored as JPEG;
  `buffer_pool`: memory that batches reuse; `prefetch`: batches read ahead; `daemon_threads`: for requests to
  a store; `batch`: sequences of different lengths, packed; `feature_sums`: for means and deviations
- `selection`: utterances by metadata and target; `common_utterances`: utterances that two streams share
"""
