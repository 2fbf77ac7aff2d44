"""What a dataset is on disk.

- `schema`: sample, shard, manifest; `manifest`: read and checked; `targets`: what is to be recognized in the
  utterances; `index`: byte offsets of arrays; `index_file`: an index on disk; `columns`: metadata in it;
  `tar_members`: members of a tar and their offsets; `class_checks`: labels of the index compared with those
  of the shard
- `recording`: sound and pictures in place of features; `jpeg`: pictures to and from JPEG
- `statistics`: mean and deviation of features; `feature_space`: how features were made, and which are
  compatible
- `labels`: from a label to the name of a class; `split_names`: "valid" and "dev" are "val";
  `precision_names`: "fp16" is "float16"; `hashing`: SHA-256
"""
