"""From recordings to features in shards, on one process or many.

- `extract`: the whole of it; `shard_jobs`: which rank makes which shard; `heartbeat`: whether ranks live
- `pipeline`: decode, encode, check; `media/`: decoding; `encoders/`: waves and pictures to features;
  `reopen_encoder`: the encoder that made recorded features
"""
