"""From shards to batches.

- `stream`: FeatureStream, which training and evaluation use; `reader`: utterances of a shard, and what is
  damaged; `scattered_reads`: many arrays per system call; `buffer_pool`: memory that batches reuse;
  `prefetch`: batches read ahead; `daemon_threads`: for requests to a store; `batch`: sequences of different
  lengths, packed
- `selection`: utterances by metadata; `common_utterances`: utterances that two streams share
"""
