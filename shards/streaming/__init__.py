"""From shards to batches.

- `stream`: FeatureStream, which training and evaluation use; `reader`: utterances of a shard;
  `scattered_reads`: many arrays per system call; `buffer_pool`; `prefetch`: batches read ahead;
  `daemon_threads`; `batch`: sequences of different lengths, packed
- `selection`: utterances by metadata; `common_utterances`: utterances that two streams share
"""
