"""From shards to batches.

- `stream`: FeatureStream, which training and evaluation use; `reader`: utterances of a split; `open_shards`:
  its open shards; `shard_handle`: one of them, and its metadata; `damage`: utterances that are damaged;
  `target_columns`: what is to be recognized in them; `locate`: where their arrays are; `scattered_reads`:
  many arrays per system call; `jpeg_files`: pictures that are stored as JPEG; `buffer_pool`: memory that
  batches reuse; `prefetch`: batches read ahead; `batch`: sequences of different lengths, packed;
  `feature_sums`: for means and deviations
- `selection`: utterances by metadata and target; `common_utterances`: utterances that two streams share
"""
