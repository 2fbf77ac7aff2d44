"""From shards to batches.

- `stream`: what `awtpn` uses; `reader`: utterances of a shard; `scattered_reads`: many reads at once;
  `buffer_pool`; `prefetch`: batches read ahead; `daemon_threads`; `batch`: utterances of any length, packed
- `selection`: utterances by metadata; `common_utterances`: of two streams
"""
