"""What a dataset is on disk.

- `schema`: sample, shard, manifest; `manifest`: read and checked; `index`: byte offsets of arrays,
  `index_file`: of a shard; `tar_members`; `class_checks`: labels against the metadata
- `statistics`: sums of features; `feature_space`: how features were made, and which mean the same
- `labels`: from a label to a class; `split_names`: "valid" and "dev" are "val"; `hashing`: SHA-256
"""
