"""What a dataset is on disk.

- `schema`: sample, shard, manifest; `manifest`: read and checked; `index`: byte offsets of arrays;
  `index_file`: an index on disk; `tar_members`; `class_checks`: labels compared with the metadata
- `statistics`: mean and spread of features; `feature_space`: how features were made, and which are compatible
- `labels`: from a label to a class; `split_names`: "valid" and "dev" are "val"; `hashing`: SHA-256
"""
