"""From recordings to features in shards, on one process or many.

- `extract`: recordings to a dataset; `shard_jobs`: which clips make which shard, on which rank;
  `shard_records`: what is finished; `heartbeat`: notices ranks that hang or are gone
- `text_features`: features of text for utterances whose other features exist already
- `pipeline`: decode and encode clips; `media/`: decoding; `encoders/`: waves, pictures and words to features;
  `reopen_encoder`: the encoder of recorded features
- `stored_media`: what an encoder is given of a dataset of recordings; `through_recording`: media as if they
  had been stored there, to predict
"""
