"""From shards to batches.

- `stream`: FeatureStream, which training and evaluation use; `reader`: utterances of a shard; `damage`: those
  that are damaged; `shard_handle`: an open shard; `row_metadata`: metadata of its utterances;
  `target_columns`: what is to be recognized in them;
  `scattered_reads`: many arrays per system call; `jpeg_files`: pictures that are stored as JPEG;
  `buffer_pool`: memory that batches reuse; `prefetch`: batches read ahead; `daemon_threads`: for requests to
  a store; `batch`: sequences of different lengths, packed; `feature_sums`: for means and deviations
- `selection`: utterances by metadata and target; `common_utterances`: utterances that two streams share
"""
